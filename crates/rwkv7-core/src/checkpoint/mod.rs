//! Checkpoint files: the official `.pth`, safetensors in several layouts, and Burn's own records.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = burn::tensor::Device::default();
//! let (config, model) = rwkv7_core::checkpoint::load("RWKV-x070-World-0.1B.pth".as_ref(), &device)?;
//! # Ok(()) }
//! ```
//!
//! | format | read | written |
//! |---|---|---|
//! | PyTorch `.pth` with the official names | yes | |
//! | safetensors with the official names, also with the prefix `rwkv7.` | yes | [`Format::Official`] |
//! | safetensors in flash-linear-attention's Hugging Face layout | yes | [`Format::Fla`], a folder |
//! | Burn record `.bpk` | yes | [`Format::Burn`] |
//!
//! Files come from elsewhere, so nothing in them is trusted: no code runs, names in an index lead to no other folder, and no number
//! sizes memory before the length of the file bounds the number.
//!
//! All dimensions come from the shapes of the tensors. The [`metadata`](ModelMetadata) of a file add what no shape shows.
//!
//! Burn loads these files itself too, as the documentation of [`Rwkv7`] shows.

mod convert;
mod error;
mod fla;
mod header;
mod infer;
mod metadata;
mod model;
mod names;
mod parameters;
mod read;
mod recognise;
mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod values;
mod wrappers;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{DType, TensorData};
use burn_store::{bridge, burn_pack::Tensor as PackTensor};

pub use convert::ConversionReport;
pub use error::CheckpointError;
pub use metadata::ModelMetadata;
pub use model::{config_json, load, save, save_tensors};
pub use parameters::{Parameter, expected_tensors, initial_tensor, parameters};

use crate::{Rwkv7, Rwkv7Config, config::ChannelMixerConfig, layers::ChannelMixer};

use names::NamingScheme;

/// A format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A safetensors file with the official names.
    Official,
    /// A folder with `config.json` and `model.safetensors` as flash-linear-attention writes them.
    Fla,
    /// A Burn record.
    Burn,
}

/// An opened checkpoint: its tensors under their official names, read when they are needed.
pub struct Checkpoint {
    path: PathBuf,
    format: &'static str,
    scheme: NamingScheme,
    tensors: Vec<PackTensor>,
    metadata: Option<ModelMetadata>,
}

