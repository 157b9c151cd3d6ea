//! A model that grows while it is trained.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Tensor, TensorData},
    train::Interrupter,
};
use rwkv7_core::{Rwkv7, Rwkv7Config, checkpoint, layers::ChannelMixer, loss};
use scaling::{Growable, Plan, Step, grow_model, grow_optimizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo::{AnyConfig, TargetError, changed, flops_per_token};

use super::{TrainError, folder::write_json, progress::say};
use crate::{
    data::loader::BatchSource,
    recipe::{Growth, Recipe},
};

/// A part of a run in which the model keeps its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Optimizer steps before it.
    pub from_step: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Floating-point operations of training for each token.
    pub flops_per_token: f64,
    /// Validation loss before the growth that began it, nats.
    pub loss_before: Option<f64>,
    /// Validation loss right after that growth, nats.
    pub loss_after: Option<f64>,
    /// Seconds that growth and comparison took.
    pub seconds: Option<f64>,
}

/// What changes a model in training besides its steps.
pub trait Evolution<M: ChannelMixer>: Send + Sync {
    /// The model that takes this one's place after `step` steps, if one does; the optimizer becomes its.
    fn after(
        &self,
        step: usize,
        model: &Rwkv7<M>,
        optimizer: &mut ModuleOptimizer,
    ) -> Option<Rwkv7<M>>;

    /// What was in the model before the growth that the step after `step` steps belongs to, if that trains differently.
    fn held(&self, step: usize, model: &Rwkv7<M>) -> Option<Held>;
}

/// The sizes that a run goes through.
pub struct Stages<S: Growable> {
    configs: Vec<Rwkv7Config<S>>,
    plans: Vec<Plan<S>>,
    growths: Vec<Growth>,
    seed: u64,
    validation: Arc<dyn BatchSource>,
    batches: usize,
    folder: PathBuf,
    steps_per_epoch: usize,
    plain: bool,
    stop: Interrupter,
    failure: Mutex<Option<TrainError>>,
}

/// Plans every growth of a recipe that starts with this configuration.
pub fn plans<S: Growable>(
    recipe: &Recipe,
    start: &Rwkv7Config<S>,
) -> Result<Vec<Plan<S>>, TrainError> {
    let mut plans: Vec<Plan<S>> = Vec::new();
    for growth in &recipe.grow {
        let from = plans.last().map_or(start, |plan| &plan.to);
        let to = target(growth, from, recipe.scale_down)?;
        let plan = Plan::new(from, &to, growth.method, growth.embedding)?;
        plans.push(plan.with_new_blocks(&growth.new_blocks)?.exact()?);
    }
    Ok(plans)
}

/// What the model becomes. Of a model with a name only the sizes are taken: all else stays.
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
    Ok(changed(
        &size,
        &serde_json::json!({ "ffn_size": ffn_size }),
    )?)
}

impl<S: Growable> Stages<S> {
    /// The stages of a recipe; `folder` is the run's, and `plain` says that lines may be printed.
    pub fn new(
        recipe: &Recipe,
        start: &Rwkv7Config<S>,
        (validation, batches): (Arc<dyn BatchSource>, usize),
        folder: &Path,
        plain: bool,
        stop: Interrupter,
    ) -> Result<Self, TrainError> {
        let plans = plans(recipe, start)?;
        let grown = plans.iter().map(|plan| plan.to.clone());
        Ok(Self {
            configs: [start.clone()].into_iter().chain(grown).collect(),
            plans,
            growths: recipe.grow.clone(),
            seed: recipe.seed,
            validation,
            batches,
            folder: folder.to_path_buf(),
            steps_per_epoch: recipe.steps_per_epoch,
            plain,
            stop,
            failure: Mutex::new(None),
        })
    }

    /// The configuration of the model that comes out of the run.
    pub fn last(&self) -> &Rwkv7Config<S> {
        &self.configs[self.configs.len() - 1]
    }

    /// The configuration of the model after `step` steps.
    pub fn config(&self, step: usize) -> &Rwkv7Config<S> {
        &self.configs[self.index(step)]
    }

    fn index(&self, step: usize) -> usize {
        let past = self.growths.iter().filter(|growth| growth.after <= step);
        past.count()
    }

