//! The learning rate over the steps.

use burn::optim::lr_scheduler::{
    LrSchedulerConfig,
    cosine::CosineAnnealingLrSchedulerConfig,
    linear::LinearLrSchedulerConfig,
    module_lr_scheduler::{ModuleLrScheduler, ModuleLrSchedulerConfig},
    sequential::SequentialLrSchedulerConfig,
};
use rwkv7_core::optimizer;

use super::TrainError;
use crate::recipe::LearningRate;

/// From 1 % of the peak to all of it, then a cosine down to the final rate, which stays; twice that for the decay bias.
pub fn schedule(rate: &LearningRate, steps: usize) -> Result<ModuleLrScheduler, TrainError> {
    let base = |factor: f64| -> LrSchedulerConfig {
        let (peak, last) = (rate.peak * factor, rate.r#final * factor);
        let cosine = CosineAnnealingLrSchedulerConfig::new(peak, steps - rate.warmup_steps)
            .with_min_lr(last);
        let mut schedules: Vec<LrSchedulerConfig> = vec![cosine.into(), last.into()];
        let mut milestones = vec![steps];
        if rate.warmup_steps > 0 {
            let warmup = LinearLrSchedulerConfig::new(peak * 0.01, peak, rate.warmup_steps);
            schedules.insert(0, warmup.into());
            milestones.insert(0, rate.warmup_steps);
        }
        SequentialLrSchedulerConfig::new(schedules, milestones).into()
    };
    ModuleLrSchedulerConfig::new(base(1.0))
        .with_group(optimizer::decay_bias(), base(optimizer::DECAY_BIAS_RATE))
        .init()
        .map_err(|reason| TrainError::Setup { reason })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::module::ParamId;

    use super::*;

    /// Reference: `lr · (0.5 + f/2 + (0.5 - f/2) cos(π p))` after `lr · (0.01 + 0.99 step / warmup)`.
    #[test]
    fn the_schedule_is_the_official_one_and_the_decay_bias_gets_twice_that() {
        let rate = LearningRate {
            peak: 1e-3,
            r#final: 1e-4,
            warmup_steps: 10,
        };
        let mut schedule = schedule(&rate, 110).unwrap();
        for step in 0..130_usize {
            let current = schedule.step();
            let progress = (step.saturating_sub(10) as f64 / 100.0).min(1.0);
            let f = rate.r#final / rate.peak;
            let cosine = 0.5 + f / 2.0 + (0.5 - f / 2.0) * (std::f64::consts::PI * progress).cos();
            let warmup = if step < 10 {
                0.01 + 0.99 * step as f64 / 10.0
            } else {
                1.0
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
