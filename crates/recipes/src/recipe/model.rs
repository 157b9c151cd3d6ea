//! A model's size as recipes give it: the differences from a preset or from the official training script.

use meta_state::MetaStateConfig;
use rwkv7_core::{Rwkv7Config, config::ConfigError, layers::ChannelMixConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use zoo::{AnyConfig, Arch};

/// The model's size: a published one by name, or dimensions. Dimensions that are left out follow the official training
/// script.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOverrides {
    /// A published size such as `world-0.1b`; the other fields override its parts.
    pub preset: Option<String>,
    /// Vocabulary size; by default the tokenizer's.
    pub vocab_size: Option<usize>,
    /// Layers.
    pub n_layer: Option<usize>,
    /// Embedding width.
    pub n_embd: Option<usize>,
    /// Head size.
    pub head_size: Option<usize>,
    /// Low-rank width of the decay.
    pub decay_rank: Option<usize>,
    /// Low-rank width of the in-context learning rate.
    pub in_context_rank: Option<usize>,
    /// Low-rank width of the value residual.
    pub value_rank: Option<usize>,
    /// Low-rank width of the gate.
    pub gate_rank: Option<usize>,
    /// Feed-forward width; architecture `rwkv7` only.
    pub ffn_size: Option<usize>,
    /// The layer of architecture `meta-state`.
    pub meta_state: Option<MetaStateOverrides>,
}

/// Fields of a Meta-State layer; the others are those of the layer of [`preset`](ModelOverrides::preset), of `practical` where that is no
/// Meta-State model. In JSON also `"paper"` or `"practical"`, which give all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct MetaStateOverrides(Map<String, Value>);

impl TryFrom<Value> for MetaStateOverrides {
    type Error = serde_json::Error;

    fn try_from(given: Value) -> Result<Self, Self::Error> {
        let layer = MetaStateConfig::deserialize(&given)?;
        match (given, json!(layer)) {
            (Value::Object(fields), _) | (_, Value::Object(fields)) => Ok(Self(fields)),
            _ => unreachable!("a layer is an object"),
        }
    }
}

impl MetaStateOverrides {
    /// The same with another value of a field, which is checked when the recipe is read again.
    pub(crate) fn with(mut self, field: &str, value: Value) -> Value {
        self.0.insert(field.into(), value);
        Value::Object(self.0)
    }

    /// The layer of `preset` with these fields.
    fn over(&self, preset: MetaStateConfig) -> MetaStateConfig {
        let mut layer = json!(preset);
        if let Value::Object(layer) = &mut layer {
            layer.extend(self.0.clone());
        }
        match MetaStateConfig::deserialize(layer) {
            Ok(layer) => layer,
            Err(error) => unreachable!("every field was read by itself: {error}"),
        }
    }
}

impl ModelOverrides {
    /// The configuration of the Meta-State layer.
    pub fn meta_state(&self) -> MetaStateConfig {
        let preset = match self.preset.as_deref().map(zoo::config) {
            Some(Ok(AnyConfig::MetaState(preset))) => preset.ffn,
            _ => MetaStateConfig::practical(),
        };
        match &self.meta_state {
            Some(given) => given.over(preset),
            None => preset,
        }
    }

    /// The configuration for a tokenizer with this vocabulary, of the preset's architecture where none is given.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the preset is unknown or the dimensions make no model.
    pub fn config(
        &self,
        arch: Option<Arch>,
        tokenizer_vocab: usize,
    ) -> Result<AnyConfig, ConfigError> {
        let preset = match &self.preset {
            Some(name) => Some(zoo::config(name)?),
            None => None,
        };
        let base = self.dimensions(preset.as_ref(), tokenizer_vocab);
        let n_embd = base.n_embd;
        let of_preset = preset.as_ref().map(AnyConfig::arch);
        if let (Some(Arch::Rwkv7), Some(Arch::MetaState), Some(name)) =
            (arch, of_preset, &self.preset)
        {
            return Err(ConfigError::field(
                "arch",
                "rwkv7",
                format!(
                    "meta-state or nothing, as `model.preset` {name} is of architecture meta-state"
                ),
            ));
        }
        let config = match arch.or(of_preset).unwrap_or(Arch::Rwkv7) {
            Arch::Rwkv7 if self.meta_state.is_some() => {
                return Err(ConfigError::field(
                    "model.meta_state",
                    "given",
                    "none, as the model is of architecture rwkv7; `arch=meta-state` makes it one with that layer",
                ));
            }
            Arch::Rwkv7 => {
                let preset = match &preset {
                    Some(AnyConfig::Rwkv7(preset)) if preset.n_embd == n_embd => {
                        preset.ffn.ffn_size
                    }
                    _ => n_embd.saturating_mul(4),
                };
                let ffn_size = self.ffn_size.unwrap_or(preset);
                AnyConfig::Rwkv7(base.with_ffn(ChannelMixConfig { ffn_size }))
            }
            Arch::MetaState => AnyConfig::MetaState(base.with_ffn(self.meta_state())),
        };
        config.validate().map_err(as_key)?;
        let vocab_size = config.base().vocab_size;
        if vocab_size < tokenizer_vocab {
            return Err(ConfigError::field(
                "model.vocab_size",
                vocab_size,
                format!("at least {tokenizer_vocab}, the number of ids of the tokenizer"),
            ));
        }
        Ok(config)
    }

    /// All but the channel mixer. A preset of another width gives no ranks.
    fn dimensions(&self, preset: Option<&AnyConfig>, tokenizer_vocab: usize) -> Rwkv7Config<()> {
        let base = match preset {
            Some(preset) => preset.base(),
            None => {
                let (layers, width) = (self.n_layer.unwrap_or(12), self.n_embd.unwrap_or(768));
                Rwkv7Config::new(tokenizer_vocab, layers, width).with_ffn(())
            }
        };
        let vocab_size = self.vocab_size.unwrap_or(base.vocab_size);
        let n_layer = self.n_layer.unwrap_or(base.n_layer);
        let n_embd = self.n_embd.unwrap_or(base.n_embd);
        let base = if n_embd == base.n_embd {
            base
        } else {
            Rwkv7Config::new(vocab_size, n_layer, n_embd).with_ffn(())
        };
        Rwkv7Config {
            vocab_size,
            n_layer,
            head_size: self.head_size.unwrap_or(base.head_size),
            decay_rank: self.decay_rank.unwrap_or(base.decay_rank),
            in_context_rank: self.in_context_rank.unwrap_or(base.in_context_rank),
            value_rank: self.value_rank.unwrap_or(base.value_rank),
            gate_rank: self.gate_rank.unwrap_or(base.gate_rank),
            ..base
        }
    }
}

/// The error with the recipe's key of the field.
fn as_key(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Field {
            field,
            found,
            expected,
        } => {
            let key = match field.strip_prefix("ffn.") {
                Some("ffn_size") => "model.ffn_size".into(),
                Some(field) => format!("model.meta_state.{field}"),
                None => format!("model.{field}"),
            };
            ConfigError::Field {
                field: key.into(),
                found,
                expected,
            }
        }
        other => other,
    }
}