    /// What went wrong with a growth.
    pub fn failure(&self) -> Option<TrainError> {
        self.slot().take()
    }

    fn slot(&self) -> MutexGuard<'_, Option<TrainError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model after the growth that is due after `step` steps, if one is.
    pub fn grow(
        &self,
        step: usize,
        model: &Rwkv7<S::Layer>,
        optimizer: &mut ModuleOptimizer,
    ) -> Result<Option<Rwkv7<S::Layer>>, TrainError> {
        let due = self.growths.iter().position(|growth| growth.after == step);
        let Some(index) = due else { return Ok(None) };
        let started = Instant::now();
        let (plan, growth) = (&self.plans[index], &self.growths[index]);
        let device = model.head.weight.device();
        let large = grow_model(model, plan, &device, self.seed)?;
        let state = optimizer.to_record();
        let state = match growth.optimizer {
            true => grow_optimizer(plan, model, &large, state)?,
            false => burn::optim::OptimizerRecord::default(),
        };
        *optimizer = optimizer.clone().load_record(state);
        let [before, after] = [model, &large].map(|model| self.loss(&model.valid()));
        let stage = Stage {
            loss_before: Some(before),
            loss_after: Some(after),
            seconds: Some(started.elapsed().as_secs_f64()),
            ..self.stage(index + 1)
        };
        if self.plain {
            say(&format!(
                "grown after {step} steps: {} parameters, validation loss {before:.4} before and {after:.4} after",
                stage.parameters
            ));
        }
        self.log(&stage)?;
        let config = checkpoint::config_json(&plan.to);
        write_json(&self.folder.join("config.json"), &config)?;
        Ok(Some(large))
    }

    fn stage(&self, index: usize) -> Stage {
        let config = &self.configs[index];
        Stage {
            from_step: match index {
                0 => 0,
                later => self.growths[later - 1].after,
            },
            parameters: config.num_params(),
            flops_per_token: flops_per_token(config),
            loss_before: None,
            loss_after: None,
            seconds: None,
        }
    }

    /// All stages, as measured.
    pub fn report(&self) -> Result<Vec<Stage>, TrainError> {
        let path = self.log_file();
        let text = std::fs::read_to_string(&path).map_err(|source| TrainError::File {
            path: path.clone(),
            source,
        })?;
        let logged: Vec<Stage> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["split"] == GROWTH)
            .filter_map(|line| serde_json::from_value(line).ok())
            .collect();
        let measured = |stage: Stage| {
            let mut lines = logged.iter().rev();
            let found = lines.find(|line| line.from_step == stage.from_step);
            found.cloned().unwrap_or(stage)
        };
        let first = self.growths.first().is_some_and(|first| first.after == 0);
        let stages = usize::from(first)..self.configs.len();
        Ok(stages.map(|index| measured(self.stage(index))).collect())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    /// Appends a line to `metrics.jsonl`.
    fn log(&self, stage: &Stage) -> Result<(), TrainError> {
        let path = self.log_file();
        let mut line = serde_json::json!(stage);
        line["split"] = GROWTH.into();
        line["epoch"] = (stage.from_step / self.steps_per_epoch).into();
        line["step"] = stage.from_step.into();
        let opened = File::options().append(true).open(&path);
        opened
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| TrainError::File { path, source })
    }

    /// Mean validation loss, nats.
    fn loss(&self, model: &Rwkv7<S::Layer>) -> f64 {
        let device = model.head.weight.device();
        let (mut sum, mut counted) = (0.0, 0);
        for step in 0..self.batches {
            let batch = self.validation.batch(step).to_device(&device);
            let (logits, _) = model.forward(batch.inputs, None);
            let loss = loss::cross_entropy(logits, batch.targets, batch.mask);
            sum += f64::from(loss.into_scalar::<f32>()) * batch.counted as f64;
            counted += batch.counted;
        }
        sum / counted.max(1) as f64
    }
}

/// The `split` of a growth's line in `metrics.jsonl`.
const GROWTH: &str = "growth";

