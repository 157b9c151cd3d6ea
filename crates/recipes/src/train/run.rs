//! One run: prepared, built, launched, reported.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use burn::{
    module::Module,
    tensor::{Device, FloatDType},
    train::{Interrupter, Learner, SupervisedTraining, TrainingError, metric::LearningRateMetric},
};
use rwkv7_core::{
    MatmulPrecision, Rwkv7, Rwkv7Config,
    checkpoint::{self, Checkpoint},
    layers::ChannelMixer,
    tokenizer::Tokenizer,
};
use scaling::Growable;
use serde_json::json;
use zoo::run_folder;

use super::{
    LmMetric, LmStep, Report, StepSettings, TrainError,
    checkpoints::{self, Checkpoints, NewestAndBest},
    data::RunData,
    growth::{Grower, Stages},
    identity::Identity,
    metrics_log::{MetricsLog, NotFinite, Past, Steps},
    progress::PlainProgress,
    record::Shapes,
    run_dir::{RunDir, file_error},
    schedule,
    verify::{Position, Verifier},
};
use crate::{
    atomic,
    data::loader::Loader,
    recipe::{Recipe, RecipeError},
};

/// A run of a recipe with a model of this kind of channel mixer.
pub struct Run<'a, S: Growable> {
    recipe: &'a Recipe,
    dir: RunDir,
    /// Epochs done before.
    done: usize,
    data: RunData,
    /// The model that the run begins or goes on with.
    config: Rwkv7Config<S>,
    growth: Arc<Grower<S>>,
    log: MetricsLog,
    checkpoints: Checkpoints,
    identity: Identity,
    /// With autodiff.
    device: Device,
    stop: Interrupter,
    /// Whether lines take the place of the dashboard.
    plain: bool,
}

impl<'a, S: Growable> Run<'a, S> {
    /// Checks model, growths and data, then makes the files of the run in its folder.
    pub fn prepare(
        recipe: &'a Recipe,
        config: Rwkv7Config<S>,
        starts_from_model: bool,
        tokenizer: Box<dyn Tokenizer>,
        dir: RunDir,
        device: &Device,
        plain: bool,
    ) -> Result<Self, TrainError> {
        check_diagnostics::<S>(recipe)?;
        let stages = Stages::new(recipe, config.clone(), device)?;
        let data = RunData::new(recipe, tokenizer)?;
        let before = match dir.resumes() {
            true => Identity::read(&dir.identity())?,
            false => None,
        };
        if let Some(before) = &before {
            before.check(&dir.identity(), &data.fingerprints)?;
        }
        // A run of an older version has none, and its checkpoints have no manifests.
        let old = before.is_none();
        let identity = before.unwrap_or_else(|| Identity::new(recipe, &data.fingerprints));
        let position = match dir.resumes() {
            false => Position::default(),
            true => verifier(recipe, &dir.checkpoints(), &identity, !old, &|epoch| {
                stages.shapes(epoch * recipe.steps_per_epoch)
            })
            .newest()?,
        };
        let done = position.epoch;
        // A run that goes on has the size that it had.
        let config = match done {
            0 => config,
            _ => stages.config(done * recipe.steps_per_epoch).clone(),
        };
        let json = checkpoint::config_json(&config);
        if done > 0 && recipe.grow.is_empty() {
            dir.check_model(&json)?;
        }
        dir.begin(recipe, &json, starts_from_model)?;
        let steps = Steps {
            done,
            per_epoch: recipe.steps_per_epoch,
            accumulation: recipe.accumulation,
        };
        let past = Past {
            extent: position.metrics,
            losses: position.losses,
        };
        let metrics = dir.metrics();
        let log = MetricsLog::open(&metrics, steps, past).map_err(|e| file_error(&metrics, e))?;
        let checkpoints = Checkpoints::new(
            &dir.checkpoints(),
            identity.fingerprint(),
            (recipe.steps_per_epoch, recipe.steps),
            log.clone(),
            position.whole,
        );
        for epoch in position.without_manifest {
            let folder = dir.checkpoints().join(epoch.to_string());
            checkpoints
                .describe(epoch, &folder)
                .map_err(|error| file_error(&folder, error))?;
        }
        if old {
            identity.write(&dir.identity())?;
        }
        let stop = Interrupter::new();
        let growth = Grower {
            stages,
            seed: recipe.seed,
            precision: recipe.matmul_precision,
            validation: Arc::new(Loader::validation(
                data.validation.clone(),
                recipe.batch_size,
                device,
            )),
            dir: dir.clone(),
            log: log.clone(),
            plain,
            stop: stop.clone(),
            failure: Mutex::new(None),
        };
        Ok(Self {
            recipe,
            dir,
            done,
            data,
            config,
            growth: Arc::new(growth),
            log,
            checkpoints,
            identity,
            device: device.clone().autodiff(),
            stop,
            plain,
        })
    }

