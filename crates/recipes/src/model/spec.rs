//! A model's size as recipes give it.

use meta_state::MetaStateConfig;
use rwkv7_core::{Rwkv7Config, config::ConfigError, layers::ChannelMixConfig};
use serde::{Deserialize, Serialize};

use super::{Arch, ModelConfig};
use crate::zoo;

/// The model's size: a published one by name, or dimensions; what is left out follows the official training script.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSpec {
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
    /// The layer of architecture `meta-state`: `paper`, `practical` or an object of its fields.
    pub meta_state: Option<MetaStateConfig>,
}

impl ModelSpec {
    /// The configuration of the Meta-State layer, given or the preset's.
    pub fn meta_state(&self) -> MetaStateConfig {
        let preset = self.preset.as_deref().map(zoo::config);
        match (&self.meta_state, preset) {
            (Some(given), _) => given.clone(),
            (None, Some(Ok(ModelConfig::MetaState(preset)))) => preset.second_half,
            _ => MetaStateConfig::default(),
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
    ) -> Result<ModelConfig, ConfigError> {
        let preset = match &self.preset {
            Some(name) => Some(zoo::config(name)?),
            None => None,
        };
        let base = match &preset {
            Some(preset) => preset.base(),
            None => {
                let (layers, width) = (self.n_layer.unwrap_or(12), self.n_embd.unwrap_or(768));
                Rwkv7Config::new(tokenizer_vocab, layers, width).with_second_half(())
            }
        };
        let vocab_size = self.vocab_size.unwrap_or(base.vocab_size);
        let n_layer = self.n_layer.unwrap_or(base.n_layer);
        let n_embd = self.n_embd.unwrap_or(base.n_embd);
        let base = if n_embd == base.n_embd {
            base
        } else {
            Rwkv7Config::new(vocab_size, n_layer, n_embd).with_second_half(())
        };
        let base = Rwkv7Config {
            vocab_size,
            n_layer,
            head_size: self.head_size.unwrap_or(base.head_size),
            decay_rank: self.decay_rank.unwrap_or(base.decay_rank),
            in_context_rank: self.in_context_rank.unwrap_or(base.in_context_rank),
            value_rank: self.value_rank.unwrap_or(base.value_rank),
            gate_rank: self.gate_rank.unwrap_or(base.gate_rank),
            ..base
        };
        let arch = arch.or(preset.as_ref().map(ModelConfig::arch));
        let config = match arch.unwrap_or(Arch::Rwkv7) {
            Arch::Rwkv7 if self.meta_state.is_some() => {
                return Err(ConfigError::field(
                    "model.meta_state",
                    "given",
                    "none, as the model is of architecture rwkv7; `arch=meta-state` makes it one with that layer",
                ));
            }
            Arch::Rwkv7 => {
                let preset = match &preset {
                    Some(ModelConfig::Rwkv7(preset)) if preset.n_embd == n_embd => {
                        preset.second_half.ffn_size
                    }
                    _ => 4 * n_embd,
                };
                let ffn_size = self.ffn_size.unwrap_or(preset);
                ModelConfig::Rwkv7(base.with_second_half(ChannelMixConfig { ffn_size }))
            }
            Arch::MetaState => ModelConfig::MetaState(base.with_second_half(self.meta_state())),
        };
        config.validate()?;
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
}
