//! Progress without a terminal: lines on standard error. This file may print, as it takes the place of the dashboard.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    time::{Duration, Instant},
};

use burn::train::{
    LearnerSummary,
    logger::{EvaluationProgressLogger, TrainingProgressLogger},
    metric::{MetricDefinition, MetricId},
    renderer::{
        EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
        MetricsRendererTraining,
    },
};

use super::metrics;

/// Seconds between lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// Metrics of which a line has the newest value, as a mean over steps says nothing.
const NEWEST: [&str; 2] = [metrics::LEARNING_RATE, metrics::GRADIENT_NORM];

/// Prints a line every few seconds and one at the end of each split: means over the epoch so far, but for [`NEWEST`].
pub struct PlainProgress {
    names: HashMap<MetricId, String>,
    values: BTreeMap<String, String>,
    epoch: usize,
    epochs: usize,
    split: String,
    steps: usize,
    step: usize,
    last: Instant,
}

impl PlainProgress {
    /// Progress of a run that starts with `epoch` (from 1).
    pub fn new(epoch: usize) -> Self {
        Self {
            names: HashMap::new(),
            values: BTreeMap::new(),
            epoch,
            epochs: 0,
            split: String::new(),
            steps: 0,
            step: 0,
            last: Instant::now(),
        }
    }

    fn observe(&mut self, state: MetricState) {
        let (MetricState::Generic(entry) | MetricState::Numeric(entry, _)) = state;
        if let Some(name) = self.names.get(&entry.metric_id) {
            self.values
                .insert(name.clone(), entry.serialized_entry.formatted);
        }
    }

    fn line(&mut self) {
        self.last = Instant::now();
        let values: Vec<String> = self
            .values
            .iter()
            .map(|(name, value)| {
                // "epoch 1.2 - batch 1.3": the mean over the epoch so far and the newest value.
                let (mean, newest) = value.split_once(" - batch ").unwrap_or((value, value));
                let value = match NEWEST.contains(&name.as_str()) {
                    true => newest,
                    false => mean,
                };
                format!(
                    "{} {}",
                    name.to_lowercase(),
                    value.trim_start_matches("epoch ")
                )
            })
            .collect();
        // Training does not end because nobody reads the line.
        let _ = writeln!(
            io::stderr(),
            "{} {}/{}, step {}/{}: {}",
            self.split,
            self.epoch,
            self.epochs,
            self.step,
            self.steps,
            values.join(", ")
        );
    }
}

impl MetricsRendererTraining for PlainProgress {
    fn update_train(&mut self, state: MetricState) {
        self.observe(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.observe(state);
    }

    fn on_train_end(
        &mut self,
        _summary: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

impl TrainingProgressLogger for PlainProgress {
    fn start(&mut self, epochs: usize, epoch: usize, _items: Option<usize>, _label: Option<&str>) {
        self.epochs = epochs;
        self.epoch = epoch;
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.epoch = epoch + 1;
    }

    fn start_split(&mut self, split: &str, steps: usize) {
        self.split = split.to_lowercase();
        self.steps = steps;
        self.step = 0;
        self.values.clear();
    }

    fn update_split(&mut self, step: usize) {
        self.step = step;
        if self.last.elapsed() >= INTERVAL {
            self.line();
        }
    }

    fn end_split(&mut self) {
        self.line();
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

impl EvaluationProgressLogger for PlainProgress {
    fn start_global_progress(&mut self, _tests: usize) {}
    fn start_test(&mut self, _name: &str, _items: usize) {}
    fn update_test_progress(&mut self, _items: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _event: String) {}
}

impl MetricsRendererEvaluation for PlainProgress {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl MetricsRenderer for PlainProgress {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names
            .insert(definition.metric_id, definition.name.to_string());
    }
}
