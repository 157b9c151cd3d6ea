//! Between checkpoint files and models.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{DType, Device, FloatDType, TensorData};
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    bridge, burn_pack::Tensor as PackTensor,
};

use crate::{
    Rwkv7, Rwkv7Config, Rwkv7Lm,
    config::ChannelMixerConfig,
    layers::{ChannelMix, ChannelMixer},
};

use super::{Checkpoint, CheckpointError, Format, ModelMetadata, fla, names, read::CONFIG, write};

/// Loads an RWKV-7 model with f32 parameters from a checkpoint of any format.
///
/// # Errors
///
/// [`CheckpointError`] names the file and every tensor that is missing, unknown, of the wrong shape or not finite.
pub fn load(path: &Path, device: &Device) -> Result<(Rwkv7Config, Rwkv7Lm), CheckpointError> {
    Checkpoint::open(path)?.load(device)
}

/// Writes a model; `dtype` `None` keeps each parameter's own.
///
/// # Errors
///
/// [`CheckpointError::Write`]; then what was at `path` before is still there.
pub fn save<S: ChannelMixerConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    model: &Rwkv7<S::Layer>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    save_tensors(path, config, official_tensors(model), format, dtype)
}

impl Checkpoint {
    /// The configuration and the model, with f32 parameters.
    ///
    /// # Errors
    ///
    /// As [`load`], and if the checkpoint is of another architecture.
    pub fn load<S: ChannelMixerConfig>(
        self,
        device: &Device,
    ) -> Result<(Rwkv7Config<S>, Rwkv7<S::Layer>), CheckpointError> {
        let config = self.config()?;
        let model = self.into_model(&config, device, FloatDType::F32)?;
        Ok((config, model))
    }

    /// The model of this configuration with the checkpoint's values, its parameters in `dtype`.
    ///
    /// # Errors
    ///
    /// As [`load`].
    pub fn into_model<S: ChannelMixerConfig>(
        self,
        config: &Rwkv7Config<S>,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<Rwkv7<S::Layer>, CheckpointError> {
        self.check(config)?;
        let not_finite = Arc::new(Mutex::new(Vec::new()));
        let tensors = self
            .named_for::<S>()
            .into_iter()
            .filter(|tensor| !names::is_unused(&tensor.name))
            .map(|mut tensor| {
                tensor.name = names::rename_mixer(&tensor.name, S::Layer::NAME, "ffn");
                watched(tensor, not_finite.clone())
            })
            .collect();
        let mut model = config.init(device);
        let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(dtype.into()));
        let result = model.apply(tensors, None, Some(Box::new(adapter)), true);
        let problems =
            std::mem::take(&mut *not_finite.lock().unwrap_or_else(PoisonError::into_inner));
        if !problems.is_empty() {
            return Err(CheckpointError::NotFinite {
                path: self.path,
                problems,
            });
        }
        if let Some(first) = result.errors.first() {
            return Err(self.damaged(first.to_string()));
        }
        assert!(
            result.missing.is_empty() && result.unused.is_empty(),
            "the tensors were checked against the model: {result:?}"
        );
        Ok(model)
    }
}

/// The tensor, which reports values that are not finite when it is read.
fn watched(tensor: PackTensor, report: Arc<Mutex<Vec<String>>>) -> PackTensor {
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let label = name.clone();
    bridge::map_data(tensor, name, dtype, shape, move |data| {
        let count = count_not_finite(&data);
        if count > 0 {
            let line = format!("{label}: {count} of {} values", data.num_elements());
            report
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
        data
    })
}

/// Counts NaN and infinities by the bits of the exponent, which are all ones in both.
fn count_not_finite(data: &TensorData) -> usize {
    let bytes = data.as_bytes();
    let half = |mask: u16| {
        let (values, _) = bytes.as_chunks::<2>();
        values
            .iter()
            .filter(|&&b| u16::from_le_bytes(b) & mask == mask)
            .count()
    };
    match data.dtype() {
        DType::F64 => {
            let (values, _) = bytes.as_chunks::<8>();
            values
                .iter()
                .filter(|&&b| !f64::from_le_bytes(b).is_finite())
                .count()
        }
        DType::F32 => {
            let (values, _) = bytes.as_chunks::<4>();
            values
                .iter()
                .filter(|&&b| !f32::from_le_bytes(b).is_finite())
                .count()
        }
        DType::BF16 => half(0x7f80),
        DType::F16 => half(0x7c00),
        _ => 0,
    }
}

/// A model's tensors under their official names, read when they are written.
pub(super) fn official_tensors<M: ChannelMixer>(model: &Rwkv7<M>) -> Vec<PackTensor> {
    let mut tensors = model.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
    for tensor in &mut tensors {
        tensor.name = names::rename_mixer(&tensor.name, "ffn", M::NAME);
        tensor.param_id = None;
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// A configuration as checkpoint files carry it: its fields and `architecture`.
pub fn config_json<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> serde_json::Value {
    serde_json::json!(ModelMetadata::new(config))
}

/// Writes tensors with official names and layouts that make up a model of this configuration; `dtype` `None` keeps every bit.
///
/// # Errors
///
/// [`CheckpointError::Write`]; then what was at `path` before is still there. [`CheckpointError::NoSuchLayout`] if the format
/// has no names for this architecture.
pub fn save_tensors<S: ChannelMixerConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    tensors: Vec<PackTensor>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    let tensors: Vec<PackTensor> = tensors
        .into_iter()
        .map(|tensor| write::cast(tensor, dtype))
        .collect();
    let metadata = config_json(config).to_string();
    match format {
        Format::Official => write::safetensors(path, &tensors, [(CONFIG, metadata)]),
        Format::Burn => write::burnpack(path, names::to_burn(tensors, S::Layer::NAME), &metadata),
        Format::Fla
            if S::Layer::NAME != ChannelMix::NAME
                || config.embed_width.is_some()
                || config.norm_prefix.is_some() =>
        {
            Err(CheckpointError::NoSuchLayout {
                path: path.to_path_buf(),
                architecture: S::ARCHITECTURE.into(),
            })
        }
        Format::Fla => {
            std::fs::create_dir_all(path).map_err(|source| CheckpointError::Write {
                path: path.to_path_buf(),
                source,
            })?;
            let tensors = names::to_fla(tensors);
            write::safetensors(&path.join("model.safetensors"), &tensors, [])?;
            write::json(&path.join("config.json"), &fla::config(config, &tensors))
        }
    }
}
