//! `metrics.jsonl`: the metrics of every step and every growth, as one JSON object a line.
//!
//! ```json
//! {"split": "train", "epoch": 1, "step": 17, "loss": 2.31, "learning_rate": 0.004, "gradient_norm": 0.8, …}
//! {"split": "valid", "epoch": 1, "step": 250, "loss": 2.12, "perplexity": 8.33, …}
//! {"split": "growth", "epoch": 1, "step": 250, "loss_before": 2.12, "loss_after": 2.12, …}
//! ```
//!
//! `step` counts optimizer steps from the start of training; with accumulation there is a line for each of its batches.
//! Validation has one line an epoch, the mean over its batches. A run that goes on drops the lines of the steps that it
//! is about to do again.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::atomic;
use burn::train::{
    Interrupter,
    logger::MetricLogger,
    metric::{
        MetricDefinition, MetricId, NumericEntry,
        store::{EpochSummary, MetricsUpdate, Split},
    },
};
use serde_json::{Value, json};

use super::{Stage, TrainError, metrics};

/// The file and the validation losses of the run so far. All clones share them.
#[derive(Clone)]
pub struct MetricsLog(Arc<Shared>);

struct Shared {
    path: PathBuf,
    steps: Steps,
    logged: Mutex<Logged>,
}

struct Logged {
    file: File,
    /// Validation losses by epoch.
    validation: BTreeMap<usize, f64>,
    not_finite: Option<NotFinite>,
}

/// A metric of one step that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// Its name.
    pub what: String,
    /// The optimizer step, from 1.
    pub step: usize,
    /// Its value.
    pub value: f64,
}

/// The steps of a run.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Epochs done before.
    pub done: usize,
    /// Optimizer steps an epoch.
    pub per_epoch: usize,
    /// Batches a step.
    pub accumulation: usize,
}

/// The `split` of a growth's line.
const GROWTH: &str = "growth";

impl MetricsLog {
    /// Goes on with the file at `path`, or starts it.
    pub fn open(path: &Path, steps: Steps) -> io::Result<Self> {
        let mut validation = BTreeMap::new();
        let kept = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        atomic::write(path, |out| {
            for line in kept.lines() {
                // The last line of a killed run may be cut.
                let entry: Value = serde_json::from_str(line).unwrap_or_default();
                let epoch = entry["epoch"].as_u64().map(|epoch| epoch as usize);
                let Some(epoch) = epoch.filter(|&e| steps.done > 0 && e <= steps.done) else {
                    continue;
                };
                if let (Some("valid"), Some(loss)) =
                    (entry["split"].as_str(), entry["loss"].as_f64())
                {
                    validation.insert(epoch, loss);
                }
                writeln!(out, "{line}")?;
            }
            Ok(())
        })?;
        Ok(Self(Arc::new(Shared {
            path: path.to_path_buf(),
            steps,
            logged: Mutex::new(Logged {
                file: File::options().append(true).open(path)?,
                validation,
                not_finite: None,
            }),
        })))
    }

    /// The one of these epochs with the lowest validation loss, the earliest of equals.
    pub fn best(&self, epochs: &[usize]) -> Option<usize> {
        let logged = self.logged();
        let losses = epochs
            .iter()
            .filter_map(|&epoch| Some((*logged.validation.get(&epoch)?, epoch)));
        losses
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, epoch)| epoch)
    }

    /// The first metric that was NaN or infinite.
    pub fn not_finite(&self) -> Option<NotFinite> {
        self.logged().not_finite.clone()
    }

    /// Writes the line of a growth.
    pub fn growth(&self, stage: &Stage) -> Result<(), TrainError> {
        let mut line = json!(stage);
        line["split"] = GROWTH.into();
        line["epoch"] = (stage.from_step / self.0.steps.per_epoch).into();
        line["step"] = stage.from_step.into();
        self.append(&line).map_err(|source| self.error(source))
    }

    /// The growths that the file tells of.
    pub fn growths(&self) -> Result<Vec<Stage>, TrainError> {
        let text = std::fs::read_to_string(&self.0.path).map_err(|source| self.error(source))?;
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let growths = lines.filter(|line: &Value| line["split"] == GROWTH);
        Ok(growths
            .filter_map(|line| serde_json::from_value(line).ok())
            .collect())
    }

    /// The logger for burn-train, which stops the run when the loss is not finite or nothing can be written.
    pub fn logger(&self, stop: Interrupter) -> StepLogger {
        StepLogger {
            log: self.clone(),
            names: HashMap::new(),
            epoch: 0,
            batches: 0,
            stop,
        }
    }

    fn append(&self, line: &Value) -> io::Result<()> {
        self.logged().file.write_all(format!("{line}\n").as_bytes())
    }

    fn error(&self, source: io::Error) -> TrainError {
        TrainError::File {
            path: self.0.path.clone(),
            source,
        }
    }

    fn logged(&self) -> MutexGuard<'_, Logged> {
        self.0.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the metrics of burn-train to the log.
