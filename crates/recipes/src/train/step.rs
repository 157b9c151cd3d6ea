//! The model as burn-train sees it: one step of training, one of validation, one of the optimizer.
//!
//! In a program of one's own it goes into Burn's [`Learner`](burn::train::Learner):
//!
//! ```
//! use std::sync::Arc;
//!
//! use burn::{
//!     optim::lr_scheduler::{constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler},
//!     tensor::Device,
//!     train::{Learner, SupervisedTraining, renderer::CliMetricsRenderer},
//! };
//! use metastate_recipes::{
//!     data::{loader::Loader, reverse::Reverse},
//!     train::{LmMetric, LmStep},
//! };
//! use rwkv7_core::{Rwkv7Config, optimizer::{self, OptimizerConfig}};
//!
//! let device = Device::flex().autodiff();
//! let task = Reverse { min_digits: 1, max_digits: 3, numbers: 32, seed: 0, held_out: false };
//! let training = Loader::training(Arc::new(task), 8, 4, 0, &device);
//! let held_out = Reverse { held_out: true, min_digits: 3, ..task };
//! let validation = Loader::validation(Arc::new(held_out), 8, &device);
//!
//! let model = Rwkv7Config { head_size: 8, ..Rwkv7Config::new(256, 1, 16) }.init(&device);
//! let adamw = OptimizerConfig::default().init();
//! // The decay bias trains at twice the rate.
//! let rates = ModuleLrScheduler::new(ConstantLr::from(1e-3))
//!     .with_group(optimizer::decay_bias(), ConstantLr::from(2e-3));
//! let folder = tempfile::tempdir()?;
//! let result = SupervisedTraining::new(folder.path(), Arc::new(training), Arc::new(validation))
//!     .metrics((LmMetric::loss(), LmMetric::accuracy()))
//!     .renderer(Box::new(CliMetricsRenderer::new()))
//!     .num_epochs(1)
//!     .launch(Learner::new(LmStep::new(model), adamw, rates));
//! assert!(result.error.is_none());
//! let trained = result.model.model;
//! # assert_eq!(trained.blocks.len(), 1);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use burn::{
    module::Module,
    optim::{
        GradientsParams, ModuleOptimizer, MultiGradientsParams,
        lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::Tensor,
    train::{InferenceStep, TrainOutput, TrainStep},
};
use rwkv7_core::{MatmulPrecision, Rwkv7, layers::ChannelMixer, loss::ModelLoss, optimizer};

use super::{
    growth::{FrozenEntries, GrowthHook},
    output::{NormCell, NormSlot, StepOutput},
};
use crate::data::batch::LmBatch;

/// How a step trains the model.
#[derive(Clone, Debug)]
pub struct StepSettings {
    /// Batches whose gradients are averaged for one step, those of all devices together.
    pub accumulation: usize,
    /// Largest global norm of the gradients.
    pub clip_norm: f64,
    /// Whether the L2Wrap term is added.
    pub l2_wrap: bool,
    /// Whether the layers measure themselves.
    pub diagnostics: bool,
    /// How the layers multiply with their weights.
    pub precision: MatmulPrecision,
}

impl Default for StepSettings {
    fn default() -> Self {
        Self {
            accumulation: 1,
            clip_norm: 1.0,
            l2_wrap: true,
            diagnostics: false,
            precision: MatmulPrecision::F32,
        }
    }
}

/// A language model in training.
#[derive(Module, Debug)]
pub struct LmStep<M: ChannelMixer> {
    /// The model.
    pub model: Rwkv7<M>,
    /// How it is trained.
    #[module(skip)]
    pub settings: StepSettings,
    // Where the optimizer step leaves the gradients' norm for the metrics.
    #[module(skip)]
    norm: NormSlot,
    #[module(skip)]
    state: StepState,
}

/// How far the run is, and the growth of the model between its steps.
#[derive(Clone, Default)]
struct StepState {
    /// An `Arc<dyn GrowthHook<M>>`: Burn wants a skipped field to know nothing of the module's parameters.
    hook: Option<Arc<dyn Any + Send + Sync>>,
    /// Optimizer steps done.
    step: usize,
    /// Optimizer steps done by any copy of the model.
    taken: Arc<AtomicUsize>,
    /// The entries with a rate of their own; unset until the first step that asks.
    frozen: OnceLock<Option<FrozenEntries>>,
}

impl StepState {
    fn new<M: ChannelMixer>(hook: Arc<dyn GrowthHook<M>>, step: usize) -> Self {
        Self {
            hook: Some(Arc::new(hook)),
            step,
            taken: Arc::new(AtomicUsize::new(step)),
            frozen: OnceLock::new(),
        }
    }

