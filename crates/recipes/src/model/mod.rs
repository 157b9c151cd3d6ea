//! Models of any architecture of this project.

mod spec;

use std::path::Path;

use burn::tensor::Device;
use meta_state::{MetaStateConfig, MetaStateModelConfig};
use rwkv7_core::{
    Rwkv7, Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError},
    config::{ConfigError, LayerDims, SecondHalfConfig},
};
use serde::{Deserialize, Serialize};

pub use spec::ModelSpec;

/// An architecture of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// RWKV-7 as published.
    Rwkv7,
    /// RWKV-7 whose second halves are Meta-State.
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
pub struct Model<S: SecondHalfConfig> {
    /// The configuration.
    pub config: Rwkv7Config<S>,
    /// The model.
    pub network: Rwkv7<S::Layer>,
}

/// A model of any architecture with its configuration.
#[derive(Debug)]
pub enum AnyModel {
    /// RWKV-7.
    Rwkv7(Box<Model<rwkv7_core::layers::ChannelMixConfig>>),
    /// RWKV-7 with Meta-State.
    MetaState(Box<Model<MetaStateConfig>>),
}

/// Runs an expression for the content of a [`ModelConfig`] or [`AnyModel`], whatever its architecture.
#[macro_export]
macro_rules! for_architecture {
    ($enum:ident, $any:expr, $one:ident => $body:expr) => {
        match $any {
            $crate::model::$enum::Rwkv7($one) => $body,
            $crate::model::$enum::MetaState($one) => $body,
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
        fn of<S: SecondHalfConfig>(_: &Rwkv7Config<S>) -> &'static str {
            S::ARCHITECTURE
        }
        for_architecture!(ModelConfig, self, config => of(config))
    }

    /// The dimensions that every architecture has; the second half is left out.
    pub fn base(&self) -> Rwkv7Config<()> {
        for_architecture!(ModelConfig, self, config => config.with_second_half(()))
    }

    /// The part of the configuration that every layer sees.
    pub fn dims(&self) -> LayerDims {
        for_architecture!(ModelConfig, self, config => config.dims())
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

impl AnyModel {
    /// Loads the model in a checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::load`].
    pub fn load(checkpoint: Checkpoint, device: &Device) -> Result<Self, CheckpointError> {
        fn model<S: SecondHalfConfig>(
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
        Self::load(Checkpoint::open(path)?, device)
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
