//! Models of any architecture of this project.

use std::path::Path;

use burn::tensor::Device;
use meta_state::{MetaStateConfig, MetaStateModelConfig};
use rwkv7_core::{
    Rwkv7, Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError},
    config::{ChannelMixerConfig, ConfigError, LayerDims},
    layers::ChannelMixConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{entries, run_folder};

/// An architecture of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// RWKV-7 as published.
    Rwkv7,
    /// RWKV-7 whose channel mixers are Meta-State.
    MetaState,
}

/// The configuration of a model of any architecture; in JSON with the key `architecture`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "kebab-case")]
pub enum ModelConfig {
    /// RWKV-7.
    Rwkv7(Rwkv7Config),
    /// RWKV-7 with Meta-State.
    MetaState(MetaStateModelConfig),
}

/// A model with its configuration.
#[derive(Debug)]
pub struct Model<S: ChannelMixerConfig> {
    /// The configuration.
    pub config: Rwkv7Config<S>,
    /// The model.
    pub network: Rwkv7<S::Layer>,
}

/// A model of any architecture with its configuration.
#[derive(Debug)]
pub enum AnyModel {
    /// RWKV-7.
    Rwkv7(Box<Model<ChannelMixConfig>>),
    /// RWKV-7 with Meta-State.
    MetaState(Box<Model<MetaStateConfig>>),
}

/// Runs an expression for the content of a [`ModelConfig`] or [`AnyModel`], whatever its architecture.
#[macro_export]
macro_rules! for_architecture {
    ($enum:ident, $any:expr, $one:ident => $body:expr) => {
        match $any {
            $crate::$enum::Rwkv7($one) => $body,
            $crate::$enum::MetaState($one) => $body,
        }
    };
}

impl ModelConfig {
    /// The configuration of the model in a checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::config`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        Ok(match arch_of(checkpoint) {
            Arch::Rwkv7 => Self::Rwkv7(checkpoint.config()?),
            Arch::MetaState => Self::MetaState(checkpoint.config()?),
        })
    }

    /// The architecture.
    pub fn arch(&self) -> Arch {
        match self {
            Self::Rwkv7(_) => Arch::Rwkv7,
            Self::MetaState(_) => Arch::MetaState,
        }
    }

    /// The architecture's name in files and on the command line.
    pub fn architecture(&self) -> &'static str {
        fn of<S: ChannelMixerConfig>(_: &Rwkv7Config<S>) -> &'static str {
            S::ARCHITECTURE
        }
        for_architecture!(ModelConfig, self, config => of(config))
    }

    /// The dimensions that every architecture has; the channel mixer is left out.
    pub fn base(&self) -> Rwkv7Config<()> {
        for_architecture!(ModelConfig, self, config => config.with_ffn(()))
    }

    /// The part of the configuration that every layer sees.
    pub fn dims(&self) -> LayerDims {
        for_architecture!(ModelConfig, self, config => config.dims())
    }

    /// A model of the same kind whose layers, widths and head size are divided by `by`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if they cannot be.
    pub fn scaled_down(self, by: usize) -> Result<Self, ConfigError> {
        let base = self.base();
        for (field, value) in [("n_embd", base.n_embd), ("head_size", base.head_size)] {
            if !value.is_multiple_of(by) {
                return Err(ConfigError::field(
                    "scale_down",
                    by,
                    format!("a divisor of {field} = {value}"),
                ));
            }
        }
        let part = |value: usize| (value / by).max(1);
        let base = Rwkv7Config {
            n_layer: (base.n_layer as f64 / by as f64).round().max(1.0) as usize,
            n_embd: base.n_embd / by,
            head_size: base.head_size / by,
            decay_rank: part(base.decay_rank),
            in_context_rank: part(base.in_context_rank),
            value_rank: part(base.value_rank),
            gate_rank: part(base.gate_rank),
            ..base
        };
        let smaller = match self {
            Self::Rwkv7(config) => {
                let ffn_size = part(config.ffn.ffn_size);
                Self::Rwkv7(base.with_ffn(ChannelMixConfig { ffn_size }))
            }
            Self::MetaState(config) => Self::MetaState(base.with_ffn(config.ffn)),
        };
        smaller.validate()?;
        Ok(smaller)
    }

    /// Exact number of parameters.
    pub fn num_params(&self) -> usize {
        for_architecture!(ModelConfig, self, config => config.num_params())
    }

    /// Number of values in the running state of one sequence, whatever its length.
    pub fn num_state_values(&self) -> usize {
        for_architecture!(ModelConfig, self, config => config.num_state_values())
    }

    /// Checks that a model of these dimensions exists.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, what was found and what is expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for_architecture!(ModelConfig, self, config => config.validate())
    }
}