    /// Counts a step.
    ///
    /// # Panics
    ///
    /// If the model grows and another copy of it took the same step: each would grow and log by itself.
    fn advance(&mut self) {
        self.step += 1;
        let before = self.taken.fetch_max(self.step, Ordering::Relaxed);
        assert!(
            self.hook.is_none() || before < self.step,
            "two workers took optimizer step {}: a model that grows is trained on one device, or on several with \
             MultiDeviceOptim::OptimMainDevice, and not by distributed data parallelism",
            self.step
        );
    }

    fn hook<M: ChannelMixer>(&self) -> Option<Arc<dyn GrowthHook<M>>> {
        self.hook.as_ref()?.downcast_ref().cloned()
    }

    fn frozen<M: ChannelMixer>(&self, model: &Rwkv7<M>) -> Option<FrozenEntries> {
        let ask = || self.hook()?.frozen(self.step, model);
        self.frozen.get_or_init(ask).clone()
    }
}

impl fmt::Debug for StepState {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "step {}, frozen {:?}", self.step, self.frozen)
    }
}

impl<M: ChannelMixer> LmStep<M> {
    /// A model that is trained with the default [`StepSettings`].
    pub fn new(model: Rwkv7<M>) -> Self {
        let step = Self {
            model,
            settings: StepSettings::default(),
            norm: NormSlot::default(),
            state: StepState::default(),
        };
        step.with_settings(StepSettings::default())
    }

    /// Trains with other settings.
    pub fn with_settings(self, settings: StepSettings) -> Self {
        let mut step = Self {
            model: self.model.with_matmul_precision(settings.precision),
            settings,
            ..self
        };
        step.measure();
        step
    }

    /// Attaches a growth schedule; `step` optimizer steps are already done.
    ///
    /// Only one copy of the model may take the steps: several devices compute gradients, and one of them optimizes. Under Burn's
    /// distributed data parallelism, where each worker optimizes its own copy, the first step ends with a panic that says so.
    pub fn with_growth(self, hook: Arc<dyn GrowthHook<M>>, step: usize) -> Self {
        Self {
            state: StepState::new(hook, step),
            ..self
        }
    }

    fn measure(&mut self) {
        for block in &mut self.model.blocks {
            block.ffn.measure(self.settings.diagnostics);
        }
    }

    /// The loss on a batch, and what is reported of it.
    fn run(&self, batch: LmBatch, l2_wrap: bool) -> (Tensor<1>, StepOutput) {
        let started = Instant::now();
        let tokens = batch.inputs.shape().num_elements();
        let ModelLoss { loss, correct } =
            self.model
                .loss(batch.inputs, batch.targets, batch.mask, l2_wrap);
        let output = StepOutput {
            loss: loss.clone().inner(),
            correct,
            norm: NormCell::default(),
            started,
            counted: batch.counted,
            tokens,
            numbers: None,
            layers: self
                .model
                .blocks
                .iter()
                .map(|block| block.ffn.measurements())
                .collect(),
        };
        (loss, output)
    }
}

impl<M: ChannelMixer> TrainStep for LmStep<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> TrainOutput<StepOutput> {
        let (loss, output) = self.run(batch, self.settings.l2_wrap);
        let share = loss / self.settings.accumulation as f64;
        let output = StepOutput {
            norm: self.norm.next(),
            ..output
        };
        TrainOutput::new(self, share.backward(), output)
    }

    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        rate: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        let norm = optimizer::clip_global_norm(&self.model, &mut grads, self.settings.clip_norm);
        self.norm.set(norm);
        let frozen = self.state.frozen(&self.model);
        let before = frozen.map(|frozen| (frozen, self.model.clone()));
        let mut trained = optimizer::step(optimizer, rate, self, grads);
        if let Some((frozen, before)) = before {
            trained.model = frozen.hold(&before, trained.model);
        }
        trained.state.advance();
        if let Some(hook) = trained.state.hook::<M>() {
            let step = trained.state.step;
            if let Some(larger) = hook.after(step, &trained.model, optimizer) {
                trained.model = larger;
                trained.state = StepState::new(hook, step);
                trained.measure();
            }
        }
        trained
    }

    /// Not there: the global norm and growth need all gradients on one device.
    ///
    /// # Panics
    ///
    /// Always.
    fn optimize_multi(
        self,
        _optimizer: &mut ModuleOptimizer,
        _rate: ModuleLearningRate,
        _grads: MultiGradientsParams,
    ) -> Self {
        panic!(
            "gradients are clipped by their norm over all parameters, which needs them on one device; train with \
             MultiDeviceOptim::OptimMainDevice instead of OptimSharded"
        )
    }
}

