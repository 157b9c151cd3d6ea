//! Between checkpoint files and models.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{DType, Device, FloatDType};
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    bridge, burn_pack::Tensor as PackTensor,
};

use crate::{
    Rwkv7, Rwkv7Config, Rwkv7Lm,
    config::ChannelMixerConfig,
    layers::{ChannelMix, ChannelMixer},
};

use super::{
    Checkpoint, CheckpointError, Format, ModelMetadata, fla, names,
    read::CONFIG,
    values::{self, NotFinite},
    write,
};

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
/// As [`save_tensors`]; then what was at `path` before is still there.
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
        if let Some(found) = NotFinite::find(&data) {
            report
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(found.line(&label, data.num_elements()));
        }
        data
    })
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
/// [`CheckpointError::NotFinite`] for values that are no finite numbers and [`CheckpointError::Overflow`] for values that `dtype`
/// cannot hold. [`CheckpointError::NoSuchLayout`] if the format has no names for this architecture. [`CheckpointError::Write`] if
/// writing fails; then what was at `path` before is still there.
pub fn save_tensors<S: ChannelMixerConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    tensors: Vec<PackTensor>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    save_from(None, path, config, tensors, format, dtype)
}

/// [`save_tensors`] of the tensors in the file `source`, which errors name.
pub(super) fn save_from<S: ChannelMixerConfig>(
    source: Option<&Path>,
    path: &Path,
    config: &Rwkv7Config<S>,
    tensors: Vec<PackTensor>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    let has_fla_names = S::Layer::NAME == ChannelMix::NAME
        && config.embed_width.is_none()
        && config.norm_prefix.is_none();
    if format == Format::Fla && !has_fla_names {
        return Err(CheckpointError::NoSuchLayout {
            path: path.to_path_buf(),
            architecture: S::ARCHITECTURE.into(),
        });
    }
    let checksums = values::check(source, path, &tensors, dtype)?;
    let tensors: Vec<PackTensor> = tensors
        .into_iter()
        .map(|tensor| write::cast(tensor, dtype))
        .collect();
    let metadata = config_json(config).to_string();
    match format {
        Format::Official => {
            write::safetensors(path, &tensors, checksums, [(CONFIG, metadata)])?.commit()
        }
        Format::Burn => write::burnpack(path, names::to_burn(tensors, S::Layer::NAME), &metadata),
        Format::Fla => {
            let folder = write::NewFolder::make(path)?;
            let tensors = names::to_fla(tensors);
            let model = path.join("model.safetensors");
            let checksums = write::checksums(&model, &tensors)?;
            let model = write::safetensors(&model, &tensors, checksums, [])?;
            let config = write::json(&path.join("config.json"), &fla::config(config, &tensors))?;
            model.commit()?;
            config.commit()?;
            folder.keep();
            Ok(())
        }
    }
}
