//! The results of a step, which stay on the device until a metric asks for them.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use burn::{
    backend::ExecutionError,
    tensor::{Tensor, Transaction},
    train::metric::ItemLazy,
};

/// Results of a step for the metrics. The tensors are read when burn-train's metric thread asks for them.
pub struct StepOutput {
    pub(super) loss: Tensor<1>,
    pub(super) correct: Tensor<1>,
    pub(super) norm: NormCell,
    /// When the step began.
    pub(super) started: Instant,
    /// Targets that counted.
    pub counted: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Mean loss in nats, share of counted targets that had the largest logit, norm of the gradients.
    pub numbers: Option<StepNumbers>,
    /// The measurements of each layer.
    pub layers: Vec<Vec<f64>>,
}

/// Results of a step as numbers.
#[derive(Clone, Copy, Debug)]
pub struct StepNumbers {
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
        self.numbers = Some(StepNumbers {
            loss: values[0],
            accuracy: values[1] / self.counted.max(1) as f64,
            norm: values.get(2).copied(),
        });
        Ok(self)
    }
}

/// Where an optimizer step leaves the gradients' global norm. Every step has a cell of its own, because burn-train's
/// metric thread reads the results of a step while the next ones run.
#[derive(Clone, Debug, Default)]
pub(super) struct NormSlot(Arc<Mutex<NormCell>>);

/// The gradients' global norm of one step, `[1]`; empty until its optimizer step.
pub(super) type NormCell = Arc<OnceLock<Tensor<1>>>;

impl NormSlot {
    fn cell(&self) -> MutexGuard<'_, NormCell> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cell of the step that begins now.
    pub fn next(&self) -> NormCell {
        let cell = NormCell::default();
        *self.cell() = cell.clone();
        cell
    }

    /// Fills the cell of the newest step.
    pub fn set(&self, norm: Tensor<1>) {
        self.cell().get_or_init(|| norm);
    }
}
