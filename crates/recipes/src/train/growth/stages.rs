//! The sizes that a run goes through, planned before it starts.

use burn::tensor::Device;
use rwkv7_core::{Rwkv7, Rwkv7Config};
use scaling::{Growable, Plan};
use serde_json::{Value, json};
use zoo::{AnyConfig, TargetError, changed};

use super::{FrozenEntries, Stage};
use crate::{
    recipe::{Growth, Recipe},
    train::{TrainError, record::Shapes},
};

/// A growth of the model and its plan.
pub struct PlannedGrowth<S: Growable> {
    /// As the recipe says.
    pub growth: Growth,
    /// Which entries come from where.
    pub plan: Plan<S>,
}

/// The sizes that a run goes through.
pub struct Stages<S: Growable> {
    start: Rwkv7Config<S>,
    growths: Vec<PlannedGrowth<S>>,
}

impl<S: Growable> Stages<S> {
    /// Plans every growth of a recipe that starts with this configuration on this device.
    pub fn new(
        recipe: &Recipe,
        start: Rwkv7Config<S>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        recipe.check_memory(&start, device)?;
        let mut stages = Self {
            start,
            growths: Vec::new(),
        };
        for growth in &recipe.grow {
            let from = stages.last();
            let to = target(growth, from, recipe.scale_down)?;
            recipe.check_memory(&to, device)?;
            let plan = Plan::new(from, &to, growth.method, growth.embedding)?;
            stages.growths.push(PlannedGrowth {
                plan: plan.with_new_blocks(&growth.new_blocks)?.exact()?,
                growth: growth.clone(),
            });
        }
        Ok(stages)
    }

    /// The configuration of the model that comes out of the run.
    pub fn last(&self) -> &Rwkv7Config<S> {
        self.of_stage(self.growths.len())
    }

    /// The configuration of the model after `step` steps.
    pub fn config(&self, step: usize) -> &Rwkv7Config<S> {
        self.of_stage(self.stage_at(step))
    }

    /// The tensors of the model after `step` steps.
    pub fn shapes(&self, step: usize) -> Shapes {
        Shapes::of_config(self.config(step))
    }

    /// The growth that is due after `step` steps, and the stage that it begins.
    pub fn due(&self, step: usize) -> Option<(&PlannedGrowth<S>, Stage)> {
        let due = self.growths.iter().position(|g| g.growth.after == step)?;
        Some((&self.growths[due], self.stage(due + 1)))
    }

    /// The entries that existed before the last growth, if the recipe trains them at their own rate (`old_rate` < 1).
    pub fn frozen(&self, step: usize, model: &Rwkv7<S::Layer>) -> Option<FrozenEntries> {
        let last = &self.growths[self.stage_at(step).checked_sub(1)?];
        let rate = last.growth.old_rate;
        (rate < 1.0).then(|| FrozenEntries::new(&last.plan, model, rate))
    }

    /// All stages, without measurements. A growth before the first step leaves no stage before it.
    pub fn all(&self) -> impl Iterator<Item = Stage> + '_ {
        let first = self.growths.first();
        let grown_at_once = first.is_some_and(|first| first.growth.after == 0);
        (usize::from(grown_at_once)..=self.growths.len()).map(|index| self.stage(index))
    }

    fn stage_at(&self, step: usize) -> usize {
        let past = self.growths.iter().filter(|g| g.growth.after <= step);
        past.count()
    }

    fn of_stage(&self, index: usize) -> &Rwkv7Config<S> {
        match index.checked_sub(1) {
            None => &self.start,
            Some(growth) => &self.growths[growth].plan.to,
        }
    }

    fn stage(&self, index: usize) -> Stage {
        let config = self.of_stage(index);
        let growth = index
            .checked_sub(1)
            .map(|index| &self.growths[index].growth);
        Stage {
            from_step: growth.map_or(0, |growth| growth.after),
            parameters: config.num_params(),
            flops_per_token: flops_per_token(config),
            loss_before: None,
            loss_after: None,
            seconds: None,
        }
    }
}

/// Floating-point operations that training takes for each token: six for each parameter, and 27 for each value of the state. The
/// embedding does not count, as its rows are looked up. A step reads or changes each value of the state about nine times, and
/// training does three times the work of a step.
fn flops_per_token<S: Growable>(config: &Rwkv7Config<S>) -> f64 {
    let width = config.embed_width.unwrap_or(config.n_embd);
    let table = config.vocab_size.saturating_mul(width);
    let matrices = config.num_params().saturating_sub(table);
    6.0 * matrices as f64 + 27.0 * config.num_state_values() as f64
}

/// The configuration after a growth. A named model gives its sizes; everything else stays.
fn target<S: Growable>(
    growth: &Growth,
    from: &Rwkv7Config<S>,
    scale_down: usize,
) -> Result<Rwkv7Config<S>, TrainError> {
    let Value::String(name) = &growth.to else {
        return Ok(changed(from, &growth.to)?);
    };
    let named = zoo::config(name).and_then(|named| named.scaled_down(scale_down));
    let named = named.map_err(|error| TargetError {
        given: name.clone(),
        reason: error.to_string(),
    })?;
    let ffn_size = match &named {
        AnyConfig::Rwkv7(config) => config.ffn.ffn_size,
        AnyConfig::MetaState(config) => 4 * config.n_embd,
    };
    let named = named.base();
    let size = Rwkv7Config {
        n_layer: named.n_layer,
        n_embd: named.n_embd,
        head_size: named.head_size,
        decay_rank: named.decay_rank,
        in_context_rank: named.in_context_rank,
        value_rank: named.value_rank,
        gate_rank: named.gate_rank,
        ..from.clone()
    };
    Ok(changed(&size, &json!({ "ffn_size": ffn_size }))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zoo::{Arch, for_architecture};

    #[test]
    fn recipes_that_grow_have_plans_for_every_architecture() {
        for (name, sizes) in [
            ("grow", vec![(3, 96), (3, 128), (6, 128)]),
            (
                "grow-stepwise",
                vec![(3, 192), (5, 256), (6, 320), (8, 384)],
            ),
        ] {
            for arch in [Arch::Rwkv7, Arch::MetaState] {
                let recipe = Recipe::load(name).unwrap();
                let config = recipe.model.config(Some(arch), 256).unwrap();
                let config = config.scaled_down(recipe.scale_down).unwrap();
                let found = for_architecture!(AnyConfig, config, config => {
                    let stages = Stages::new(&recipe, config, &Device::flex()).unwrap();
                    let configs = (0..=stages.growths.len()).map(|index| stages.of_stage(index));
                    configs.map(|config| (config.n_layer, config.n_embd)).collect::<Vec<_>>()
                });
                assert_eq!(found, sizes, "{name}");
            }
        }
    }
}
