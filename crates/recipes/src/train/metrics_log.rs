//! `metrics.jsonl`: the metrics of every step and every growth, as one JSON object a line.
//!
//! ```json
//! {"split": "train", "epoch": 1, "step": 17, "loss": 2.31, "learning_rate": 0.004, "gradient_norm": 0.8, …}
//! {"split": "valid", "epoch": 1, "step": 250, "loss": 2.12, "perplexity": 8.33, …}
//! {"split": "growth", "epoch": 1, "step": 250, "loss_before": 2.12, "loss_after": 2.12, …}
//! ```
//!
//! `step` counts optimizer steps from the start of training. With accumulation a line has the mean over the step's batches.
//! Validation has one line an epoch, the mean over its batches. A run that goes on drops the lines of the steps that it
//! is about to do again.

mod kept;
mod step_mean;

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

use super::{
    Stage, TrainError,
    manifest::{Extent, Sum},
    metrics,
};
use kept::Kept;
use step_mean::StepMean;

pub use kept::Past;

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
    /// What the file holds.
    sum: Sum,
    /// Lines of growths that wait for the line of the step before, which another thread writes.
    growths: Vec<(usize, Value)>,
    /// Validation losses by epoch.
    validation: BTreeMap<usize, f64>,
    /// What the file held at the end of each epoch.
    extents: BTreeMap<usize, Extent>,
    not_finite: Option<NotFinite>,
}

impl Logged {
    fn append(&mut self, line: &Value) -> io::Result<()> {
        let line = format!("{line}\n");
        self.file.write_all(line.as_bytes())?;
        self.sum.add(line.as_bytes());
        Ok(())
    }

