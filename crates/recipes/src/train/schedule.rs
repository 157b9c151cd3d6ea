//! The learning rate over the steps.

use std::f64::consts::PI;

use burn::optim::lr_scheduler::{
    LrScheduler, LrSchedulerRecord, module_lr_scheduler::ModuleLrScheduler,
};
use rwkv7_core::optimizer;

use crate::recipe::{LearningRate, Recipe};

/// From 1 % of the peak to all of it, then a cosine down to the final rate, which stays; twice that for the decay bias. After a
/// growth the rate comes back from 1 % of the cosine.
pub fn schedule(recipe: &Recipe) -> ModuleLrScheduler {
    let schedule = |factor: f64| Schedule {
        rate: recipe.learning_rate.clone(),
        factor,
        steps: recipe.steps,
        warmups: recipe
            .grow
            .iter()
            .map(|growth| (growth.after, growth.warmup_steps))
            .collect(),
        step: 0,
    };
    let rates = ModuleLrScheduler::new(schedule(1.0));
    rates.with_group(
        optimizer::decay_bias(),
        schedule(optimizer::DECAY_BIAS_RATE),
    )
}

#[derive(Clone)]
struct Schedule {
    rate: LearningRate,
    factor: f64,
    steps: usize,
    /// First step and length of each warm-up but the first.
    warmups: Vec<(usize, usize)>,
    step: usize,
}

impl Schedule {
    fn at(&self, step: usize) -> f64 {
        let LearningRate {
            peak,
            r#final: last,
            warmup_steps,
        } = self.rate;
        let done = step.saturating_sub(warmup_steps) as f64;
        let progress = (done / (self.steps - warmup_steps) as f64).min(1.0);
        let cosine = last + (peak - last) * (0.5 + 0.5 * (PI * progress).cos());
        let first = [(0, warmup_steps)];
        let warmups = first.iter().chain(&self.warmups);
        let warmed: f64 = warmups
            .filter(|(start, length)| (*start..start + length).contains(&step))
            .map(|(start, length)| 0.01 + 0.99 * (step - start) as f64 / *length as f64)
            .fold(1.0, f64::min);
        self.factor * cosine * warmed
    }
}

/// The step that comes next, in the record.
pub const STEP: &str = "step";

impl LrScheduler for Schedule {
    fn step(&mut self) -> f64 {
        self.step += 1;
        self.at(self.step - 1)
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar(STEP, self.step)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(step) = record.scalar(STEP) {
            self.step = step;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::module::ParamId;
    use serde_json::json;

    use super::*;

    /// Reference: `lr · (0.5 + f/2 + (0.5 - f/2) cos(π p))` after `lr · (0.01 + 0.99 step / warmup)`.
    #[test]
    fn the_schedule_is_the_official_one_and_the_decay_bias_gets_twice_that() {
        let rate = LearningRate {
            peak: 1e-3,
            r#final: 1e-4,
            warmup_steps: 10,
        };
        let growth = json!({ "after": 50, "to": {}, "warmup_steps": 4 });
        let recipe = Recipe {
            learning_rate: rate.clone(),
            steps: 110,
            grow: vec![serde_json::from_value(growth).unwrap()],
            ..Recipe::default()
        };
        let mut running = schedule(&recipe);
        for step in 0..130_usize {
            if step == 53 {
                // In the middle of a warm-up a run goes on elsewhere.
                running = schedule(&recipe).load_record(running.to_record());
            }
            let current = running.step();
            let progress = (step.saturating_sub(10) as f64 / 100.0).min(1.0);
            let f = rate.r#final / rate.peak;
            let cosine = 0.5 + f / 2.0 + (0.5 - f / 2.0) * (PI * progress).cos();
            let warmup = match step {
                0..10 => 0.01 + 0.99 * step as f64 / 10.0,
                50..54 => 0.01 + 0.99 * (step - 50) as f64 / 4.0,
                _ => 1.0,
            };
            let expected = rate.peak * cosine * warmup;
            let close = |found: f64, expected: f64| {
                assert!(
                    (found - expected).abs() < 1e-12,
                    "step {step}: {found}, {expected}"
                )
            };
            close(
                current.lr_from_param(ParamId::new(), Some("model.blocks.1.att.a0")),
                expected,
            );
            close(
                current.lr_from_param(ParamId::new(), Some("model.blocks.1.att.w0")),
                2.0 * expected,
            );
        }
    }
}
