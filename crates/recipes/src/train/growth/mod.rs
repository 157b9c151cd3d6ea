//! A model that grows while it is trained.

mod frozen;
mod stages;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use burn::{
    data::dataloader::DataLoader,
    module::Module,
    optim::{ModuleOptimizer, OptimizerRecord},
    train::Interrupter,
};
use rwkv7_core::{MatmulPrecision, Rwkv7, checkpoint, layers::ChannelMixer, loss};
use scaling::{Growable, Method, Plan, grow_model, grow_optimizer};
use serde::{Deserialize, Serialize};

use super::{TrainError, metrics_log::MetricsLog, run_dir::RunDir};
use crate::data::{DataError, batch::LmBatch};

pub use frozen::FrozenEntries;
pub use stages::Stages;

/// A part of a run in which the model keeps its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Optimizer steps before it.
    pub from_step: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Floating-point operations of training for each token.
    pub flops_per_token: f64,
    /// Validation loss before the growth that began it, nats.
    pub loss_before: Option<f64>,
    /// Validation loss right after that growth, nats.
    pub loss_after: Option<f64>,
    /// Seconds that growth and comparison took.
    pub seconds: Option<f64>,
}

/// Growth of a model between the steps of its training.
pub trait GrowthHook<M: ChannelMixer>: Send + Sync {
    /// The model that takes this one's place after `step` steps, if one does; the optimizer becomes its.
    fn after(
        &self,
        step: usize,
        model: &Rwkv7<M>,
        optimizer: &mut ModuleOptimizer,
    ) -> Option<Rwkv7<M>>;

    /// The entries that existed before the last growth, if they train at their own rate.
    fn frozen(&self, step: usize, model: &Rwkv7<M>) -> Option<FrozenEntries>;
}

/// Grows the model of a run by its [`Stages`], and logs every growth.
pub struct Grower<S: Growable> {
    /// The sizes.
    pub stages: Stages<S>,
    /// Seed of the new entries' values.
    pub seed: u64,
    /// How the layers multiply.
    pub precision: MatmulPrecision,
    /// Compares the models before and after.
    pub validation: Arc<dyn DataLoader<LmBatch>>,
    /// The run's folder, whose `config.json` changes.
    pub dir: RunDir,
    /// Gets a line about every growth.
    pub log: MetricsLog,
    /// Whether log lines may be shown: no dashboard is.
    pub plain: bool,
    /// Stops the run if the model cannot grow.
    pub stop: Interrupter,
    /// The reason then.
    pub failure: Mutex<Option<TrainError>>,
}

impl<S: Growable> Grower<S> {
    /// The model after the growth that is due after `step` steps, if one is.
    pub fn grow(
        &self,
        step: usize,
        model: &Rwkv7<S::Layer>,
        optimizer: &mut ModuleOptimizer,
    ) -> Result<Option<Rwkv7<S::Layer>>, TrainError> {
        let Some((due, stage)) = self.stages.due(step) else {
            return Ok(None);
        };
        let started = Instant::now();
        let plan = &due.plan;
        let large = grow_model(model, plan, &model.head.weight.device(), self.seed)?;
        let state = match due.growth.optimizer {
            true => grow_optimizer(plan, model, &large, optimizer.to_record())?,
            false => OptimizerRecord::default(),
        };
        let (before, after) = (self.loss(&model.valid())?, self.loss(&large.valid())?);
        self.check(step, plan, model, (before, after))?;
        *optimizer = optimizer.clone().load_record(state);
        let stage = Stage {
            loss_before: Some(before),
            loss_after: Some(after),
            seconds: Some(started.elapsed().as_secs_f64()),
            ..stage
        };
        if self.plain {
            log::info!(
                "grown after {step} steps: {} parameters, validation loss {before:.4} before and {after:.4} after",
                stage.parameters
            );
        }
        self.log.growth(&stage)?;
        self.dir.write_config(&checkpoint::config_json(&plan.to))?;
        Ok(Some(large))
    }

