//! A recipe: everything that decides a training run but the data files' content, as a small JSON file.

mod model;

use std::path::PathBuf;

use rwkv7_core::{MatmulPrecision, optimizer::OptimizerConfig};
use scaling::{Embedding, Method};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zoo::Arch;

use crate::data::windows::Sampling;

pub use model::{MetaStateSpec, ModelSpec};

/// What is learned.
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
    #[serde(default = "yes")]
    pub optimizer: bool,
    /// Steps after it from 1 % of the learning rate to all of it.
    #[serde(default = "warmup_steps")]
    pub warmup_steps: usize,
    /// Factor on the learning rate of what was there before: 1 trains all alike, 0 the new entries alone.
    #[serde(default = "one")]
    pub old_rate: f64,
}

fn yes() -> bool {
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
    /// What is learned.
    pub task: Task,
    /// `rwkv7` or `meta-state`; by default the preset's, or else `rwkv7`.
    pub arch: Option<Arch>,
    /// Digits of the longest number; task `reverse` only.
    pub max_digits: usize,
    /// The model's size.
    pub model: ModelSpec,
    /// A trained model to start from: a checkpoint, a run's folder or a name. Architecture and size are its own, not `arch` and
    /// `model`.
    pub start: Option<String>,
    /// Growths, in the order of their steps.
    pub grow: Vec<Growth>,
    /// Divides layers, width, head size and low-rank widths of `model` and of what `grow` names: a ladder of published sizes on
    /// a small machine.
    pub scale_down: usize,
    /// `byte`, an RWKV World vocabulary or a `tokenizer.json`.
    pub tokenizer: String,
    /// Files and folders with the text; task `text` only.
    pub data: Vec<PathBuf>,
    /// The key of the text in `.jsonl` files.
    pub text_field: String,
    /// Files and folders with text for validation; empty: the last part of `data`.
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
            model: ModelSpec::default(),
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

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a built-in recipe nor a file.
    #[error("no recipe `{name}`: neither a file nor one of {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The built-in recipes.
        known: String,
    },
    /// The file cannot be read.
    #[error("recipe {}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The JSON is wrong: its syntax, a key or a type.
    #[error("recipe {name}: {reason}")]
    Json {
        /// The recipe.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An override of a key that there is not.
    #[error("--set {key}: a recipe has no such key; the keys are: {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// All keys.
        known: String,
    },
    /// An override without a value, or with one of the wrong type.
    #[error("--set {setting}: {reason}")]
    Override {
        /// What was given.
        setting: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("recipe: `{key}` is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
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
                std::fs::read_to_string(&path).map_err(|source| match source.kind() {
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

    /// The recipe with `key=value` overrides; keys of parts are written `learning_rate.peak`. Values are JSON, or else
    /// text. A `model.preset` takes the place of all that the recipe says of the model; other overrides change its parts.
    ///
    /// # Errors
    ///
    /// [`RecipeError`] names the override and, for an unknown key, lists all there are.
    pub fn with_overrides(&self, settings: &[String]) -> Result<Self, RecipeError> {
        let mut recipe = self.clone();
        if settings
            .iter()
            .any(|setting| setting.starts_with("model.preset="))
        {
            recipe.model = ModelSpec::default();
        }
        for setting in settings {
            let mut json = recipe.to_json();
            let wrong = |reason: String| RecipeError::Override {
                setting: setting.clone(),
                reason,
            };
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| wrong("expected key=value".into()))?;
            let key = match key {
                "products" => "matmul_precision",
                key => key,
            };
            let field = key.strip_prefix("model.meta_state.");
            if field.is_some() {
                json["model"]["meta_state"] = serde_json::json!(recipe.model.meta_state());
            }
            let known = keys(&json, "");
            let place = key
                .split('.')
                .try_fold(&mut json, |place, part| place.get_mut(part));
            let Some(place) = place else {
                return Err(RecipeError::UnknownKey {
                    key: key.into(),
                    known: known.join(", "),
                });
            };
            *place = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
            if let Some(field) = field.and_then(|field| field.split('.').next()) {
                // The others stay those of the preset, which a later setting may change.
                let layer = &mut json["model"]["meta_state"];
                let given = recipe.model.meta_state.take().unwrap_or_default();
                *layer = given.with(field, layer[field].take());
            }
            // Back and forth, so that a part that was given by its name can be changed further.
            recipe = serde_json::from_value(json).map_err(|error| wrong(error.to_string()))?;
        }
        recipe.check_use(settings)?;
        Ok(recipe)
    }

    /// Refuses overrides of what the recipe does not look at.
    fn check_use(&self, settings: &[String]) -> Result<(), RecipeError> {
        let preset = self.model.preset.as_deref().map(zoo::config);
        let preset = preset.and_then(Result::ok).map(|config| config.arch());
        let arch = self.arch.or(preset);
        for setting in settings {
            let key = setting.split('=').next().unwrap_or_default();
            let reason = if self.start.is_some() && (key == "arch" || key.starts_with("model.")) {
                "the model in `start` has its own architecture and size; `grow` changes the size"
            } else if key == "model.ffn_size" && arch == Some(Arch::MetaState) {
                "a model of architecture meta-state has no feed-forward layer"
            } else {
                continue;
            };
            return Err(RecipeError::Override {
                setting: setting.clone(),
                reason: reason.into(),
            });
        }
        Ok(())
    }

    /// The recipe as JSON, every key spelled out.
    pub fn to_json(&self) -> Value {
        serde_json::json!(self)
    }

    /// Number of epochs; the last one has fewer steps where the steps are no multiple.
    pub fn epochs(&self) -> usize {
        self.steps.div_ceil(self.steps_per_epoch)
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Value`] names the key.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let wrong = |key, found: &dyn ToString, expected| {
            Err(RecipeError::Value {
                key,
                found: found.to_string(),
                expected,
            })
        };
        for (key, value) in [
            ("context", self.context),
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("steps", self.steps),
            ("steps_per_epoch", self.steps_per_epoch),
            ("validation_batches", self.validation_batches),
            ("keep_checkpoints", self.keep_checkpoints),
            ("scale_down", self.scale_down),
        ] {
            if value == 0 {
                return wrong(key, &value, "at least 1");
            }
        }
        if self.max_digits < 3 {
            return wrong(
                "max_digits",
                &self.max_digits,
                "at least 3, as shorter numbers are all seen in training",
            );
        }
        if self.task == Task::Text && self.data.is_empty() {
            return wrong("data", &"empty", "files or folders with text: --data PATH");
        }
        if let (Task::Reverse, Some(path)) = (self.task, self.data.first()) {
            return wrong(
                "data",
                &path.display(),
                "none for the task `reverse`, which reads no text: --recipe text or shakespeare-char trains on one",
            );
        }
        if self.task == Task::Reverse && self.tokenizer != "byte" {
            return wrong(
                "tokenizer",
                &self.tokenizer,
                "byte, which the task `reverse` is written in",
            );
        }
        let rate = &self.learning_rate;
        if !(rate.peak > 0.0 && rate.peak <= 0.5) {
            return wrong(
                "learning_rate.peak",
                &rate.peak,
                "more than 0 and at most 0.5, as the decay bias gets twice that",
            );
        }
        if !(rate.r#final > 0.0 && rate.r#final <= rate.peak) {
            return wrong(
                "learning_rate.final",
                &rate.r#final,
                "more than 0 and at most the peak",
            );
        }
        if rate.warmup_steps >= self.steps {
            return wrong(
                "learning_rate.warmup_steps",
                &rate.warmup_steps,
                "fewer than steps",
            );
        }
        let mut before = None;
        for Growth {
            after, old_rate, ..
        } in &self.grow
        {
            let later = before.is_none_or(|before| before < *after);
            if !(later && *after < self.steps && after.is_multiple_of(self.steps_per_epoch)) {
                return wrong(
                    "grow.after",
                    after,
                    "a multiple of steps_per_epoch, fewer than steps, and more than that of the growth before",
                );
            }
            if !(0.0..=1.0).contains(old_rate) {
                return wrong("grow.old_rate", old_rate, "from 0 to 1");
            }
            before = Some(*after);
        }
        if !(self.validation_fraction > 0.0 && self.validation_fraction < 1.0) {
            return wrong(
                "validation_fraction",
                &self.validation_fraction,
                "between 0 and 1",
            );
        }
        let adam = &self.optimizer;
        for (key, beta) in [
            ("optimizer.beta_1", adam.beta_1),
            ("optimizer.beta_2", adam.beta_2),
        ] {
            if !(0.0..1.0).contains(&beta) {
                return wrong(key, &beta, "at least 0 and less than 1");
            }
        }
        if !(adam.epsilon > 0.0 && adam.epsilon.is_finite()) {
            return wrong("optimizer.epsilon", &adam.epsilon, "more than 0");
        }
        if !(adam.weight_decay >= 0.0 && adam.weight_decay.is_finite()) {
            return wrong("optimizer.weight_decay", &adam.weight_decay, "at least 0");
        }
        if !(self.clip_norm > 0.0 && self.clip_norm.is_finite()) {
            return wrong("clip_norm", &self.clip_norm, "more than 0");
        }
        Ok(())
    }
}

/// All keys of an object, those of its parts with a dot.
fn keys(json: &Value, prefix: &str) -> Vec<String> {
    let Value::Object(object) = json else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(_) => found.extend(keys(value, &format!("{key}."))),
            _ => found.push(key),
        }
    }
    found
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

    #[test]
    fn overrides_reach_every_key() {
        let recipe = Recipe::load("reverse").unwrap();
        let settings = [
            "learning_rate.peak=1e-3",
            "model.n_layer=3",
            "tokenizer=some/path",
            "l2_wrap=true",
        ];
        let changed = recipe.with_overrides(&settings.map(String::from)).unwrap();
        assert_eq!(changed.learning_rate.peak, 1e-3);
        assert_eq!(changed.model.n_layer, Some(3));
        assert_eq!(changed.tokenizer, "some/path");
        assert!(changed.l2_wrap);
    }

    #[test]
    fn a_field_of_the_layer_changes_that_field_of_the_preset_in_any_order() {
        let [shift, preset] = [
            "model.meta_state.token_shift=true",
            "model.preset=450m-meta-state-paper",
        ];
        let expected = meta_state::MetaStateConfig {
            token_shift: true,
            ..meta_state::MetaStateConfig::paper()
        };
        let layer = |recipe: &Recipe| match recipe.model.config(recipe.arch, 256).unwrap() {
            zoo::AnyConfig::MetaState(config) => config.ffn,
            other => panic!("{other:?}"),
        };
        for settings in [[shift, preset], [preset, shift]] {
            let recipe = Recipe::default().with_overrides(&settings.map(String::from));
            assert_eq!(layer(&recipe.unwrap()), expected);
        }
        let json = r#"{"model": {"preset": "450m-meta-state-paper", "meta_state": {"token_shift": true}}}"#;
        assert_eq!(layer(&Recipe::parse("mine.json", json).unwrap()), expected);
        let settings = ["model.meta_state=paper", "model.meta_state.removal=self"];
        let recipe = Recipe::parse("mine.json", json).unwrap();
        let recipe = recipe.with_overrides(&settings.map(String::from)).unwrap();
        assert_eq!(
            layer(&recipe),
            meta_state::MetaStateConfig {
                removal: meta_state::Removal::Own,
                ..meta_state::MetaStateConfig::paper()
            }
        );
        let settings = [preset, "arch=rwkv7"].map(String::from);
        let recipe = Recipe::default().with_overrides(&settings).unwrap();
        let error = recipe.model.config(recipe.arch, 256).unwrap_err();
        assert!(
            error.to_string().contains("450m-meta-state-paper"),
            "{error}"
        );
    }

    #[test]
    fn wrong_keys_types_and_values_are_named() {
        let recipe = Recipe::load("reverse").unwrap();
        let error = |setting: &str| {
            recipe
                .with_overrides(&[setting.into()])
                .unwrap_err()
                .to_string()
        };
        assert!(error("learning_rate.peek=1").contains("learning_rate.peak"));
        assert!(error("steps=many").contains("steps=many: invalid type"));
        assert!(error("steps").contains("key=value"));
        let error = Recipe::parse("mine.json", r#"{"stepz": 3}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("mine.json") && error.contains("stepz"),
            "{error}"
        );
        let error = Recipe::load("revers").unwrap_err().to_string();
        assert!(error.contains("shakespeare-char"), "{error}");
        let mut recipe = recipe;
        recipe.batch_size = 0;
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "recipe: `batch_size` is 0, expected at least 1"
        );
        for setting in [
            "optimizer.beta_1=1",
            "optimizer.epsilon=0",
            "optimizer.weight_decay=-1",
        ] {
            let recipe = Recipe::load("reverse").unwrap();
            let recipe = recipe.with_overrides(&[setting.into()]).unwrap();
            let error = recipe.validate().unwrap_err().to_string();
            let key = setting.split('=').next().unwrap();
            assert!(error.contains(key), "{error}");
        }
    }
}
