//! The model as burn-train sees it: one step of training, one of validation, one of the optimizer.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use burn::{
    backend::ExecutionError,
    module::{Module, ModuleVisitor, Param},
    optim::{
        GradientsParams, ModuleOptimizer, lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::{Tensor, Transaction},
    train::{InferenceStep, TrainOutput, TrainStep, metric::ItemLazy},
};
use rwkv7_core::{MatmulPrecision, Rwkv7, layers::ChannelMixer, loss, optimizer::sum_of_squares};

use super::growth::{Evolution, Held};
use crate::data::loader::LmBatch;

/// What the recipe decides about a step.
#[derive(Clone, Debug)]
pub struct StepSettings {
    /// Batches whose gradients are averaged.
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

/// A model in training.
#[derive(Module, Debug)]
pub struct Trainee<M: ChannelMixer> {
    /// The model.
    pub model: Rwkv7<M>,
    /// How it is trained.
    #[module(skip)]
    pub settings: StepSettings,
    // Where the optimizer step leaves the gradients' norm for the metrics.
    #[module(skip)]
    norm: NormSlot,
    #[module(skip)]
    course: Course,
}

/// What happens to the model besides its steps.
#[derive(Clone, Default)]
struct Course {
    /// An `Arc<dyn Evolution<M>>`: Burn wants a skipped field to know nothing of the module's parameters.
    evolution: Option<Arc<dyn Any + Send + Sync>>,
    /// Optimizer steps done.
    step: usize,
    /// What trains at a rate of its own; none until the first step that asks.
    held: OnceLock<Option<Held>>,
}

impl Course {
    fn new<M: ChannelMixer>(evolution: Arc<dyn Evolution<M>>, step: usize) -> Self {
        Self {
            evolution: Some(Arc::new(evolution)),
            step,
            held: OnceLock::new(),
        }
    }

    fn evolution<M: ChannelMixer>(&self) -> Option<Arc<dyn Evolution<M>>> {
        self.evolution.as_ref()?.downcast_ref().cloned()
    }

    fn held<M: ChannelMixer>(&self, model: &Rwkv7<M>) -> Option<Held> {
        let ask = || self.evolution()?.held(self.step, model);
        self.held.get_or_init(ask).clone()
    }
}

impl fmt::Debug for Course {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "step {}, held {:?}", self.step, self.held)
    }
}

/// Where an optimizer step leaves the gradients' global norm. Every step has a cell of its own, because burn-train's
/// metric thread reads the results of a step while the next ones run.
#[derive(Clone, Debug, Default)]
struct NormSlot(Arc<Mutex<NormCell>>);

/// The gradients' global norm of one step, `[1]`; empty until its optimizer step.
type NormCell = Arc<OnceLock<Tensor<1>>>;

impl NormSlot {
    fn cell(&self) -> MutexGuard<'_, NormCell> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> NormCell {
        let cell = NormCell::default();
        *self.cell() = cell.clone();
        cell
    }

    fn set(&self, norm: Tensor<1>) {
        self.cell().get_or_init(|| norm);
    }
}

/// Results of a step for the metrics. The tensors are read when burn-train's metric thread asks for them.
pub struct StepOutput {
    loss: Tensor<1>,
    correct: Tensor<1>,
    norm: NormCell,
    /// Targets that counted.
    pub counted: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Mean loss in nats, share of counted targets that had the largest logit, norm of the gradients.
    pub numbers: Option<Numbers>,
    /// What each layer measured of itself.
    pub layers: Vec<Vec<f64>>,
}

/// Results of a step as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Mean loss in nats a counted token.
    pub loss: f64,
    /// Share of counted targets that had the largest logit.
    pub accuracy: f64,
    /// Global norm of the gradients before clipping; none in validation.
    pub norm: Option<f64>,
}

impl ItemLazy for StepOutput {
    fn sync(mut self) -> Result<Self, ExecutionError> {
        let norm = self.norm.get().cloned();
        let results = [self.loss.clone(), self.correct.clone()];
        // One transaction, so that the device is asked once.
        let read = results
            .into_iter()
            .chain(norm)
            .fold(Transaction::default(), Transaction::register)
            .try_execute()?;
        let values: Vec<f64> = read.iter().flat_map(|data| data.iter::<f64>()).collect();
        self.numbers = Some(Numbers {
            loss: values[0],
            accuracy: values[1] / self.counted.max(1) as f64,
            norm: values.get(2).copied(),
        });
        Ok(self)
    }
}

impl<M: ChannelMixer> Trainee<M> {
    /// A model to be trained like this.
    pub fn new(model: Rwkv7<M>, settings: StepSettings) -> Self {
        let mut trainee = Self {
            model: model.with_matmul_precision(settings.precision),
            settings,
            norm: NormSlot::default(),
            course: Course::default(),
        };
        trainee.measure();
        trainee
    }

    /// The same, after `step` steps of a run in which more happens to the model than steps.
    pub fn in_course(self, evolution: Arc<dyn Evolution<M>>, step: usize) -> Self {
        Self {
            course: Course::new(evolution, step),
            ..self
        }
    }

    fn measure(&mut self) {
        for block in &mut self.model.blocks {
            block.ffn.measure(self.settings.diagnostics);
        }
    }

