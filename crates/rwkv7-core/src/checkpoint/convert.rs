//! A checkpoint's model with other channel mixers.

use std::path::Path;

use burn::tensor::{DType, Device};
use burn_store::{BurnToPyTorchAdapter, ModuleSnapshot, burn_pack::Tensor as PackTensor};

use crate::{Rwkv7Config, config::ChannelMixerConfig, init::LayerInit, layers::ChannelMixer};

use super::{
    Checkpoint, CheckpointError, Format, model::save_from, names::rename_mixer, write::cast,
};

/// The tensors that a change of channel mixers left out and put in, by name.
#[derive(Clone, Debug, Default)]
pub struct ConversionReport {
    /// Tensors of the old channel mixers.
    pub dropped: Vec<String>,
    /// Tensors of the new ones.
    pub added: Vec<String>,
}

impl Checkpoint {
    /// Writes the model of configuration `from` with other channel mixers, which have their initial values. All other tensors
    /// keep theirs.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::save`]; then nothing is written.
    pub fn save_converted<S: ChannelMixerConfig, T: ChannelMixerConfig>(
        &self,
        from: &Rwkv7Config<S>,
        ffn: T,
        path: &Path,
        format: Format,
        dtype: Option<DType>,
    ) -> Result<ConversionReport, CheckpointError> {
        let to = from.with_ffn(ffn);
        to.validate().map_err(|source| CheckpointError::Config {
            path: self.path.clone(),
            source,
        })?;
        self.check(from)?;
        let is_old =
            |tensor: &PackTensor| rename_mixer(&tensor.name, S::Layer::NAME, "") != tensor.name;
        let (old, mut tensors): (Vec<_>, Vec<_>) =
            self.named_for::<S>().into_iter().partition(is_old);
        let mut new = channel_mixers(&to);
        let dtypes: Vec<DType> = old.iter().map(|tensor| tensor.dtype).collect();
        if let Some(&first) = dtypes.first() {
            new = new.into_iter().map(|t| cast(t, Some(first))).collect();
        }
        let names = |tensors: &[PackTensor]| tensors.iter().map(|t| t.name.clone()).collect();
        let report = ConversionReport {
            dropped: names(&old),
            added: names(&new),
        };
        tensors.extend(new);
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        save_from(Some(&self.path), path, &to, tensors, format, dtype)?;
        Ok(report)
    }
}

/// The channel mixers' tensors at their initial values.
fn channel_mixers<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> Vec<PackTensor> {
    let dims = config.dims();
    let device = Device::default();
    let layer = |index: usize| {
        let init = LayerInit::new(index, &dims, &device, 0);
        let module = config.ffn.init(&dims, &init);
        let mut tensors = module.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
        for tensor in &mut tensors {
            tensor.name = format!("blocks.{index}.{}.{}", S::Layer::NAME, tensor.name);
            tensor.param_id = None;
        }
        tensors
    };
    (0..config.n_layer).flat_map(layer).collect()
}