    /// The model with its initial values or those of `start`, grown if that is due, with optimizer and schedule.
    pub fn build(
        &self,
        start: Option<Checkpoint>,
    ) -> Result<Learner<LmStep<S::Layer>>, TrainError> {
        let recipe = self.recipe;
        let mut optimizer = recipe.optimizer.init();
        let model = match start {
            Some(start) => start.into_model(&self.config, &self.device, FloatDType::F32)?,
            None => self.config.init_seeded(&self.device, recipe.seed),
        };
        let grown = match self.done {
            0 => self.growth.grow(0, &model, &mut optimizer)?,
            _ => None,
        };
        let settings = StepSettings {
            accumulation: recipe.accumulation,
            clip_norm: recipe.clip_norm,
            l2_wrap: recipe.l2_wrap,
            diagnostics: recipe.diagnostics,
            precision: recipe.matmul_precision,
        };
        let step = LmStep::new(grown.unwrap_or(model))
            .with_settings(settings)
            .with_growth(self.growth.clone(), self.done * recipe.steps_per_epoch);
        let (epochs, out) = (recipe.epochs(), self.dir.path().display());
        match self.done < epochs {
            true => log::info!(
                "{} parameters, epochs {} to {epochs} of {} steps, output in {out}",
                step.num_params(),
                self.done + 1,
                recipe.steps_per_epoch,
            ),
            false => log::info!("all {epochs} epochs are done, output in {out}"),
        }
        Ok(Learner::new(step, optimizer, schedule::schedule(recipe)))
    }

    /// Trains to the last epoch; returns the model of that epoch, without autodiff, and the seconds.
    pub fn launch(
        &self,
        learner: Learner<LmStep<S::Layer>>,
    ) -> Result<(Rwkv7<S::Layer>, f64), TrainError> {
        let mut training = self.training();
        if self.recipe.diagnostics {
            for layer in 0..self.growth.stages.last().n_layer {
                for (index, name) in S::Layer::MEASUREMENTS.iter().enumerate() {
                    let metric = LmMetric::measurement(layer, index, name);
                    training = training
                        .metric_train_numeric(metric.clone())
                        .metric_valid_numeric(metric);
                }
            }
        }
        if self.recipe.accumulation > 1 {
            training = training.grads_accumulation(self.recipe.accumulation);
        }
        if self.done > 0 {
            training = training.checkpoint(self.done);
        }
        if self.plain {
            training = training.renderer(Box::new(PlainProgress::new(self.done + 1)));
        }
        let started = Instant::now();
        let result = training.launch(learner);
        let seconds = started.elapsed().as_secs_f64();
        self.check_end(result.error)?;
        Ok((result.model.model, seconds))
    }

    /// burn-train's training with the data, metrics and checkpoints that every run has.
    fn training(&self) -> SupervisedTraining<LmStep<S::Layer>> {
        let recipe = self.recipe;
        let (data, rows) = (&self.data, recipe.batch_size);
        let epoch = recipe.steps_per_epoch * recipe.accumulation;
        let training =
            Loader::training(data.training.clone(), rows, epoch, self.done, &self.device);
        let validation = Loader::validation(data.validation.clone(), rows, &self.device);
        let [model, optimizer, schedule] = self.checkpoints.parts();
        SupervisedTraining::new(self.dir.path(), Arc::new(training), Arc::new(validation))
            .with_interrupter(self.stop.clone())
            .with_application_logger(None)
            .with_metric_logger(self.log.logger(self.stop.clone()))
            .metrics((
                LmMetric::loss(),
                LmMetric::perplexity(),
                LmMetric::accuracy(),
            ))
            .metric_train_numeric(LearningRateMetric::new())
            .metric_train_numeric(LmMetric::gradient_norm())
            .metric_train_numeric(LmMetric::speed())
            .with_custom_checkpointers(model, optimizer, schedule)
            .with_checkpointing_strategy(NewestAndBest {
                checkpoints: self.checkpoints.clone(),
                keep: recipe.keep_checkpoints,
                growths: self.growth_epochs(),
            })
            .num_epochs(recipe.epochs())
    }