impl Checkpoint {
    /// Opens a checkpoint file, or a folder with `model.safetensors` (or its shards and index).
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if there is no such file, or if the file is damaged or of no known format.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::new(path, read::open(path)?, Some(path))
    }

    /// The checkpoint in the bytes of a safetensors file; `name` is for messages.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_safetensors(name: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        let path = Path::new(name);
        let raw = read::safetensors(path, Arc::new(bytes))?;
        read::bounded(path, &raw)?;
        Self::new(path, raw, None)
    }

    /// The tensors of a model in memory, which is of this configuration.
    pub fn of_model<S: ChannelMixerConfig>(
        config: &Rwkv7Config<S>,
        model: &Rwkv7<S::Layer>,
    ) -> Self {
        Self::of_tensors(config, model::official_tensors(model))
    }

    /// Tensors with official names and layouts that make up a model of this configuration.
    pub fn of_tensors<S: ChannelMixerConfig>(
        config: &Rwkv7Config<S>,
        tensors: Vec<PackTensor>,
    ) -> Self {
        Self {
            path: "a model in memory".into(),
            format: "memory",
            scheme: NamingScheme::Official,
            tensors,
            metadata: Some(ModelMetadata::new(config)),
        }
    }

    /// `path` is for messages. `file` is where the tensors come from, if they come from a file or folder: the `config.json` there
    /// counts.
    fn new(
        path: &Path,
        raw: read::RawCheckpoint,
        file: Option<&Path>,
    ) -> Result<Self, CheckpointError> {
        let (scheme, found) = match raw.scheme {
            Some(scheme) => (scheme, raw.tensors),
            None => {
                let found = wrappers::strip(raw.tensors);
                (names::scheme(found.iter().map(|t| &t.name)), found)
            }
        };
        let mut tensors = names::to_official(found, scheme);
        if let Some(head) = names::tied_head(&tensors)
            && scheme != NamingScheme::Burn
            && fla::is_tied(file)?
        {
            tensors.push(head);
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let problems = names::duplicates(&tensors);
        if !problems.is_empty() {
            return Err(CheckpointError::Tensors {
                path: path.to_path_buf(),
                architecture: "rwkv7".into(),
                problems,
            });
        }
        let metadata = match scheme {
            NamingScheme::Fla => fla::metadata(file)?,
            _ => raw
                .metadata
                .or_else(|| file.and_then(ModelMetadata::beside)),
        };
        Ok(Self {
            path: path.to_path_buf(),
            format: raw.format,
            scheme,
            tensors,
            metadata,
        })
    }

    /// The file's format and the naming scheme of its tensors, for people.
    pub fn format(&self) -> String {
        let names = match self.scheme {
            NamingScheme::Official => "official names",
            NamingScheme::Fla => "flash-linear-attention's names",
            NamingScheme::Burn => "Burn's names",
        };
        format!("{}, {names}", self.format)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of values in all tensors.
    pub fn num_values(&self) -> usize {
        self.tensors.iter().map(|t| t.shape.num_elements()).sum()
    }

    /// The element types that occur.
    pub fn dtypes(&self) -> Vec<String> {
        let set: BTreeSet<&str> = self.tensors.iter().map(|t| t.dtype.name()).collect();
        set.into_iter().map(str::to_string).collect()
    }

    /// Official name and shape of every tensor.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        let shape = |t: &PackTensor| t.shape.iter().copied().collect();
        self.tensors
            .iter()
            .map(move |t| (t.name.as_str(), shape(t)))
    }

    /// Says of which model the tensors are, for a checkpoint that has no [`metadata`](Self::metadata) of its own.
    pub fn with_metadata(mut self, metadata: ModelMetadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// The description of the model that the file carries or that the `config.json` in its folder holds.
    pub fn metadata(&self) -> Option<&ModelMetadata> {
        self.metadata.as_ref()
    }

    /// The architecture that the metadata name; files without metadata hold RWKV-7.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata()
            .map(|metadata| metadata.architecture.as_str())
    }

    /// The configuration of the model in this file, from the shapes of its tensors and from its [`metadata`](Self::metadata).
    ///
    /// # Errors
    ///
    /// [`CheckpointError::OtherContent`] if the file is no model of RWKV-7's kind, [`CheckpointError::Dtype`] if a tensor holds other
    /// numbers than floating-point ones, [`CheckpointError::Architecture`] if the model is of another architecture,
    /// [`CheckpointError::Contradiction`] if the metadata contradict the tensors, and [`CheckpointError::Tensors`] with the missing
    /// tensors.
    pub fn config<S: ChannelMixerConfig>(&self) -> Result<Rwkv7Config<S>, CheckpointError> {
        let tensors = self.named_for::<S>();
        if let Some((found, remedy)) = recognise::other_model(&tensors) {
            return Err(CheckpointError::OtherContent {
                path: self.path.clone(),
                found,
                remedy: remedy.into(),
            });
        }
        self.check_types()?;
        let found = infer::other_architecture::<S>(&tensors);
        match (self.architecture(), found) {
            (Some(said), _) if said != S::ARCHITECTURE => Err(CheckpointError::Architecture {
                path: self.path.clone(),
                found: said.into(),
                expected: S::ARCHITECTURE.into(),
            }),
            (Some(said), Some(found)) => Err(CheckpointError::Contradiction {
                path: self.path.clone(),
                said: said.into(),
                found,
            }),
            (None, Some(found)) => Err(CheckpointError::Architecture {
                path: self.path.clone(),
                found,
                expected: S::ARCHITECTURE.into(),
            }),
            (_, None) => infer::config(&self.path, &tensors, self.metadata.as_ref()),
        }
    }

    /// The tensors of a model of this architecture under their official names; they are read when they are needed.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] lists every tensor that is missing, unknown or of the wrong shape; [`CheckpointError::Dtype`] if
    /// a tensor holds other numbers than floating-point ones.
    pub fn tensors<S: ChannelMixerConfig>(
        &self,
        config: &Rwkv7Config<S>,
    ) -> Result<Vec<PackTensor>, CheckpointError> {
        self.check(config)?;
        Ok(self.named_for::<S>())
    }

    /// The tensors, with the checkpoint's name for the channel mixer. Burn records call every channel mixer `ffn`.
    fn named_for<S: ChannelMixerConfig>(&self) -> Vec<PackTensor> {
        let mut tensors = self.tensors.clone();
        if self.scheme == NamingScheme::Burn {
            for tensor in &mut tensors {
                tensor.name = names::rename_mixer(&tensor.name, "ffn", S::Layer::NAME);
            }
        }
        tensors
    }

    /// Reads every tensor.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Damaged`] names the tensor.
    pub fn read_all(&self) -> Result<BTreeMap<String, TensorData>, CheckpointError> {
        let read = |t: &PackTensor| match bridge::to_data(t) {
            Ok(data) => Ok((t.name.clone(), data)),
            Err(error) => Err(self.damaged(error.to_string())),
        };
        self.tensors.iter().map(read).collect()
    }

    /// Writes the tensors in another format, in `dtype`; `None` keeps every bit.
    ///
    /// # Errors
    ///
    /// If the tensors are not those of a model of this configuration, if one is damaged, holds values that are not finite or that
    /// `dtype` cannot hold, or if writing fails; then nothing is written.
    pub fn save<S: ChannelMixerConfig>(
        &self,
        config: &Rwkv7Config<S>,
        path: &Path,
        format: Format,
        dtype: Option<DType>,
    ) -> Result<(), CheckpointError> {
        self.check(config)?;
        let tensors = self.named_for::<S>();
        model::save_from(Some(&self.path), path, config, tensors, format, dtype)
    }

    fn damaged(&self, reason: String) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.clone(),
            format: "checkpoint",
            reason,
        }
    }

    /// Checks that all tensors are floating-point numbers.
    fn check_types(&self) -> Result<(), CheckpointError> {
        let is_float = |dtype| matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
        match self.tensors.iter().find(|tensor| !is_float(tensor.dtype)) {
            None => Ok(()),
            Some(tensor) => Err(CheckpointError::Dtype {
                path: self.path.clone(),
                tensor: tensor.name.clone(),
                found: tensor.dtype.name().into(),
            }),
        }
    }

    /// Lists every tensor that is missing, unknown or of the wrong shape for a model of this configuration.
    fn check<S: ChannelMixerConfig>(&self, config: &Rwkv7Config<S>) -> Result<(), CheckpointError> {
        self.check_types()?;
        let mut problems = Vec::new();
        let mut expected = expected_tensors(config);
        for tensor in self.named_for::<S>() {
            let found: Vec<usize> = tensor.shape.iter().copied().collect();
            let name = tensor.name.as_str();
            match expected.remove(name) {
                Some(shape) if shape == found => {}
                Some(shape) => {
                    problems.push(format!("{name}: expected shape {shape:?}, found {found:?}"))
                }
                None if names::is_unused(name) => {}
                None => problems.push(format!("{name}: unknown, shape {found:?}")),
            }
        }
        problems.extend(
            expected
                .into_iter()
                .map(|(name, shape)| format!("{name}: missing, expected shape {shape:?}")),
        );
        if problems.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Tensors {
            path: self.path.clone(),
            architecture: S::ARCHITECTURE.into(),
            problems,
        })
    }
}
