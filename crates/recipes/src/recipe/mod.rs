//! A recipe: everything that decides a training run but the data files' content, as a small JSON file.

mod error;
mod memory;
mod model;
mod overrides;
mod paths;
mod validate;

use std::path::PathBuf;

use rwkv7_core::{MatmulPrecision, files, optimizer::OptimizerConfig};
use scaling::{Embedding, Method};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo::Arch;

use crate::data::windows::Sampling;

pub use error::RecipeError;
pub use model::{MetaStateOverrides, ModelOverrides};

/// Bytes of the largest recipe that is read.
const LARGEST: u64 = 1 << 24;

/// The task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Reverse the digits of random numbers; needs no data.
    Reverse,
    /// Predict the next token of a text.
    Text,
}

/// Linear warm-up, then a cosine from peak to final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearningRate {
    /// Highest rate.
    pub peak: f64,
    /// Rate at the last step.
    pub r#final: f64,
    /// Steps from 1 % of the peak to all of it.
    pub warmup_steps: usize,
}

impl Default for LearningRate {
    fn default() -> Self {
        Self {
            peak: 6e-4,
            r#final: 6e-5,
            warmup_steps: 10,
        }
    }
}

/// A growth in the middle of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Optimizer steps before it, a multiple of `steps_per_epoch`.
    pub after: usize,
    /// The larger model: its name, or the fields of the configuration that change.
    pub to: Value,
    /// How.
    #[serde(default)]
    pub method: Method,
    /// How the larger model's embedding gets its width.
    #[serde(default)]
    pub embedding: Embedding,
    /// Which blocks of the larger model are new; spread over the depth where there is none.
    #[serde(default)]
    pub new_blocks: Vec<usize>,
    /// Whether the optimizer's moments grow too; otherwise it starts anew.
    #[serde(default = "grown")]
    pub optimizer: bool,
    /// Steps after it from 1 % of the learning rate to all of it.
    #[serde(default = "warmup_steps")]
    pub warmup_steps: usize,
    /// Factor on the learning rate of the entries that existed before: 1 trains all alike, 0 the new entries alone.
    #[serde(default = "one")]
    pub old_rate: f64,
}

fn grown() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

/// Adam's first steps with moments of zero and a late step count are about twice too large for this long.
fn warmup_steps() -> usize {
    50
}

/// A training recipe. The defaults train a 0.1B-shaped model on a text with the official hyper-parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The task.
    pub task: Task,
    /// `rwkv7` or `meta-state`; by default the preset's, or else `rwkv7`.
    pub arch: Option<Arch>,
    /// Digits of the longest number; task `reverse` only.
    pub max_digits: usize,
    /// The model's size.
    pub model: ModelOverrides,
    /// A trained model to start from: a checkpoint, a run's folder or a name. Architecture and size are its own, not `arch` and
    /// `model`.
    pub start: Option<String>,
    /// Growths, in the order of their steps.
    pub grow: Vec<Growth>,
    /// Divides layers, width, head size and low-rank widths of `model` and of the models that `grow` names: a ladder of published sizes on
    /// a small machine.
    pub scale_down: usize,
    /// `byte`, an RWKV World vocabulary or a `tokenizer.json`.
    pub tokenizer: String,
    /// Files and folders with the text; task `text` only.
    #[serde(serialize_with = "paths::as_text")]
    pub data: Vec<PathBuf>,
    /// The key of the text in `.jsonl` files.
    pub text_field: String,
    /// Files and folders with text for validation; empty: the last part of `data`.
    #[serde(serialize_with = "paths::as_text")]
    pub validation_data: Vec<PathBuf>,
    /// How much of `data` is kept for validation where `validation_data` is empty.
    pub validation_fraction: f64,
    /// Tokens a window.
    pub context: usize,
    /// How training windows are drawn.
    pub sampling: Sampling,
    /// Windows a batch.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulation: usize,
    /// Optimizer steps in all.
    pub steps: usize,
    /// Steps between validations and checkpoints.
    pub steps_per_epoch: usize,
    /// Validation batches after every epoch, spread over the validation text.
    pub validation_batches: usize,
    /// Learning rate.
    pub learning_rate: LearningRate,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// Largest global norm of the gradients.
    pub clip_norm: f64,
    /// Whether the largest logits are pulled towards 0, as in the official training.
    pub l2_wrap: bool,
    /// Seed of initial values and data order.
    pub seed: u64,
    /// Arithmetic of the products with weight matrices in training; `products` in older recipes.
    #[serde(alias = "products")]
    pub matmul_precision: MatmulPrecision,
    /// Whether every layer measures itself at every step, for architectures that can; slower.
    pub diagnostics: bool,
    /// Checkpoints to keep, besides the one with the best validation loss.
    pub keep_checkpoints: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            task: Task::Text,
            arch: None,
            max_digits: 15,
            model: ModelOverrides::default(),
            start: None,
            grow: Vec::new(),
            scale_down: 1,
            tokenizer: "byte".into(),
            data: Vec::new(),
            text_field: "text".into(),
            validation_data: Vec::new(),
            validation_fraction: 0.1,
            context: 512,
            sampling: Sampling::Random,
            batch_size: 16,
            accumulation: 1,
            steps: 10_000,
            steps_per_epoch: 250,
            validation_batches: 20,
            learning_rate: LearningRate::default(),
            optimizer: OptimizerConfig::default(),
            clip_norm: 1.0,
            l2_wrap: true,
            seed: 0,
            matmul_precision: MatmulPrecision::F32,
            diagnostics: false,
            keep_checkpoints: 2,
        }
    }
}