pub struct StepLogger {
    log: MetricsLog,
    names: HashMap<MetricId, String>,
    epoch: usize,
    batches: usize,
    stop: Interrupter,
}

impl StepLogger {
    /// Optimizer steps begun.
    fn step(&self) -> usize {
        let steps = self.log.0.steps;
        self.epoch.saturating_sub(1) * steps.per_epoch + self.batches.div_ceil(steps.accumulation)
    }

    /// Stops the run if the loss or a layer's measurement is not finite; layers come first, the lowest before others.
    fn check(&self, values: &[(&str, &NumericEntry)]) {
        let layer = |name: &str| name.strip_prefix("Layer ")?.split(' ').next()?.parse().ok();
        let wrong = values.iter().filter_map(|(name, value)| {
            let order: usize = match (*name, value) {
                (metrics::LOSS, _) => usize::MAX,
                // The mean over an epoch in which the layer was not there yet.
                (_, NumericEntry::Final(_)) => return None,
                (name, _) => layer(name)?,
            };
            let value = value.current();
            (!value.is_finite()).then_some((order, *name, value))
        });
        let Some((_, name, value)) = wrong.min_by_key(|wrong| wrong.0) else {
            return;
        };
        let mut logged = self.log.logged();
        if logged.not_finite.is_none() {
            logged.not_finite = Some(NotFinite {
                what: name.to_lowercase(),
                step: self.step(),
                value,
            });
            self.stop.stop(Some("a metric is not finite"));
        }
    }
}