    /// Mean loss and logits' hits on a batch, and the logits.
    fn run(&self, batch: LmBatch) -> (Tensor<1>, Tensor<3>, StepOutput) {
        let [rows, time] = batch.inputs.dims();
        let (logits, _) = self.model.forward(batch.inputs, None);
        let loss = loss::cross_entropy(logits.clone(), batch.targets.clone(), batch.mask.clone());
        let hits = logits
            .clone()
            .inner()
            .argmax(2)
            .reshape([rows, time])
            .equal(batch.targets.inner())
            .float();
        let hits = match batch.mask {
            Some(mask) => hits * mask.inner(),
            None => hits,
        };
        let output = StepOutput {
            loss: loss.clone().inner(),
            correct: hits.sum(),
            norm: NormCell::default(),
            counted: batch.counted,
            tokens: rows * time,
            numbers: None,
            layers: self
                .model
                .blocks
                .iter()
                .map(|block| block.ffn.measurements())
                .collect(),
        };
        (loss, logits, output)
    }
}

impl<M: ChannelMixer> TrainStep for Trainee<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> TrainOutput<StepOutput> {
        let (mut loss, logits, output) = self.run(batch);
        if self.settings.l2_wrap {
            loss = loss + loss::l2_wrap(logits);
        }
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
        let norm = clip(&self.model, &mut grads, self.settings.clip_norm);
        self.norm.set(norm);
        let held = self.course.held(&self.model);
        let before = held.map(|held| (held, self.model.clone()));
        let mut trained = optimizer.step(rate, self, grads);
        if let Some((held, before)) = before {
            trained.model = held.apply(&before, trained.model);
        }
        trained.course.step += 1;
        if let Some(evolution) = trained.course.evolution::<M>() {
            let step = trained.course.step;
            if let Some(larger) = evolution.after(step, &trained.model, optimizer) {
                trained.model = larger;
                trained.course = Course::new(evolution, step);
                trained.measure();
            }
        }
        trained
    }
}

impl<M: ChannelMixer> InferenceStep for Trainee<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> StepOutput {
        self.run(batch).2
    }
}

/// Scales gradients down to a global norm of `largest`; returns the norm they had. Nothing is read from the device.
fn clip<M: ChannelMixer>(model: &Rwkv7<M>, grads: &mut GradientsParams, largest: f64) -> Tensor<1> {
    struct Norm<'a> {
        grads: &'a GradientsParams,
        squares: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Norm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                let square = sum_of_squares(grad);
                self.squares = Some(match self.squares.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    struct Scale<'a> {
        grads: &'a mut GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.remove::<D>(param.id) {
                let scaled = grad * self.factor.clone().reshape([1; D]);
                self.grads.register(param.id, scaled);
            }
        }
    }
    let mut norm = Norm {
        grads,
        squares: None,
    };
    model.visit(&mut norm);
    let norm = match norm.squares {
        Some(squares) => squares.sqrt(),
        None => Tensor::zeros([1], &model.head.weight.lazy_device().inner()),
    };
    // A norm that is not a number clips nothing: the loss shows the trouble, and training stops for it.
    let factor = (norm.clone() + 1e-6)
        .recip()
        .mul_scalar(largest)
        .clamp_max(1.0);
    model.visit(&mut Scale { grads, factor });
    norm
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::loader::Batch;
    use burn::{optim::GradientsAccumulator, tensor::Device};
    use rwkv7_core::{Rwkv7Config, Rwkv7Lm, layers::ChannelMix};

    fn trainee(accumulation: usize) -> Trainee<ChannelMix> {
        let config = Rwkv7Config {
            head_size: 8,
            ..Rwkv7Config::new(20, 2, 16)
        };
        let settings = StepSettings {
            accumulation,
            clip_norm: 1.0,
            l2_wrap: true,
            diagnostics: false,
            precision: MatmulPrecision::F32,
        };
        Trainee::new(config.init_seeded(&Device::flex().autodiff(), 3), settings)
    }

    fn batch(rows: std::ops::Range<i32>) -> LmBatch {
        let ids: Vec<i32> = rows
            .clone()
            .flat_map(|r| (0..6).map(move |t| (7 * r + t) % 20))
            .collect();
        let batch = Batch {
            rows: rows.len(),
            targets: ids.iter().map(|id| (id + 1) % 20).collect(),
            inputs: ids,
            mask: None,
        };
        batch.to_device(&Device::flex().autodiff())
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
        let whole = trainee(1);
        let expected = flat(&whole.model, &TrainStep::step(&whole, batch(0..4)).grads);
        let parts = Trainee {
            settings: trainee(2).settings,
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
        let trainee = trainee(1);
        let norm_of = |values: &[f32]| {
            let squares = values.iter().map(|&x| f64::from(x).powi(2));
            squares.sum::<f64>().sqrt()
        };
        for share in [0.1, 10.0] {
            let mut grads = TrainStep::step(&trainee, batch(0..4)).grads;
            let before = flat(&trainee.model, &grads);
            let norm = norm_of(&before);
            let reported = clip(&trainee.model, &mut grads, share * norm);
            let reported = f64::from(reported.into_scalar::<f32>());
            assert!((reported - norm).abs() < 1e-4 * norm, "{reported}, {norm}");
            let after = flat(&trainee.model, &grads);
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
    fn each_step_keeps_its_own_norm() {
        let trainee = trainee(1);
        let step = |rows, norm: f32| {
            let output = TrainStep::step(&trainee, batch(rows)).item;
            let device = Device::flex();
            trainee.norm.set(Tensor::from_floats([norm], &device));
            output
        };
        let (first, second) = (step(0..2, 1.0), step(2..4, 2.0));
        let norms = [first, second].map(|output| output.sync().unwrap().numbers.unwrap().norm);
        assert_eq!(norms, [Some(1.0), Some(2.0)]);
    }
}
