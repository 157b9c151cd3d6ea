//! RWKV-7's parameter groups, its AdamW and the clipping of gradients by their global norm. The groups are part of the model, which trains worse with others.
//!
//! | group | members | learning rate | weight decay |
//! |---|---|---|---|
//! | decay bias | `att.w0` | twice the base | 0 |
//! | matrices | embedding, head, the weights of all linear layers, tensors named `W_…` | base | as configured |
//! | the rest | low-rank factors, token-shift mixes, biases, norms | base | 0 |
//!
//! Source: `RWKV-v7/train_temp/src/model.py`, `configure_optimizers`.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    optim::{
        AdamWConfig, AdamWState, GradientsParams, LearningRate, ModuleOptimizer, Optimizer,
        lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{Rwkv7, layers::ChannelMixer, ops};

pub use crate::ops::sum_of_squares;

/// Factor on the learning rate of [`decay_bias`].
pub const DECAY_BIAS_RATE: f64 = 2.0;

/// AdamW with RWKV-7's defaults.
///
/// ```
/// use burn::{module::Module, optim::GradientsParams, tensor::{Device, Int, Tensor}};
/// use rwkv7_core::{Rwkv7Config, loss, optimizer::OptimizerConfig};
///
/// let device = Device::default().autodiff();
/// let model = Rwkv7Config::new(256, 2, 64).init(&device);
/// let mut optimizer = OptimizerConfig::default().init();
/// let tokens = Tensor::<2, Int>::from_data([[72, 101, 108, 108]], &device);
/// let targets = Tensor::<2, Int>::from_data([[101, 108, 108, 111]], &device);
/// let loss = loss::cross_entropy(model.forward(tokens, None).0, targets, None);
/// let gradients = GradientsParams::from_grads(loss.backward(), &model);
/// let model = optimizer.step(1e-3, model, gradients);
/// # let _ = model.num_params();
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f32,
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment. The value is so small that factors of zeros start with full-size steps.
    pub epsilon: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            weight_decay: 0.1,
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-18,
        }
    }
}

impl OptimizerConfig {
    /// The optimizer with its weight-decay groups. Combine it with a learning-rate group for [`decay_bias`].
    pub fn init(&self) -> ModuleOptimizer {
        ModuleOptimizer::from(self.adamw(0.0)).with_group(
            matrices(),
            self.adamw(self.weight_decay),
            None,
        )
    }

    fn adamw(&self, weight_decay: f32) -> AdamW {
        AdamW(Self {
            weight_decay,
            ..self.clone()
        })
    }
}

/// Burn's AdamW, in one pass over memory on devices that have such an operation.
#[derive(Clone)]
struct AdamW(OptimizerConfig);

impl AdamW {
    fn plain(&self) -> burn::optim::AdamW {
        let config = &self.0;
        AdamWConfig::new()
            .with_beta_1(config.beta_1)
            .with_beta_2(config.beta_2)
            .with_epsilon(config.epsilon)
            .with_weight_decay(config.weight_decay)
            .build()
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        match state {
            Some(state) if ops::has_adamw(&parameter, &gradient, &state.momentum) => {
                let (parameter, state) =
                    ops::adamw(&self.0, rate, parameter, gradient, state.momentum);
                (parameter, Some(AdamWState::new(state)))
            }
            state => self.plain().step(rate, parameter, gradient, state),
        }
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        burn::optim::AdamW::to_device(state, device)
    }
}

/// [`ModuleOptimizer::step`], the same results with fewer kernel launches on GPUs: parameters that AdamW trains share their
/// launches. Other optimizers in the groups take their steps as ever.
pub fn step<M: Module>(
    optimizer: &mut ModuleOptimizer,
    rate: impl Into<ModuleLearningRate>,
    model: M,
    gradients: GradientsParams,
) -> M {
    #[cfg(feature = "gpu")]
    return ops::parameters::step(optimizer, rate.into(), model, gradients);
    #[cfg(not(feature = "gpu"))]
    optimizer.step(rate, model, gradients)
}