impl MetricLogger for StepLogger {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        let values = update.entries_numeric.iter().filter_map(|metric| {
            let name = self.names.get(&metric.entry.metric_id)?;
            Some((name.as_str(), metric.numeric_entry.as_ref()?))
        });
        let values: Vec<(&str, &NumericEntry)> = values.collect();
        let mean = values
            .iter()
            .any(|(_, value)| matches!(value, NumericEntry::Final(_)));
        let train = *split == Split::Train;
        if train && !mean {
            self.batches = if epoch == self.epoch {
                self.batches + 1
            } else {
                1
            };
            self.epoch = epoch;
        }
        let loss = values.iter().find(|(name, _)| *name == metrics::LOSS);
        let loss = loss.map(|(_, value)| value.current());
        self.check(&values);
        if train == mean {
            return;
        }
        if let (true, Some(loss)) = (mean, loss) {
            self.log.logged().validation.insert(epoch, loss);
        }
        let mut line = json!({ "split": split.to_string(), "epoch": epoch, "step": self.step() });
        for (name, value) in values {
            line[name.to_lowercase().replace(' ', "_")] = value.current().into();
        }
        if let Err(error) = self.log.append(&line) {
            let reason = format!("{}: cannot be written: {error}", self.log.0.path.display());
            self.stop.stop(Some(&reason));
        }
    }

    fn read_numeric(
        &mut self,
        name: &str,
        epoch: usize,
        split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        let known = name == metrics::LOSS && *split == Split::Valid;
        let loss = known.then(|| self.log.logged().validation.get(&epoch).copied());
        Ok(loss
            .flatten()
            .map(NumericEntry::Final)
            .into_iter()
            .collect())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names
            .insert(definition.metric_id, definition.name.to_string());
    }

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::train::metric::{
        MetricAttributes, MetricEntry, SerializedEntry, store::NumericMetricUpdate,
    };

    const STEPS: Steps = Steps {
        done: 1,
        per_epoch: 2,
        accumulation: 2,
    };

    fn open(path: &Path, stop: &Interrupter) -> (MetricsLog, StepLogger) {
        let log = MetricsLog::open(path, STEPS).unwrap();
        let mut logger = log.logger(stop.clone());
        logger.log_metric_definition(MetricDefinition {
            metric_id: id(),
            name: Arc::new(metrics::LOSS.into()),
            description: None,
            attributes: MetricAttributes::None,
        });
        (log, logger)
    }

    fn id() -> MetricId {
        MetricId::new(Arc::new("id".into()))
    }

    fn loss(value: NumericEntry) -> MetricsUpdate {
        let entry = MetricEntry::new(id(), SerializedEntry::new(String::new(), String::new()));
        MetricsUpdate::new(
            vec![],
            vec![NumericMetricUpdate::new(entry, Some(value), None)],
        )
    }

    #[test]
    fn a_run_that_goes_on_drops_the_steps_it_does_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = |split: &str, epoch: usize, loss: f64| {
            format!(
                "{}\n",
                json!({"split": split, "epoch": epoch, "step": 2, "loss": loss})
            )
        };
        let old = [
            line("train", 1, 3.0),
            line("valid", 1, 2.5),
            line("train", 2, 2.0),
            "{\"spl".into(),
        ];
        std::fs::write(&path, old.concat()).unwrap();
        let (log, mut logger) = open(&path, &Interrupter::new());
        for value in [2.0, 1.9, 1.8, 1.7] {
            logger.log(loss(NumericEntry::Value(value)), 2, &Split::Train);
        }
        logger.log(loss(NumericEntry::Final(1.85)), 2, &Split::Train);
        logger.log(loss(NumericEntry::Value(9.0)), 2, &Split::Valid);
        logger.log(loss(NumericEntry::Final(2.7)), 2, &Split::Valid);

        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let split = line["split"].as_str().unwrap().to_string();
            (
                split,
                line["step"].as_u64().unwrap(),
                line["loss"].as_f64().unwrap(),
            )
        });
        let expected = [
            ("train", 2, 3.0),
            ("valid", 2, 2.5),
            ("train", 3, 2.0),
            ("train", 3, 1.9),
            ("train", 4, 1.8),
            ("train", 4, 1.7),
            ("valid", 4, 2.7),
        ];
        let expected = expected.map(|(split, step, loss)| (split.to_string(), step, loss));
        assert_eq!(lines.collect::<Vec<_>>(), expected);
        assert_eq!(log.best(&[1, 2, 3]), Some(1));
        assert_eq!(log.best(&[2]), Some(2));
    }

    #[test]
    fn a_loss_that_is_no_number_stops_training_and_names_the_step() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Interrupter::new();
        let (log, mut logger) = open(&folder.path().join("metrics.jsonl"), &stop);
        for value in [1.0, 1.0, f64::NAN, f64::NAN] {
            logger.log(loss(NumericEntry::Value(value)), 2, &Split::Train);
        }
        let NotFinite { what, step, value } = log.not_finite().unwrap();
        assert!(stop.should_stop() && what == "loss" && step == 4 && value.is_nan());
    }

    #[test]
    fn a_layers_measurement_that_is_no_number_is_named_before_the_loss() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Interrupter::new();
        let (log, logger) = open(&folder.path().join("metrics.jsonl"), &stop);
        let (fine, wrong) = (NumericEntry::Value(1.0), NumericEntry::Value(f64::INFINITY));
        logger.check(&[
            (metrics::LOSS, &wrong),
            ("Layer 0 largest u", &fine),
            ("Layer 10 largest u", &wrong),
            ("Layer 2 largest u", &wrong),
        ]);
        assert!(stop.should_stop());
        assert_eq!(log.not_finite().unwrap().what, "layer 2 largest u");
    }
}