    /// Why training ended before its last epoch, if it did.
    fn check_end(&self, error: Option<Arc<TrainingError>>) -> Result<(), TrainError> {
        if let Some(error) = self.growth.failure() {
            return Err(error);
        }
        if let Some(source) = error {
            return Err(TrainError::Failed { source });
        }
        if let Some(NotFinite { what, step, value }) = self.log.not_finite() {
            return Err(TrainError::NotFinite { what, step, value });
        }
        // burn-train's own answer is no help: its dashboard takes back that it was stopped.
        let epochs = self.recipe.epochs();
        let whole = self.done >= epochs || self.log.best(&[epochs]).is_some();
        match self.stop.get_message() {
            None if whole => Ok(()),
            None => Err(TrainError::Stopped {
                reason: "before the end of its last epoch".into(),
            }),
            Some(reason) => Err(TrainError::Stopped { reason }),
        }
    }

    /// Writes the model of the best epoch, evaluates it and writes the report; `last` is the model of the last epoch.
    pub fn report(&self, last: Rwkv7<S::Layer>, seconds: f64) -> Result<Report, TrainError> {
        let device = self.device.clone().inner();
        let config = self.growth.stages.last();
        let epoch = self.best_epoch();
        let model = if epoch == self.recipe.epochs() {
            last.with_matmul_precision(MatmulPrecision::F32)
        } else {
            let file = run_folder::model_file(&self.dir.checkpoints(), epoch);
            Checkpoint::open(&file)?.into_model(config, &device, FloatDType::F32)?
        };
        let file = self.dir.model();
        atomic::point();
        checkpoint::save(&file, config, &model, checkpoint::Format::Official, None)?;
        atomic::point();
        let (text, reverse) = self.data.evaluate(self.recipe, &model, &device)?;
        let report = Report {
            model: file,
            epoch,
            parameters: config.num_params(),
            stages: self.growth.report()?,
            training_seconds: seconds,
            text,
            reverse,
        };
        self.dir.write_report(&json!(report))?;
        Ok(report)
    }

    /// The epoch with the lowest validation loss among the checkpoints with a model of the last size. Log lines name damaged ones, which
    /// are passed over. The model of the last epoch is in memory.
    fn best_epoch(&self) -> usize {
        let recipe = self.recipe;
        let epochs = recipe.epochs();
        let first = checkpoints::first_of_size(&self.growth_epochs(), epochs);
        let mut kept = self.checkpoints.epochs();
        kept.retain(|epoch| *epoch >= first);
        let shapes = |_: usize| Shapes::of_config(self.growth.stages.last());
        let folder = self.dir.checkpoints();
        let verifier = verifier(recipe, &folder, &self.identity, true, &shapes);
        while let Some(best) = self.log.best(&kept).filter(|best| *best != epochs) {
            match verifier.check(best) {
                Ok(_) => return best,
                Err(damaged) => {
                    log::warn!("{damaged}; the best model is looked for among the other epochs");
                    kept.retain(|epoch| *epoch != best);
                }
            }
        }
        epochs
    }

    /// Epochs after which the model grows.
    fn growth_epochs(&self) -> Vec<usize> {
        let growths = self.recipe.grow.iter();
        growths
            .map(|growth| growth.after / self.recipe.steps_per_epoch)
            .collect()
    }
}

fn verifier<'a>(
    recipe: &Recipe,
    folder: &'a Path,
    identity: &Identity,
    manifests: bool,
    shapes: &'a dyn Fn(usize) -> Shapes,
) -> Verifier<'a> {
    Verifier {
        folder,
        run: identity.fingerprint(),
        manifests,
        epochs: recipe.epochs(),
        per_epoch: recipe.steps_per_epoch,
        steps: recipe.steps,
        grows: !recipe.grow.is_empty(),
        shapes,
    }
}

/// Refuses `diagnostics` where the layers measure nothing.
fn check_diagnostics<S: Growable>(recipe: &Recipe) -> Result<(), RecipeError> {
    if recipe.diagnostics && S::Layer::MEASUREMENTS.is_empty() {
        return Err(RecipeError::Value {
            key: "diagnostics",
            found: "true".into(),
            expected: "false for this architecture, whose layers measure nothing of themselves",
        });
    }
    Ok(())
}
