//! The configuration of a model of any architecture.

use meta_state::{MetaStateConfig, MetaStateModelConfig};
use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError},
    config::{ChannelMixerConfig, ConfigError, LayerDims},
    layers::ChannelMixConfig,
};
use serde::{Deserialize, Serialize};

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// RWKV-7 as published.
    Rwkv7,
    /// RWKV-7 whose channel mixers are Meta-State.
    MetaState,
}

/// The configuration of a model of any architecture. Its JSON is that of the configuration with one more key, `architecture`.
///
/// ```
/// let config = metastate_zoo::config("150m-meta-state-paper")?;
/// assert_eq!((config.architecture(), config.dims().n_embd), ("meta-state", 768));
/// assert_eq!(config.num_params(), 111_595_776);
/// # Ok::<(), rwkv7_core::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "kebab-case")]
pub enum AnyConfig {
    /// RWKV-7.
    Rwkv7(Rwkv7Config),
    /// RWKV-7 with Meta-State.
    MetaState(MetaStateModelConfig),
}

/// Evaluates an expression for the content of an [`AnyConfig`] or an [`AnyModel`](crate::AnyModel), whatever its architecture.
///
/// ```
/// use metastate_zoo::{AnyConfig, for_architecture};
///
/// let config = metastate_zoo::config("150m-rwkv7")?;
/// let official = for_architecture!(AnyConfig, &config, config => config.num_params_official());
/// assert_eq!(official, 167_688_192);
/// # Ok::<(), rwkv7_core::config::ConfigError>(())
/// ```
#[macro_export]
macro_rules! for_architecture {
    ($enum:ident, $any:expr, $one:ident => $body:expr) => {
        match $any {
            $crate::$enum::Rwkv7($one) => $body,
            $crate::$enum::MetaState($one) => $body,
        }
    };
}

impl AnyConfig {
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
        for_architecture!(AnyConfig, self, config => of(config))
    }

    /// The configuration without the channel mixer.
    pub fn base(&self) -> Rwkv7Config<()> {
        for_architecture!(AnyConfig, self, config => config.with_ffn(()))
    }

    /// The part of the configuration that every layer sees.
    pub fn dims(&self) -> LayerDims {
        for_architecture!(AnyConfig, self, config => config.dims())
    }

    /// A model of the same architecture whose layers, widths and head size are divided by `by`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `by` does not divide the width and the head size, or if the result is no model.
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
        for_architecture!(AnyConfig, self, config => config.num_params())
    }

    /// Number of values in the running state of one sequence, whatever its length.
    pub fn num_state_values(&self) -> usize {
        for_architecture!(AnyConfig, self, config => config.num_state_values())
    }

    /// Checks that a model of these dimensions exists.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, what was found and what is expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for_architecture!(AnyConfig, self, config => config.validate())
    }
}

/// The architecture in the metadata. Without metadata: Meta-State if there is a tensor `*.W_oms`, else RWKV-7.
pub(crate) fn arch_of(checkpoint: &Checkpoint) -> Arch {
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
