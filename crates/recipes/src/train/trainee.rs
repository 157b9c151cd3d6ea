//! The model as burn-train sees it: one step of training, one of validation, one of the optimizer.

use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    backend::ExecutionError,
    module::{Module, ModuleVisitor, Param},
    optim::{
        GradientsParams, ModuleOptimizer, lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::Tensor,
    train::{InferenceStep, TrainOutput, TrainStep, metric::ItemLazy},
};
use rwkv7_core::{Rwkv7, layers::SecondHalf, loss};

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
}

/// A model in training.
#[derive(Module, Debug)]
pub struct Trainee<M: SecondHalf> {
    /// The model.
    pub model: Rwkv7<M>,
    /// How it is trained.
    #[module(skip)]
    pub settings: StepSettings,
    /// Where the optimizer step leaves the gradients' norm for the metrics.
    #[module(skip)]
    pub norm: NormSlot,
}

/// The gradients' global norm of the newest optimizer step, `[1]`.
#[derive(Clone, Debug, Default)]
pub struct NormSlot(Arc<Mutex<Option<Tensor<1>>>>);

impl NormSlot {
    fn set(&self, norm: Tensor<1>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(norm);
    }

    fn get(&self) -> Option<Tensor<1>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Results of a step for the metrics. The tensors are read when burn-train's metric thread asks for them.
pub struct StepOutput {
    loss: Tensor<1>,
    correct: Tensor<1>,
    norm: NormSlot,
    /// Targets that counted.
    pub counted: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Mean loss in nats, share of counted targets that had the largest logit, norm of the gradients.
    pub numbers: Option<Numbers>,
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
        let read = |x: Tensor<1>| -> Result<f64, ExecutionError> {
            let data = x.try_into_data()?;
            Ok(data.iter::<f64>().next().unwrap_or(f64::NAN))
        };
        self.numbers = Some(Numbers {
            loss: read(self.loss.clone())?,
            accuracy: read(self.correct.clone())? / self.counted.max(1) as f64,
            norm: self.norm.get().map(read).transpose()?,
        });
        Ok(self)
    }
}

impl<M: SecondHalf> Trainee<M> {
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
            norm: NormSlot::default(),
            counted: batch.counted,
            tokens: rows * time,
            numbers: None,
        };
        (loss, logits, output)
    }
}

impl<M: SecondHalf> TrainStep for Trainee<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> TrainOutput<StepOutput> {
        let (mut loss, logits, output) = self.run(batch);
        if self.settings.l2_wrap {
            loss = loss + loss::l2_wrap(logits);
        }
        let share = loss / self.settings.accumulation as f64;
        let output = StepOutput {
            norm: self.norm.clone(),
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
        optimizer.step(rate, self, grads)
    }
}

impl<M: SecondHalf> InferenceStep for Trainee<M> {
    type Input = LmBatch;
    type Output = StepOutput;

    fn step(&self, batch: LmBatch) -> StepOutput {
        self.run(batch).2
    }
}

/// Scales gradients down to a global norm of `largest`; returns the norm they had. Nothing is read from the device.
fn clip<M: SecondHalf>(model: &Rwkv7<M>, grads: &mut GradientsParams, largest: f64) -> Tensor<1> {
    struct Norm<'a> {
        grads: &'a GradientsParams,
        squares: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Norm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                let square = grad.square().sum();
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