    /// Refuses a growth that should lose nothing and did; the model before it is saved.
    fn check(
        &self,
        step: usize,
        plan: &Plan<S>,
        model: &Rwkv7<S::Layer>,
        (before, after): (f64, f64),
    ) -> Result<(), TrainError> {
        let lossless = plan.method == Method::Lossless && plan.obstacle.is_none();
        if !lossless || is_same(self.precision, before, after) {
            return Ok(());
        }
        let path = self.dir.path().join("before-growth.safetensors");
        let model = model.valid().with_matmul_precision(MatmulPrecision::F32);
        checkpoint::save(
            &path,
            &plan.from,
            &model,
            checkpoint::Format::Official,
            None,
        )?;
        Err(TrainError::GrowthChanges {
            step,
            before,
            after,
            path,
        })
    }

    /// The error that a growth ended with.
    pub fn failure(&self) -> Option<TrainError> {
        self.slot().take()
    }

    /// All stages, as measured.
    pub fn report(&self) -> Result<Vec<Stage>, TrainError> {
        let logged = self.log.growths()?;
        let measured = |stage: Stage| {
            let mut lines = logged.iter().rev();
            let found = lines.find(|line| line.from_step == stage.from_step);
            found.cloned().unwrap_or(stage)
        };
        Ok(self.stages.all().map(measured).collect())
    }

    fn slot(&self) -> MutexGuard<'_, Option<TrainError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mean validation loss, nats.
    fn loss(&self, model: &Rwkv7<S::Layer>) -> Result<f64, DataError> {
        let device = model.head.weight.device();
        let (mut sum, mut counted) = (0.0, 0);
        for batch in self.validation.to_device(&device).iter() {
            let batch = batch?;
            let (logits, _) = model.forward(batch.inputs, None);
            let loss = loss::cross_entropy(logits, batch.targets, batch.mask);
            sum += f64::from(loss.into_scalar::<f32>()) * batch.counted as f64;
            counted += batch.counted;
        }
        Ok(sum / counted.max(1) as f64)
    }
}

/// Whether two losses are those of the same function, but for rounding. A loss that is no number is none.
fn is_same(precision: MatmulPrecision, before: f64, after: f64) -> bool {
    let tolerance = match precision {
        MatmulPrecision::F32 => 1e-4,
        MatmulPrecision::Bf16 => 5e-2,
    };
    (after - before).abs() <= tolerance * before.abs().max(1.0)
}

impl<S: Growable> GrowthHook<S::Layer> for Grower<S> {
    fn after(
        &self,
        step: usize,
        model: &Rwkv7<S::Layer>,
        optimizer: &mut ModuleOptimizer,
    ) -> Option<Rwkv7<S::Layer>> {
        match self.grow(step, model, optimizer) {
            Ok(large) => large,
            Err(error) => {
                self.stop.stop(Some("the model cannot grow"));
                *self.slot() = Some(error);
                None
            }
        }
    }

    fn frozen(&self, step: usize, model: &Rwkv7<S::Layer>) -> Option<FrozenEntries> {
        self.stages.frozen(step, model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_loss_is_told_from_rounding() {
        for (precision, before, after, same) in [
            (MatmulPrecision::F32, 6.225, 6.2251, true),
            (MatmulPrecision::F32, 2.37783, 2.37894, false),
            (MatmulPrecision::F32, 6.225, 6.102, false),
            (MatmulPrecision::F32, 6.225, 6.348, false),
            (MatmulPrecision::Bf16, 0.8, 0.81, true),
            (MatmulPrecision::Bf16, 0.8, 1.2, false),
            (MatmulPrecision::F32, 6.225, f64::NAN, false),
        ] {
            assert_eq!(is_same(precision, before, after), same, "{before} {after}");
        }
    }
}
