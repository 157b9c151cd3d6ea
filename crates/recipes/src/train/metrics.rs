//! Metrics of language modelling for Burn's dashboard.

use std::{sync::Arc, time::Instant};

use burn::{
    tensor::TensorReadError,
    train::metric::{
        Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
        NumericEntry, SerializedEntry,
    },
};

use super::output::{StepNumbers, StepOutput};

/// Name of the cross-entropy among the metrics.
pub const LOSS: &str = "Loss";

/// Name of the perplexity among the metrics.
pub const PERPLEXITY: &str = "Perplexity";

/// Name of the speed among the metrics.
pub const SPEED: &str = "Tokens per second";

/// Name of burn-train's metric of the learning rate.
pub const LEARNING_RATE: &str = "Learning Rate";

/// Name of the gradient norm among the metrics.
pub const GRADIENT_NORM: &str = "Gradient norm";

/// The results of one step as the metrics read them.
#[derive(Clone)]
pub struct StepMetrics {
    numbers: Option<StepNumbers>,
    layers: Vec<Vec<f64>>,
    counted: usize,
    tokens: usize,
    started: Instant,
}

impl Adaptor<StepMetrics> for StepOutput {
    fn adapt(&self) -> StepMetrics {
        StepMetrics {
            numbers: self.numbers,
            layers: self.layers.clone(),
            counted: self.counted,
            tokens: self.tokens,
            started: self.started,
        }
    }
}

/// Which number a [`LmMetric`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loss,
    Perplexity,
    Accuracy,
    GradientNorm,
    Speed,
    /// Measurement `index` of a layer.
    Measurement {
        layer: usize,
        index: usize,
    },
}

/// A number over the steps: its newest value, and its mean over the epoch weighted by the targets that each step counted.
#[derive(Clone)]
pub struct LmMetric {
    kind: Kind,
    name: MetricName,
    sum: f64,
    weight: f64,
    current: Option<f64>,
    current_weight: usize,
    clock: Option<Instant>,
}

impl LmMetric {
    fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: Arc::new(name.to_string()),
            sum: 0.0,
            weight: 0.0,
            current: None,
            current_weight: 0,
            clock: None,
        }
    }

    /// Mean cross-entropy in nats.
    pub fn loss() -> Self {
        Self::new(Kind::Loss, LOSS)
    }

    /// e to the mean cross-entropy.
    pub fn perplexity() -> Self {
        Self::new(Kind::Perplexity, PERPLEXITY)
    }

    /// Share of counted targets that had the largest logit, in percent.
    pub fn accuracy() -> Self {
        Self::new(Kind::Accuracy, "Accuracy")
    }

    /// Global norm of the gradients before clipping.
    pub fn gradient_norm() -> Self {
        Self::new(Kind::GradientNorm, GRADIENT_NORM)
    }

    /// A measurement of a layer.
    pub fn measurement(layer: usize, index: usize, name: &str) -> Self {
        let kind = Kind::Measurement { layer, index };
        Self::new(kind, &format!("Layer {layer} {name}"))
    }

    /// Tokens through the model a second, of wall-clock time.
    pub fn speed() -> Self {
        Self::new(Kind::Speed, SPEED)
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

    /// The newest value; none before the first one of an epoch.
    fn newest(&self) -> Option<f64> {
        self.current.map(|value| self.shown(value))
    }

    fn observe(&mut self, reading: &StepMetrics) {
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
            Kind::Measurement { layer, index } => {
                let layer = reading.layers.get(layer);
                match layer.and_then(|values| values.get(index)) {
                    Some(&value) => (value, reading.counted),
                    None => return,
                }
            }
            Kind::Speed => {
                let now = Instant::now();
                // The first step counts from its own beginning.
                let before = self.clock.replace(now).unwrap_or(reading.started);
                // The mean speed is tokens by time: the sum collects tokens, the weight seconds.
                let seconds = (now - before).as_secs_f64().max(1e-9);
                self.current = Some(reading.tokens as f64 / seconds);
                self.current_weight = 1;
                self.sum += reading.tokens as f64;
                self.weight += seconds;
                return;
            }
        };
        self.current = Some(value);
        self.current_weight = weight;
        self.sum += value * weight as f64;
        self.weight += weight as f64;
    }
}

impl Metric for LmMetric {
    type Input = StepMetrics;

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
        reading: &StepMetrics,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.observe(reading);
        let Some(entry) = self.value() else {
            return Ok(SerializedEntry::not_available(None));
        };
        let (mean, current) = (self.mean(), entry.current());
        let formatted = format!("epoch {mean:.4} - batch {current:.4}");
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
        self.current = None;
        self.current_weight = 0;
        self.clock = None;
    }
}

impl Numeric for LmMetric {
    fn value(&self) -> Option<NumericEntry> {
        let aggregated_value = self.newest()?;
        Some(NumericEntry::Aggregated {
            aggregated_value,
            count: self.current_weight,
        })
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.newest().map(|_| NumericEntry::Value(self.mean()))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.mean())
    }
}
