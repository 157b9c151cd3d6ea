//! Metrics of language modelling for Burn's dashboard.

use std::{sync::Arc, time::Instant};

use burn::{
    tensor::TensorReadError,
    train::{
        Interrupter,
        metric::{
            Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric,
            NumericAttributes, NumericEntry, SerializedEntry,
        },
    },
};

use super::trainee::{Numbers, StepOutput};

/// What the metrics read of a step.
#[derive(Clone, Copy)]
pub struct Reading {
    numbers: Option<Numbers>,
    counted: usize,
    tokens: usize,
}

impl Adaptor<Reading> for StepOutput {
    fn adapt(&self) -> Reading {
        Reading {
            numbers: self.numbers,
            counted: self.counted,
            tokens: self.tokens,
        }
    }
}

/// Which number a [`Track`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loss,
    Perplexity,
    Accuracy,
    GradientNorm,
    Speed,
}

/// A number over the steps: its newest value, and its mean over the epoch weighted by what each step counted.
#[derive(Clone)]
pub struct Track {
    kind: Kind,
    name: MetricName,
    sum: f64,
    weight: f64,
    current: f64,
    current_weight: usize,
    clock: Option<Instant>,
    stop: Option<Interrupter>,
}

impl Track {
    fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: Arc::new(name.to_string()),
            sum: 0.0,
            weight: 0.0,
            current: f64::NAN,
            current_weight: 0,
            clock: None,
            stop: None,
        }
    }

    /// Mean cross-entropy in nats. Stops training when it is not a number.
    pub fn loss(stop: Interrupter) -> Self {
        Self {
            stop: Some(stop),
            ..Self::new(Kind::Loss, "Loss")
        }
    }

    /// e to the mean cross-entropy.
    pub fn perplexity() -> Self {
        Self::new(Kind::Perplexity, "Perplexity")
    }

    /// Share of counted targets that had the largest logit, in percent.
    pub fn accuracy() -> Self {
        Self::new(Kind::Accuracy, "Accuracy")
    }

    /// Global norm of the gradients before clipping.
    pub fn gradient_norm() -> Self {
        Self::new(Kind::GradientNorm, "Gradient norm")
    }

    /// Tokens through the model a second, of wall-clock time.
    pub fn speed() -> Self {
        Self::new(Kind::Speed, "Tokens per second")
    }

    /// The perplexity is taken of the mean loss, not the mean of perplexities.
    fn shown(&self, mean: f64) -> f64 {
        match self.kind {
            Kind::Perplexity => mean.exp(),
            _ => mean,
        }
    }

    fn mean(&self) -> f64 {
        self.shown(self.sum / self.weight)
    }

    fn observe(&mut self, reading: &Reading) {
        let Some(numbers) = reading.numbers else {
            return;
        };
        let (value, weight) = match self.kind {
            Kind::Loss | Kind::Perplexity => (numbers.loss, reading.counted),
            Kind::Accuracy => (100.0 * numbers.accuracy, reading.counted),
            Kind::GradientNorm => match numbers.norm {
                Some(norm) => (norm, 1),
                None => return,
            },
            Kind::Speed => {
                let now = Instant::now();
                let Some(before) = self.clock.replace(now) else {
                    return;
                };
                // The mean speed is tokens by time: the sum collects tokens, the weight seconds.
                let seconds = (now - before).as_secs_f64().max(1e-9);
                self.current = reading.tokens as f64 / seconds;
                self.current_weight = 1;
                self.sum += reading.tokens as f64;
                self.weight += seconds;
                return;
            }
        };
        if self.kind == Kind::Loss
            && !value.is_finite()
            && let Some(stop) = &self.stop
        {
            stop.stop(Some(&format!("the loss is {value}")));
        }
        self.current = value;
        self.current_weight = weight;
        self.sum += value * weight as f64;
        self.weight += weight as f64;
    }
}

impl Metric for Track {
    type Input = Reading;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: (self.kind == Kind::Accuracy).then(|| "%".to_string()),
            higher_is_better: matches!(self.kind, Kind::Accuracy | Kind::Speed),
        }
        .into()
    }

    fn update(
        &mut self,
        reading: &Reading,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.observe(reading);
        let (mean, current) = (self.mean(), self.shown(self.current));
        let formatted = format!("epoch {mean:.4} - batch {current:.4}");
        let entry = NumericEntry::Aggregated {
            aggregated_value: current,
            count: self.current_weight,
        };
        Ok(SerializedEntry::new(formatted, entry.serialize()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        let mean = self.mean();
        Ok(SerializedEntry::new(
            format!("epoch {mean:.4}"),
            NumericEntry::Final(mean).serialize(),
        ))
    }

    fn clear(&mut self) {
        self.sum = 0.0;
        self.weight = 0.0;
        self.current = f64::NAN;
        self.current_weight = 0;
        self.clock = None;
    }
}

impl Numeric for Track {
    fn value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.shown(self.current)))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.mean()))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.mean())
    }
}