impl<S: Growable> Evolution<S::Layer> for Stages<S> {
    fn after(
        &self,
        step: usize,
        model: &Rwkv7<S::Layer>,
        optimizer: &mut ModuleOptimizer,
    ) -> Option<Rwkv7<S::Layer>> {
        match self.grow(step, model, optimizer) {
            Ok(large) => large,
            Err(error) => {
                self.stop.stop(Some("the model cannot grow"));
                *self.slot() = Some(error);
                None
            }
        }
    }

    fn held(&self, step: usize, model: &Rwkv7<S::Layer>) -> Option<Held> {
        let index = self.index(step).checked_sub(1)?;
        let rate = self.growths[index].old_rate;
        (rate < 1.0).then(|| Held::new(&self.plans[index], model, rate))
    }
}

/// Old entries of a model, which train at a rate of their own.
#[derive(Clone)]
pub struct Held {
    rate: f64,
    /// 1 for old entries and 0 for others, by parameter and of its shape.
    old: Arc<Mutex<GradientsParams>>,
}

impl Held {
    fn new<S: Growable>(plan: &Plan<S>, model: &Rwkv7<S::Layer>, rate: f64) -> Self {
        struct Masks<'a> {
            entries: HashMap<ParamId, (&'a Step, bool)>,
            found: GradientsParams,
        }
        impl ModuleVisitor for Masks<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some((step, transposed)) = self.entries.get(&param.id) else {
                    return;
                };
                let old: Vec<f32> = step
                    .old_entries()
                    .into_iter()
                    .map(|old| f32::from(u8::from(old)))
                    .collect();
                let device = param.val().device().inner();
                let mask = Tensor::<D>::from_data(TensorData::new(old, step.to.clone()), &device);
                let mask = match transposed {
                    true => mask.transpose(),
                    false => mask,
                };
                self.found.register(param.id, mask);
            }
        }
        let steps: HashMap<&str, &Step> = plan.steps.iter().map(|s| (s.name.as_str(), s)).collect();
        let parameters = checkpoint::parameters(model).into_iter();
        let mut masks = Masks {
            entries: parameters
                .map(|p| (p.id, (steps[p.name.as_str()], p.transposed)))
                .collect(),
            found: GradientsParams::new(),
        };
        model.visit(&mut masks);
        Self {
            rate,
            old: Arc::new(Mutex::new(masks.found)),
        }
    }

    /// The model after a step from `before`, whose old entries went only a part of the way: none of it at rate 0, bit for bit.
    pub fn apply<M: ChannelMixer>(&self, before: &Rwkv7<M>, after: Rwkv7<M>) -> Rwkv7<M> {
        struct Collect(GradientsParams);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.register(param.id, param.val().inner());
            }
        }
        struct Hold<'a> {
            rate: f64,
            old: MutexGuard<'a, GradientsParams>,
            before: GradientsParams,
        }
        impl ModuleMapper for Hold<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let before = self.before.remove::<D>(param.id);
                let old = self.old.get::<D>(param.id);
                let (Some(before), Some(old)) = (before, old) else {
                    return param;
                };
                let rate = self.rate;
                param.map(|after| {
                    let grad = after.is_require_grad();
                    let after = after.inner();
                    let kept = match rate {
                        0.0 => before,
                        rate => before.clone() + (after.clone() - before) * rate,
                    };
                    let held = after.mask_where(old.equal_elem(1.0), kept);
                    Tensor::from_inner(held).set_require_grad(grad)
                })
            }
        }
        let mut collect = Collect(GradientsParams::new());
        before.visit(&mut collect);
        after.map(&mut Hold {
            rate: self.rate,
            old: self.old.lock().unwrap_or_else(PoisonError::into_inner),
            before: collect.0,
        })
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "old entries at {} times the rate", self.rate)
    }
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
                let found = for_architecture!(AnyConfig, &config, config => {
                    let plans = plans(&recipe, config).unwrap();
                    let first = (config.n_layer, config.n_embd);
                    let grown = plans.iter().map(|plan| (plan.to.n_layer, plan.to.n_embd));
                    [first].into_iter().chain(grown).collect::<Vec<_>>()
                });
                assert_eq!(found, sizes, "{name}");
            }
        }
    }
}