const BUILT_IN: [(&str, &str); 6] = [
    ("reverse", include_str!("../../recipes/reverse.json")),
    (
        "shakespeare-char",
        include_str!("../../recipes/shakespeare-char.json"),
    ),
    ("text", include_str!("../../recipes/text.json")),
    ("paper", include_str!("../../recipes/paper.json")),
    ("grow", include_str!("../../recipes/grow.json")),
    (
        "grow-stepwise",
        include_str!("../../recipes/grow-stepwise.json"),
    ),
];

impl Recipe {
    /// Names of the built-in recipes.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// A built-in recipe by name, or one from a JSON file.
    ///
    /// # Errors
    ///
    /// [`RecipeError`] names the recipe and the key.
    pub fn load(name: &str) -> Result<Self, RecipeError> {
        let text = match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => (*text).to_string(),
            None => {
                let path = PathBuf::from(name);
                files::read_text(&path, LARGEST).map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => RecipeError::Unknown {
                        name: name.into(),
                        known: Self::built_in().collect::<Vec<_>>().join(", "),
                    },
                    _ => RecipeError::Read { path, source },
                })?
            }
        };
        Self::parse(name, &text)
    }

    /// A recipe from JSON; `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Json`].
    pub fn parse(name: &str, json: &str) -> Result<Self, RecipeError> {
        serde_json::from_str(json).map_err(|error| RecipeError::Json {
            name: name.into(),
            reason: error.to_string(),
        })
    }

    /// The recipe as JSON, every key spelled out.
    pub fn to_json(&self) -> Value {
        serde_json::json!(self)
    }

    /// Number of epochs; the last one has fewer steps where the steps are no multiple.
    pub fn epochs(&self) -> usize {
        self.steps.div_ceil(self.steps_per_epoch)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn built_in_recipes_are_valid() {
        for name in Recipe::built_in() {
            let mut recipe = Recipe::load(name).unwrap();
            if recipe.task == Task::Text {
                recipe.data.push("text.txt".into());
            }
            recipe.validate().unwrap();
            recipe.model.config(recipe.arch, 256).unwrap();
            let json = recipe.to_json().to_string();
            assert_eq!(Recipe::parse("again", &json).unwrap(), recipe);
        }
        let shakespeare = Recipe::load("shakespeare-char")
            .unwrap()
            .model
            .config(None, 256)
            .unwrap();
        assert!(
            shakespeare.num_params() < 900_000,
            "{}",
            shakespeare.num_params()
        );
    }

    /// The key was called `products` before.
    #[test]
    fn a_recipe_with_an_old_key_is_read() {
        let recipe = Recipe::parse("old.json", r#"{"products": "bf16"}"#).unwrap();
        assert_eq!(recipe.matmul_precision, MatmulPrecision::Bf16);
        let recipe = Recipe::default().with_overrides(&["products=bf16".into()]);
        assert_eq!(recipe.unwrap().matmul_precision, MatmulPrecision::Bf16);
    }
}