/// A growth to something that is no model of the same kind.
#[derive(Debug, thiserror::Error)]
#[error("growth to {given}: {reason}")]
pub struct TargetError {
    /// What was asked for.
    pub given: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// What a model of configuration `from` becomes: `to` is the name of a model, or the fields that change; `ffn_size` means that of
/// the channel mixer, and nothing where it has none.
///
/// # Errors
///
/// [`TargetError`].
pub fn changed<S: ChannelMixerConfig>(
    from: &Rwkv7Config<S>,
    to: &Value,
) -> Result<Rwkv7Config<S>, TargetError> {
    let wrong = |reason: String| TargetError {
        given: to.to_string(),
        reason,
    };
    if let Value::String(name) = to {
        let named = entries::config(name).map_err(|error| wrong(error.to_string()))?;
        if named.architecture() != S::ARCHITECTURE {
            return Err(wrong(format!(
                "a model of architecture {}, and this one is of architecture {}; `convert --arch` changes it",
                named.architecture(),
                S::ARCHITECTURE
            )));
        }
        let mut json = json!(named);
        if let Value::Object(fields) = &mut json {
            fields.remove(ARCHITECTURE);
        }
        return serde_json::from_value(json).map_err(|error| wrong(error.to_string()));
    }
    let Value::Object(changes) = to else {
        return Err(wrong("expected a name or a JSON object".into()));
    };
    let mut config = json!(from);
    for (key, value) in changes {
        let key = match key.as_str() {
            "second_half" => "ffn",
            key => key,
        };
        match (&mut config[key], value) {
            (_, Value::String(name)) if key == ARCHITECTURE && name == S::ARCHITECTURE => {
                if let Value::Object(config) = &mut config {
                    config.remove(ARCHITECTURE);
                }
            }
            (_, value) if key == ARCHITECTURE => {
                return Err(wrong(format!(
                    "a model of architecture {value}, and this one is of architecture {}; `convert --arch` changes it",
                    S::ARCHITECTURE
                )));
            }
            (Value::Object(part), Value::Object(changes)) => part.extend(changes.clone()),
            // As recipes call it; other channel mixers have none.
            (Value::Null, size) if key == "ffn_size" => {
                if let Some(fields) = config.as_object_mut() {
                    fields.remove(key);
                }
                if let Some(place) = config["ffn"].get_mut(key) {
                    *place = size.clone();
                }
            }
            (place, value) => *place = value.clone(),
        }
    }
    serde_json::from_value(config).map_err(|error| wrong(error.to_string()))
}

/// The key of a configuration's architecture in JSON.
const ARCHITECTURE: &str = "architecture";

/// Floating-point operations of training for each token: six for each parameter but the embedding's, which is looked up, and
/// 27 for each value of the state, of which a step reads or changes each about nine times and training does thrice as much.
pub fn flops_per_token<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> f64 {
    let table = config.vocab_size * config.embed_width.unwrap_or(config.n_embd);
    let matrices = config.num_params() - table;
    6.0 * matrices as f64 + 27.0 * config.num_state_values() as f64
}

impl AnyModel {
    /// Loads the model in a checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::load`].
    pub fn load(checkpoint: Checkpoint, device: &Device) -> Result<Self, CheckpointError> {
        fn model<S: ChannelMixerConfig>(
            checkpoint: Checkpoint,
            device: &Device,
        ) -> Result<Box<Model<S>>, CheckpointError> {
            let (config, network) = checkpoint.load(device)?;
            Ok(Box::new(Model { config, network }))
        }
        Ok(match arch_of(&checkpoint) {
            Arch::Rwkv7 => Self::Rwkv7(model(checkpoint, device)?),
            Arch::MetaState => Self::MetaState(model(checkpoint, device)?),
        })
    }

    /// Opens a checkpoint and loads the model in it.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`] and [`Checkpoint::load`].
    pub fn open(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        Self::load(run_folder::open(path)?, device)
    }

    /// Vocabulary size.
    pub fn vocab_size(&self) -> usize {
        for_architecture!(AnyModel, self, model => model.config.vocab_size)
    }
}

/// What a checkpoint says; else Meta-State where it has the layer's tensors, and RWKV-7, whose files say nothing.
fn arch_of(checkpoint: &Checkpoint) -> Arch {
    let meta_state = match checkpoint.architecture() {
        Some(name) => name == MetaStateConfig::ARCHITECTURE,
        None => checkpoint
            .shapes()
            .any(|(name, _)| name.ends_with(".W_oms")),
    };
    if meta_state {
        Arch::MetaState
    } else {
        Arch::Rwkv7
    }
}