/// Scales gradients down to a global norm of `largest`; returns the norm before, `[1]`. Nothing is read from the device.
///
/// burn-optim clips each tensor by itself; RWKV-7 is trained with one norm over all parameters. A norm that is not a number
/// clips nothing.
pub fn clip_global_norm<M: ChannelMixer>(
    model: &Rwkv7<M>,
    gradients: &mut GradientsParams,
    largest: f64,
) -> Tensor<1> {
    #[cfg(feature = "gpu")]
    if let Some(norm) = ops::parameters::clip(model, gradients, largest) {
        return norm;
    }
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                let square = sum_of_squares(gradient);
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                let scaled = gradient * self.factor.clone().reshape([1; D]);
                self.gradients.register(param.id, scaled);
            }
        }
    }
    let mut squares = Squares {
        gradients,
        sum: None,
    };
    model.visit(&mut squares);
    let norm = match squares.sum {
        Some(sum) => sum.sqrt(),
        None => Tensor::zeros([1], &model.head.weight.lazy_device().inner()),
    };
    let factor = (norm.clone() + 1e-6)
        .recip()
        .mul_scalar(largest)
        .clamp_max(1.0);
    let factor = factor.clone().mask_fill(factor.is_nan(), 1.0);
    model.visit(&mut Scale { gradients, factor });
    norm
}

/// Parameters with weight decay: those that are called `weight`, which are the embedding and the linear layers (norms have `gamma`),
/// and those that are called `W_…`, which are the matrices of other channel mixers.
pub fn matrices() -> ParamGroup {
    ParamGroup::from_any_predicates(vec![".weight", ".W_"])
}

/// Parameters trained at [`DECAY_BIAS_RATE`] times the learning rate.
pub fn decay_bias() -> ParamGroup {
    ParamGroup::from_predicate(".att.w0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rwkv7Config, Rwkv7Lm};

    /// Gradients of zero, so that only weight decay changes a parameter.
    fn zero_gradients(model: &Rwkv7Lm) -> GradientsParams {
        struct Zeros(GradientsParams);
        impl ModuleVisitor for Zeros {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.register(param.id, param.val().inner().zeros_like());
            }
        }
        let mut zeros = Zeros(GradientsParams::new());
        model.visit(&mut zeros);
        zeros.0
    }

    /// Path and sum of magnitudes of every parameter.
    fn magnitudes(model: &Rwkv7Lm) -> Vec<(String, f32)> {
        struct Sums(Vec<String>, Vec<(String, f32)>);
        impl ModuleVisitor for Sums {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.0.push(name.to_string());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.0.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let sum = param.val().abs().sum().into_scalar::<f32>();
                self.1.push((self.0.join("."), sum));
            }
        }
        let mut sums = Sums(Vec::new(), Vec::new());
        model.visit(&mut sums);
        sums.1
    }

    #[test]
    fn one_pass_is_burns_adamw() {
        let device = Device::default();
        let config = OptimizerConfig::default();
        let ours = config.adamw(0.1);
        let theirs = ours.plain();
        let start = Tensor::<2>::from_floats([[1.0, -2.0, 0.5], [0.0, 3e-3, -1.5]], &device);
        let (mut found, mut expected) = (start.clone(), start);
        let (mut our_state, mut their_state) = (None, None);
        for step in 0..20 {
            let gradient = expected.clone().sin() * (1.0 + step as f32) - 0.1;
            let (next, state) = ours.step(1e-2, found, gradient.clone(), our_state);
            (found, our_state) = (next, state);
            let (next, state) = theirs.step(1e-2, expected, gradient, their_state);
            (expected, their_state) = (next, state);
        }
        let values = |x: &Tensor<2>| x.clone().into_data().try_to_vec::<f32>();
        let (found, expected) = (values(&found), values(&expected));
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        for (a, b) in pairs {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} and {b}");
        }
    }

    #[test]
    fn weight_decay_shrinks_the_matrices_and_nothing_else() {
        let device = Device::default().autodiff();
        let model = Rwkv7Config::new(19, 2, 64).init(&device);
        let before = magnitudes(&model);
        let grads = zero_gradients(&model);
        let model = OptimizerConfig::default().init().step(0.1, model, grads);
        let matrices = ["emb", "head", "receptance", "key", "value", "output"];
        let mut shrunk = 0;
        for ((name, before), (_, after)) in before.iter().zip(magnitudes(&model)) {
            let matrix = name
                .strip_suffix(".weight")
                .is_some_and(|path| matrices.contains(&path.rsplit('.').next().unwrap_or(path)));
            let expected = if matrix {
                before * (1.0 - 0.1 * 0.1)
            } else {
                *before
            };
            assert!(
                (after - expected).abs() <= 1e-4 * before,
                "{name}: {before} became {after}"
            );
            shrunk += usize::from(matrix);
        }
        assert_eq!(shrunk, 2 + 2 * 6);
    }
}