impl<M: ChannelMixer> InferenceStep for LmStep<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> StepOutput {
        self.run(batch, false).1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::batch::{LmBatcher, Sequence};
    use burn::{
        data::dataloader::batcher::Batcher,
        module::{ModuleVisitor, Param},
        optim::GradientsAccumulator,
        tensor::Device,
        train::metric::ItemLazy,
    };
    use rwkv7_core::{Rwkv7Config, Rwkv7Lm, layers::ChannelMix, optimizer::OptimizerConfig};

    fn step(accumulation: usize) -> LmStep<ChannelMix> {
        let config = Rwkv7Config {
            head_size: 8,
            ..Rwkv7Config::new(20, 2, 16)
        };
        let settings = StepSettings {
            accumulation,
            ..StepSettings::default()
        };
        LmStep::new(config.init_seeded(&Device::flex().autodiff(), 3)).with_settings(settings)
    }

    fn batch(rows: std::ops::Range<i32>) -> LmBatch {
        let row = |r: i32| {
            let ids: Vec<i32> = (0..6).map(|t| (7 * r + t) % 20).collect();
            Sequence {
                targets: ids.iter().map(|id| (id + 1) % 20).collect(),
                inputs: ids,
                mask: None,
            }
        };
        LmBatcher.batch(rows.map(row).collect(), &Device::flex().autodiff())
    }

    /// All gradients in a row.
    fn flat(model: &Rwkv7Lm, grads: &GradientsParams) -> Vec<f32> {
        struct Collect<'a>(&'a GradientsParams, Vec<f32>);
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.0.get::<D>(param.id) {
                    self.1.extend(grad.into_data().iter::<f32>());
                }
            }
        }
        let mut collect = Collect(grads, Vec::new());
        model.visit(&mut collect);
        collect.1
    }

    #[test]
    fn accumulated_batches_have_the_gradient_of_one_large_batch() {
        let whole = step(1);
        let expected = flat(&whole.model, &TrainStep::step(&whole, batch(0..4)).grads);
        let parts = LmStep {
            settings: step(2).settings,
            ..whole
        };
        let mut sum = GradientsAccumulator::new();
        for rows in [0..2, 2..4] {
            sum.accumulate(&parts, TrainStep::step(&parts, batch(rows)).grads);
        }
        let found = flat(&parts.model, &sum.grads());
        let largest = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert!(expected.len() > 1000 && largest > 0.0);
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5 * largest, "{a} and {b}");
        }
    }

    #[test]
    fn clipping_scales_all_gradients_to_the_largest_norm_and_reports_the_old_one() {
        let model = step(1);
        let norm_of = |values: &[f32]| {
            let squares = values.iter().map(|&x| f64::from(x).powi(2));
            squares.sum::<f64>().sqrt()
        };
        for share in [0.1, 10.0] {
            let mut grads = TrainStep::step(&model, batch(0..4)).grads;
            let before = flat(&model.model, &grads);
            let norm = norm_of(&before);
            let reported = optimizer::clip_global_norm(&model.model, &mut grads, share * norm);
            let reported = f64::from(reported.into_scalar::<f32>());
            assert!((reported - norm).abs() < 1e-4 * norm, "{reported}, {norm}");
            let after = flat(&model.model, &grads);
            let factor = share.min(1.0) as f32;
            for (a, b) in after.iter().zip(&before) {
                assert!(
                    (a - b * factor).abs() <= 1e-4 * b.abs() + 1e-9,
                    "{a} and {b}"
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "two workers took optimizer step 1")]
    fn workers_that_grow_by_themselves_are_refused() {
        struct NoGrowth;
        impl GrowthHook<ChannelMix> for NoGrowth {
            fn after(
                &self,
                _step: usize,
                _model: &Rwkv7Lm,
                _optimizer: &mut ModuleOptimizer,
            ) -> Option<Rwkv7Lm> {
                None
            }

            fn frozen(&self, _step: usize, _model: &Rwkv7Lm) -> Option<FrozenEntries> {
                None
            }
        }
        let main = step(1).with_growth(Arc::new(NoGrowth), 0);
        let mut optimizer = OptimizerConfig::default().init();
        for worker in [main.clone(), main] {
            let grads = TrainStep::step(&worker, batch(0..2)).grads;
            worker.optimize(&mut optimizer, 1e-3.into(), grads);
        }
    }

    #[test]
    fn each_step_keeps_its_own_norm() {
        let model = step(1);
        let step = |rows, norm: f32| {
            let output = TrainStep::step(&model, batch(rows)).item;
            let device = Device::flex();
            model.norm.set(Tensor::from_floats([norm], &device));
            output
        };
        let (first, second) = (step(0..2, 1.0), step(2..4, 2.0));
        let norms = [first, second].map(|output| output.sync().unwrap().numbers.unwrap().norm);
        assert_eq!(norms, [Some(1.0), Some(2.0)]);
    }
}
