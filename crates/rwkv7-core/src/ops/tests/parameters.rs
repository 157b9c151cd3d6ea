//! AdamW and the clipping of gradients on the default device, all parameters together and one by one, against Burn's AdamW and
//! against sums in f64.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig},
    tensor::{Device, Tensor, TensorData},
};

use crate::{
    Rwkv7Config, Rwkv7Lm,
    optimizer::{self, OptimizerConfig},
};

fn model() -> Rwkv7Lm {
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(21, 2, 32)
    };
    // More elements than a cube's block have only the two of these.
    let wide = Rwkv7Config {
        vocab_size: 301,
        ..config
    };
    wide.init_seeded(&Device::default().autodiff(), 5)
}

/// Gradients of about `size` with every sign, different in every step.
fn gradients(model: &Rwkv7Lm, size: f32, step: usize) -> GradientsParams {
    struct Waves(GradientsParams, f32, usize);
    impl ModuleVisitor for Waves {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = param.shape();
            let values: Vec<f32> = (0..shape.num_elements())
                .map(|i| self.1 * ((i * 7 + self.2 * 13) as f32 * 0.37).sin())
                .collect();
            let device = param.val().device().inner();
            let gradient = Tensor::<D>::from_data(TensorData::new(values, shape), &device);
            self.0.register(param.id, gradient);
            self.2 += 1;
        }
    }
    let mut waves = Waves(GradientsParams::new(), size, 1000 * step);
    model.visit(&mut waves);
    waves.0
}

/// All parameters, or the gradients that a model has.
fn values(model: &Rwkv7Lm, gradients: Option<&GradientsParams>) -> Vec<Vec<f32>> {
    struct Collect<'a>(Option<&'a GradientsParams>, Vec<Vec<f32>>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = match self.0 {
                Some(gradients) => gradients.get::<D>(param.id).unwrap(),
                None => param.val().inner(),
            };
            self.1.push(value.into_data().try_to_vec().unwrap());
        }
    }
    let mut collect = Collect(gradients, Vec::new());
    model.visit(&mut collect);
    collect.1
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (tensor, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= tolerance * (1e-3 + b.abs()),
                "tensor {tensor}, element {at}: {a} and {b}"
            );
        }
    }
}

/// Burn's AdamW with the groups of [`OptimizerConfig`].
fn burns_adamw() -> ModuleOptimizer {
    let adamw = |weight_decay| {
        AdamWConfig::new()
            .with_beta_1(0.9)
            .with_beta_2(0.99)
            .with_epsilon(1e-18)
            .with_weight_decay(weight_decay)
            .build()
    };
    ModuleOptimizer::from(adamw(0.0)).with_group(optimizer::matrices(), adamw(0.1), None)
}

type Steps = fn(&mut ModuleOptimizer, Rwkv7Lm, GradientsParams) -> Rwkv7Lm;

fn one_by_one(optimizer: &mut ModuleOptimizer, model: Rwkv7Lm, grads: GradientsParams) -> Rwkv7Lm {
    optimizer.step(1e-2, model, grads)
}

fn together(optimizer: &mut ModuleOptimizer, model: Rwkv7Lm, grads: GradientsParams) -> Rwkv7Lm {
    optimizer::step(optimizer, 1e-2, model, grads)
}

/// The parameters after four steps, with a copy of the model kept as a learner keeps one.
fn trained(mut optimizer: ModuleOptimizer, step: Steps) -> Vec<Vec<f32>> {
    let mut model = model();
    let before = values(&model, None);
    for at in 0..4 {
        let kept = model.clone();
        let grads = gradients(&model, 1.0, at);
        let unchanged = values(&kept, None);
        model = step(&mut optimizer, model, grads);
        assert_eq!(values(&kept, None), unchanged, "the model before the step");
    }
    let after = values(&model, None);
    assert!(before.iter().zip(&after).all(|(a, b)| a != b));
    after
}

#[test]
fn adamw_is_burns_together_and_one_by_one() {
    let expected = trained(burns_adamw(), one_by_one);
    let ours = OptimizerConfig::default().init();
    assert_close(&trained(ours.clone(), one_by_one), &expected, 2e-6);
    assert_close(&trained(ours, together), &expected, 2e-6);
}

/// A parameter that another optimizer trains takes one step a step, not two, and a parameter without a gradient none.
#[test]
fn other_optimizers_and_missing_gradients_keep_their_way() {
    let optimizer = || {
        let group = ParamGroup::from_predicate(".att.w0");
        OptimizerConfig::default()
            .init()
            .with_group(group, SgdConfig::new().build(), None)
    };
    let without_head = |step: Steps| -> Vec<Vec<f32>> {
        let (mut model, mut optimizer) = (model(), optimizer());
        for at in 0..3 {
            let mut grads = gradients(&model, 1.0, at);
            grads.remove::<2>(model.head.weight.id);
            model = step(&mut optimizer, model, grads);
        }
        values(&model, None)
    };
    assert_close(&without_head(together), &without_head(one_by_one), 2e-6);
}

/// The optimizer's state in a checkpoint is that of steps one by one: a run that goes on from it takes the same steps.
#[test]
fn a_checkpoint_holds_the_state_of_steps_together() {
    let resumed = |step: Steps| {
        let (mut model, mut optimizer) = (model(), OptimizerConfig::default().init());
        for at in 0..4 {
            let grads = gradients(&model, 1.0, at);
            model = step(&mut optimizer, model, grads);
            let record = optimizer.to_record();
            optimizer = OptimizerConfig::default().init().load_record(record);
        }
        values(&model, None)
    };
    assert_close(
        &resumed(together),
        &trained(burns_adamw(), one_by_one),
        2e-6,
    );
}

#[test]
fn clipping_is_by_the_norm_of_all_gradients() {
    let model = model();
    for (size, largest) in [(1.0, 0.5), (1e-3, 1e3), (0.0, 1.0)] {
        let mut grads = gradients(&model, size, 0);
        let kept = grads.get::<2>(model.head.weight.id).unwrap();
        let before = values(&model, Some(&grads));
        let squares = before.iter().flatten().map(|&x| f64::from(x).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        let found = optimizer::clip_global_norm(&model, &mut grads, largest);
        let found = f64::from(found.into_scalar::<f32>());
        assert!((found - norm).abs() <= 1e-5 * norm, "{found} and {norm}");
        let factor = (largest / (norm + 1e-6)).min(1.0) as f32;
        let expected: Vec<Vec<f32>> = before
            .iter()
            .map(|tensor| tensor.iter().map(|x| x * factor).collect())
            .collect();
        assert_close(&values(&model, Some(&grads)), &expected, 2e-5);
        // Somebody else's copy of a gradient stays.
        let kept: Vec<f32> = kept.into_data().try_to_vec().unwrap();
        assert!(before.contains(&kept));
    }
}

#[test]
fn a_norm_that_is_not_a_number_clips_nothing() {
    let model = model();
    let mut grads = gradients(&model, 1.0, 0);
    let head = grads.remove::<2>(model.head.weight.id).unwrap();
    grads.register(model.head.weight.id, head * f32::NAN);
    let before = values(&model, Some(&grads));
    let norm = optimizer::clip_global_norm(&model, &mut grads, 1e-3);
    assert!(norm.into_scalar::<f32>().is_nan());
    let after = values(&model, Some(&grads));
    for (a, b) in after.iter().flatten().zip(before.iter().flatten()) {
        assert!(a == b || (a.is_nan() && b.is_nan()), "{a} and {b}");
    }
}
