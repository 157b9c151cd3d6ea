//! A model of any architecture.

use std::path::Path;

use burn::tensor::Device;
use meta_state::MetaStateConfig;
use rwkv7_core::{
    Rwkv7, Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError},
    config::ChannelMixerConfig,
    layers::ChannelMixConfig,
};

use crate::{Arch, config::arch_of, for_architecture, run_folder};

/// A model of one architecture with its configuration.
#[derive(Debug)]
pub struct Model<S: ChannelMixerConfig> {
    /// The configuration.
    pub config: Rwkv7Config<S>,
    /// The model.
    pub network: Rwkv7<S::Layer>,
}

/// A model of any architecture with its configuration.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use metastate_zoo::{AnyModel, Source, for_architecture};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::default();
/// let model = AnyModel::load(Source::find("reverse-rwkv7".as_ref())?.open()?, &device)?;
/// let tokens = Tensor::<2, Int>::from_ints([[0, 51, 49, 44]], &device);
/// let logits = for_architecture!(AnyModel, model, model => model.network.forward(tokens, None).0);
/// assert_eq!(logits.dims(), [1, 4, 256]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub enum AnyModel {
    /// RWKV-7.
    Rwkv7(Box<Model<ChannelMixConfig>>),
    /// RWKV-7 with Meta-State.
    MetaState(Box<Model<MetaStateConfig>>),
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