    /// The growths after `step` steps, whose own line is there now.
    fn append_growths(&mut self, step: usize) -> io::Result<()> {
        let (due, later) = std::mem::take(&mut self.growths)
            .into_iter()
            .partition(|(after, _)| *after <= step);
        self.growths = later;
        let due: Vec<(usize, Value)> = due;
        due.iter().try_for_each(|(_, line)| self.append(line))
    }
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
    pub fn open(path: &Path, steps: Steps, past: Past) -> io::Result<Self> {
        let kept = Kept::read(path, steps, past)?;
        atomic::write(path, |out| out.write_all(&kept.text))?;
        let mut sum = Sum::default();
        sum.add(&kept.text);
        Ok(Self(Arc::new(Shared {
            path: path.to_path_buf(),
            steps,
            logged: Mutex::new(Logged {
                file: File::options().append(true).open(path)?,
                sum,
                growths: Vec::new(),
                validation: kept.validation,
                extents: BTreeMap::new(),
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

    /// The validation loss of an epoch, nats.
    pub fn loss(&self, epoch: usize) -> Option<f64> {
        self.logged().validation.get(&epoch).copied()
    }

    /// What the file held at the end of an epoch that this process trained.
    pub fn extent(&self, epoch: usize) -> Option<Extent> {
        self.logged().extents.get(&epoch).copied()
    }

    /// The first metric that was NaN or infinite.
    pub fn not_finite(&self) -> Option<NotFinite> {
        self.logged().not_finite.clone()
    }

    /// Writes the line of a growth, after that of the step before it.
    pub fn growth(&self, stage: &Stage) -> Result<(), TrainError> {
        let mut line = json!(stage);
        line["split"] = GROWTH.into();
        line["epoch"] = (stage.from_step / self.0.steps.per_epoch).into();
        line["step"] = stage.from_step.into();
        let mut logged = self.logged();
        match stage.from_step {
            0 => logged.append(&line).map_err(|source| self.error(source)),
            step => {
                logged.growths.push((step, line));
                Ok(())
            }
        }
    }

    /// The growths that the file tells of.
    pub fn growths(&self) -> Result<Vec<Stage>, TrainError> {
        let bytes = std::fs::read(&self.0.path).map_err(|source| self.error(source))?;
        let lines = bytes
            .split(|&byte| byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok());
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
            mean: StepMean::default(),
            stop,
        }
    }

    /// Writes the line of a step, or of the end of the epoch.
    fn write(&self, line: &Value, step: usize, epoch_ends: Option<usize>) -> io::Result<()> {
        let mut logged = self.logged();
        logged.append(line)?;
        logged.append_growths(step)?;
        if let Some(epoch) = epoch_ends {
            // The checkpoint that follows says what the file holds.
            logged.file.sync_data()?;
            let extent = logged.sum.extent();
            logged.extents.insert(epoch, extent);
        }
        Ok(())
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
    /// Of the batches of the step so far.
    mean: StepMean,
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

    /// Writes a line with these values.
    fn write(&self, split: &Split, epoch: usize, values: &BTreeMap<String, f64>) {
        let step = self.step();
        let mut line = json!({ "split": split.to_string(), "epoch": epoch, "step": step });
        for (name, value) in values {
            line[name.to_lowercase().replace(' ', "_")] = (*value).into();
        }
        let ends = (*split == Split::Valid).then_some(epoch);
        if let Err(error) = self.log.write(&line, step, ends) {
            let reason = format!("{}: cannot be written: {error}", self.log.0.path.display());
            self.stop.stop(Some(&reason));
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
        let is_mean = values
            .iter()
            .any(|(_, value)| matches!(value, NumericEntry::Final(_)));
        let train = *split == Split::Train;
        if train && !is_mean {
            if epoch != self.epoch {
                self.batches = 0;
                self.mean = StepMean::default();
            }
            self.batches += 1;
            self.epoch = epoch;
        }
        self.check(&values);
        match (train, is_mean) {
            (true, false) => {
                self.mean.add(&values);
                if self.batches.is_multiple_of(self.log.0.steps.accumulation) {
                    let values = std::mem::take(&mut self.mean).values();
                    self.write(split, epoch, &values);
                }
            }
            (false, true) => {
                let values = values.into_iter();
                let values: BTreeMap<String, f64> = values
                    .map(|(name, value)| (name.to_string(), value.current()))
                    .collect();
                if let Some(loss) = values.get(metrics::LOSS) {
                    self.log.logged().validation.insert(epoch, *loss);
                }
                self.write(split, epoch, &values);
            }
            _ => {}
        }
    }

    fn read_numeric(
        &mut self,
        name: &str,
        epoch: usize,
        split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        let known = name == metrics::LOSS && *split == Split::Valid;
        let loss = known.then(|| self.log.loss(epoch));
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
        let log = MetricsLog::open(path, STEPS, Past::default()).unwrap();
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
        for (aggregated_value, count) in [(2.0, 1), (1.4, 3), (1.8, 2), (1.6, 2)] {
            let entry = NumericEntry::Aggregated {
                aggregated_value,
                count,
            };
            logger.log(loss(entry), 2, &Split::Train);
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
            ("train", 3, 1.55),
            ("train", 4, 1.7),
            ("valid", 4, 2.7),
        ];
        let lines: Vec<(String, u64, f64)> = lines.collect();
        assert_eq!(lines.len(), expected.len());
        for ((split, step, loss), expected) in lines.iter().zip(expected) {
            assert_eq!((split.as_str(), *step), (expected.0, expected.1));
            assert!((loss - expected.2).abs() < 1e-12, "{loss} {expected:?}");
        }
        assert_eq!(log.best(&[1, 2, 3]), Some(1));
        assert_eq!(log.best(&[2]), Some(2));
    }

    /// Two threads write: the one that trains and the one that reads the metrics.
    #[test]
    fn a_growth_stands_between_its_step_and_the_validation_of_the_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let (log, mut logger) = open(&path, &Interrupter::new());
        log.growth(&Stage {
            from_step: 4,
            parameters: 9,
            flops_per_token: 1.0,
            loss_before: None,
            loss_after: None,
            seconds: None,
        })
        .unwrap();
        for _ in 0..4 {
            logger.log(loss(NumericEntry::Value(1.0)), 2, &Split::Train);
        }
        logger.log(loss(NumericEntry::Final(1.0)), 2, &Split::Valid);
        let text = std::fs::read_to_string(&path).unwrap();
        let splits: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["split"].take())
            .collect();
        assert_eq!(splits, ["train", "train", "growth", "valid"]);
        assert_eq!(log.growths().unwrap()[0].parameters, 9);
        assert_eq!(log.extent(2), Some(Extent::of(&path).unwrap()));
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
