//! `metrics.jsonl`: what happened at every step, as one JSON object a line.
//!
//! ```json
//! {"split": "train", "epoch": 1, "step": 17, "loss": 2.31, "learning_rate": 0.004, "gradient_norm": 0.8, …}
//! {"split": "valid", "epoch": 1, "step": 250, "loss": 2.12, "perplexity": 8.33, …}
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

use burn::train::{
    Interrupter,
    logger::MetricLogger,
    metric::{
        MetricDefinition, MetricId, NumericEntry,
        store::{EpochSummary, MetricsUpdate, Split},
    },
};
use serde_json::Value;
use crate::atomic;

use super::metrics;

/// How a run has gone so far; all clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Past>>);

#[derive(Debug, Default)]
struct Past {
    validation: BTreeMap<usize, f64>,
    not_finite: Option<NotFinite>,
}

impl History {
    /// The one of these epochs with the lowest validation loss, the earliest of equals.
    pub fn best(&self, epochs: &[usize]) -> Option<usize> {
        let past = self.past();
        let losses = epochs
            .iter()
            .filter_map(|&epoch| Some((*past.validation.get(&epoch)?, epoch)));
        losses
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, epoch)| epoch)
    }

    /// The first number that was none.
    pub fn not_finite(&self) -> Option<NotFinite> {
        self.past().not_finite.clone()
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number of a step that is infinite or none.
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

/// Writes `metrics.jsonl`, and stops training when the loss is no number or nothing can be written.
pub struct Journal {
    path: PathBuf,
    file: File,
    names: HashMap<MetricId, String>,
    steps: Steps,
    epoch: usize,
    batches: usize,
    history: History,
    stop: Interrupter,
}

impl Journal {
    /// Goes on with the file at `path`, or starts it.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn open(path: &Path, steps: Steps, stop: Interrupter) -> io::Result<Self> {
        let history = History::default();
        let kept = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        atomic::write(path, |out| {
            for line in kept.lines() {
                // The last line of a killed run may be cut.
                let Ok(entry) = serde_json::from_str::<Value>(line) else {
                    continue;
                };
                let Some(epoch) = entry["epoch"].as_u64().map(|epoch| epoch as usize) else {
                    continue;
                };
                if epoch > steps.done || steps.done == 0 {
                    continue;
                }
                if let (Some("valid"), Some(loss)) =
                    (entry["split"].as_str(), entry["loss"].as_f64())
                {
                    history.past().validation.insert(epoch, loss);
                }
                writeln!(out, "{line}")?;
            }
            Ok(())
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            file: File::options().append(true).open(path)?,
            names: HashMap::new(),
            steps,
            epoch: 0,
            batches: 0,
            history,
            stop,
        })
    }

    /// What the journal says.
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Optimizer steps begun.
    fn step(&self) -> usize {
        self.epoch.saturating_sub(1) * self.steps.per_epoch
            + self.batches.div_ceil(self.steps.accumulation)
    }

    /// Stops the run if the loss or what a layer measured is no number; layers come first, the lowest before others.
    fn check(&self, values: &[(&str, &NumericEntry)]) {
        let layer = |name: &str| name.strip_prefix("Layer ")?.split(' ').next()?.parse().ok();
        let wrong = values.iter().filter_map(|(name, value)| {
            let place: usize = match (*name, value) {
                (metrics::LOSS, _) => usize::MAX,
                // The mean over an epoch in which the layer was not there yet.
                (_, NumericEntry::Final(_)) => return None,
                (name, _) => layer(name)?,
            };
            let value = value.current();
            (!value.is_finite()).then_some((place, *name, value))
        });
        let Some((_, name, value)) = wrong.min_by_key(|wrong| wrong.0) else {
            return;
        };
        let mut past = self.history.past();
        if past.not_finite.is_none() {
            past.not_finite = Some(NotFinite {
                what: name.to_lowercase(),
                step: self.step(),
                value,
            });
            self.stop.stop(Some("a number is none"));
        }
    }
}

impl MetricLogger for Journal {
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
            self.history.past().validation.insert(epoch, loss);
        }
        let mut line =
            serde_json::json!({ "split": split.to_string(), "epoch": epoch, "step": self.step() });
        for (name, value) in values {
            line[name.to_lowercase().replace(' ', "_")] = value.current().into();
        }
        if let Err(error) = self.file.write_all(format!("{line}\n").as_bytes()) {
            let reason = format!("{}: cannot be written: {error}", self.path.display());
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
        let loss = known.then(|| self.history.past().validation.get(&epoch).copied());
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

    fn open(path: &Path, stop: &Interrupter) -> Journal {
        let mut journal = Journal::open(path, STEPS, stop.clone()).unwrap();
        journal.log_metric_definition(MetricDefinition {
            metric_id: id(),
            name: Arc::new(metrics::LOSS.into()),
            description: None,
            attributes: MetricAttributes::None,
        });
        journal
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
                serde_json::json!({"split": split, "epoch": epoch, "step": 2, "loss": loss})
            )
        };
        let old = [
            line("train", 1, 3.0),
            line("valid", 1, 2.5),
            line("train", 2, 2.0),
            "{\"spl".into(),
        ];
        std::fs::write(&path, old.concat()).unwrap();
        let mut journal = open(&path, &Interrupter::new());
        let history = journal.history();
        for value in [2.0, 1.9, 1.8, 1.7] {
            journal.log(loss(NumericEntry::Value(value)), 2, &Split::Train);
        }
        journal.log(loss(NumericEntry::Final(1.85)), 2, &Split::Train);
        journal.log(loss(NumericEntry::Value(9.0)), 2, &Split::Valid);
        journal.log(loss(NumericEntry::Final(2.7)), 2, &Split::Valid);

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
        assert_eq!(history.best(&[1, 2, 3]), Some(1));
        assert_eq!(history.best(&[2]), Some(2));
    }

    #[test]
    fn a_loss_that_is_no_number_stops_training_and_names_the_step() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Interrupter::new();
        let mut journal = open(&folder.path().join("metrics.jsonl"), &stop);
        let history = journal.history();
        for value in [1.0, 1.0, f64::NAN, f64::NAN] {
            journal.log(loss(NumericEntry::Value(value)), 2, &Split::Train);
        }
        let NotFinite { what, step, value } = history.not_finite().unwrap();
        assert!(stop.should_stop() && what == "loss" && step == 4 && value.is_nan());
    }

    #[test]
    fn a_layers_measurement_that_is_no_number_is_named_before_the_loss() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Interrupter::new();
        let journal = open(&folder.path().join("metrics.jsonl"), &stop);
        let history = journal.history();
        let (fine, wrong) = (NumericEntry::Value(1.0), NumericEntry::Value(f64::INFINITY));
        journal.check(&[
            (metrics::LOSS, &wrong),
            ("Layer 0 largest u", &fine),
            ("Layer 10 largest u", &wrong),
            ("Layer 2 largest u", &wrong),
        ]);
        assert!(stop.should_stop());
        assert_eq!(history.not_finite().unwrap().what, "layer 2 largest u");
    }
}
