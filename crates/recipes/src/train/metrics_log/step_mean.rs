//! The metrics of an optimizer step: those of its batches together.

use std::collections::BTreeMap;

use burn::train::metric::NumericEntry;

use crate::train::metrics::{GRADIENT_NORM, LEARNING_RATE, LOSS, PERPLEXITY, SPEED};

/// The metrics of the batches of one step so far.
#[derive(Default)]
pub struct StepMean {
    /// Value and weight of every batch, by the name of the metric.
    batches: BTreeMap<String, Vec<(f64, f64)>>,
}

impl StepMean {
    /// Takes in the metrics of the next batch.
    pub fn add(&mut self, values: &[(&str, &NumericEntry)]) {
        for (name, entry) in values {
            let weight = match entry {
                NumericEntry::Aggregated { count, .. } => *count as f64,
                _ => 1.0,
            };
            let batches = self.batches.entry((*name).to_string()).or_default();
            batches.push((entry.current(), weight));
        }
    }

    /// The metrics of the step. Learning rate and gradient norm are those of the last batch, after which the step was taken.
    pub fn values(self) -> BTreeMap<String, f64> {
        let loss = self.batches.get(LOSS).and_then(|batches| mean(batches));
        let of_step = |name: &str, batches: &[(f64, f64)]| match (name, batches) {
            (_, [(only, _)]) => Some(*only),
            (LEARNING_RATE | GRADIENT_NORM, batches) => Some(batches.last()?.0),
            (PERPLEXITY, _) => loss.map(f64::exp),
            // Equal numbers of tokens: the mean of the times.
            (SPEED, batches) => {
                let times = batches.iter().map(|(speed, _)| 1.0 / speed);
                Some(batches.len() as f64 / times.sum::<f64>())
            }
            (_, batches) => mean(batches),
        };
        let values = self.batches.iter();
        values
            .filter_map(|(name, batches)| Some((name.clone(), of_step(name, batches)?)))
            .collect()
    }
}

fn mean(batches: &[(f64, f64)]) -> Option<f64> {
    let weight: f64 = batches.iter().map(|(_, weight)| weight).sum();
    let sum: f64 = batches.iter().map(|(value, weight)| value * weight).sum();
    (weight > 0.0).then(|| sum / weight)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_own_rate_and_the_mean_loss_of_its_batches() {
        let mut step = StepMean::default();
        for (loss, count, rate, speed) in [(2.0, 10, 0.0, 100.0), (1.0, 30, 6e-4, 300.0)] {
            let aggregated = |aggregated_value| NumericEntry::Aggregated {
                aggregated_value,
                count,
            };
            let speed = NumericEntry::Aggregated {
                aggregated_value: speed,
                count: 1,
            };
            step.add(&[
                (LOSS, &aggregated(loss)),
                (PERPLEXITY, &aggregated(f64::exp(loss))),
                (LEARNING_RATE, &NumericEntry::Value(rate)),
                (SPEED, &speed),
            ]);
        }
        let values = step.values();
        assert_eq!(values[LOSS], 1.25);
        assert_eq!(values[PERPLEXITY], 1.25_f64.exp());
        assert_eq!(values[LEARNING_RATE], 6e-4);
        assert!((values[SPEED] - 150.0).abs() < 1e-9);
    }
}
