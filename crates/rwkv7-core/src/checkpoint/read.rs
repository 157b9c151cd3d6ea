//! Opening checkpoint files. Nothing in a file is ever executed, and tensors are read when they are needed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{CheckpointError, ModelMetadata, names::NamingScheme};
use burn::tensor::{Bytes, DType, Shape};
use burn_store::{
    bridge,
    burn_pack::{self, Tensor as PackTensor},
    pytorch_reader::{PytorchError, PytorchReader},
};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

/// Key of a file's metadata entry with the checksums of all tensors.
pub(super) const CHECKSUMS: &str = "metastate.crc32";

/// Key of a file's metadata entry with the [`ModelMetadata`].
pub(super) const CONFIG: &str = "metastate.config";

/// Key of a state file's metadata entry with the token that the model reads next.
pub(super) const UNREAD: &str = "metastate.unread";

/// The tensors of a file under the file's own names.
pub(super) struct RawCheckpoint {
    pub tensors: Vec<PackTensor>,
    pub format: &'static str,
    /// Set where the format alone tells whose names these are.
    pub scheme: Option<NamingScheme>,
    /// The description of the model in the file itself.
    pub metadata: Option<ModelMetadata>,
    /// The token that a state has not read.
    pub unread: Option<u32>,
}

/// Opens a checkpoint file of any format, told by its first bytes.
pub(super) fn open(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let read_error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => CheckpointError::NotFound {
            path: path.to_path_buf(),
        },
        _ => CheckpointError::Read {
            path: path.to_path_buf(),
            source,
        },
    };
    if path.is_dir() {
        return open_folder(path);
    }
    let mut file = File::open(path).map_err(read_error)?;
    let mut start = [0_u8; 16];
    let mut filled = 0;
    while filled < start.len() {
        match file.read(&mut start[filled..]).map_err(read_error)? {
            0 => break,
            n => filled += n,
        }
    }
    let start = &start[..filled];
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    if start.is_empty() {
        return Err(CheckpointError::UnknownFormat {
            path: path.to_path_buf(),
            found: "the file is empty".into(),
        });
    }
    if start.get(8) == Some(&b'{') || extension == "safetensors" {
        open_safetensors(path)
    } else if extension == "bpk" || start.starts_with(&burn_pack::MAGIC_NUMBER.to_le_bytes()) {
        open_burnpack(path)
    } else if start.starts_with(b"PK") || start.starts_with(&[0x80]) || extension == "pth" {
        open_pytorch(path)
    } else {
        Err(CheckpointError::UnknownFormat {
            path: path.to_path_buf(),
            found: format!("it starts with {start:02x?}"),
        })
    }
}

fn open_folder(folder: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return open_safetensors(&single);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(CheckpointError::UnknownFormat {
            path: folder.to_path_buf(),
            found: "a folder with neither model.safetensors nor model.safetensors.index.json"
                .into(),
        });
    }
    let text = std::fs::read_to_string(&index).map_err(|source| CheckpointError::Read {
        path: index.clone(),
        source,
    })?;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let shards =
        serde_json::from_str::<Index>(&text).map_err(|error| CheckpointError::ConfigFile {
            path: index.clone(),
            reason: error.to_string(),
        })?;
    let mut files: Vec<PathBuf> = shards.weight_map.values().map(|f| folder.join(f)).collect();
    files.sort();
    files.dedup();
    let mut tensors = Vec::new();
    let mut metadata = None;
    for file in &files {
        let shard = open(file)?;
        tensors.extend(shard.tensors);
        metadata = metadata.or(shard.metadata);
    }
    Ok(RawCheckpoint {
        tensors,
        format: "safetensors",
        scheme: None,
        metadata,
        unread: None,
    })
}

fn open_safetensors(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let read_error = |source| CheckpointError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => CheckpointError::NotFound {
            path: path.to_path_buf(),
        },
        _ => read_error(source),
    })?;
    let map = map(&file).map_err(read_error)?;
    safetensors(path, Arc::new(map))
}

/// The tensors of a safetensors file in memory; `path` is for messages.
pub(super) fn safetensors<T>(path: &Path, map: Arc<T>) -> Result<RawCheckpoint, CheckpointError>
where
    T: Deref<Target = [u8]> + Send + Sync + 'static,
{
    let damaged = |reason: String| CheckpointError::Damaged {
        path: path.to_path_buf(),
        format: "safetensors file",
        reason,
    };
    let (header_length, header) =
        SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
    SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
    let data_start = 8 + header_length;
    let entry = |key: &str| header.metadata().as_ref().and_then(|m| m.get(key));
    let checksums: BTreeMap<String, u32> = match entry(CHECKSUMS) {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| damaged(format!("{CHECKSUMS}: {e}")))?
        }
        None => BTreeMap::new(),
    };
    let metadata = match entry(CONFIG) {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|e| damaged(format!("{CONFIG}: {e}")))?)
        }
        None => None,
    };
    let mut tensors = Vec::new();
    for (name, info) in header.tensors() {
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(damaged(format!(
                    "tensor `{name}` is of type {other:?}, expected F64, F32, F16 or BF16"
                )));
            }
        };
        let expected = checksums.get(&name).copied();
        if expected.is_none() && !checksums.is_empty() {
            return Err(damaged(format!(
                "tensor `{name}` has no checksum, the others do"
            )));
        }
        let (from, to) = info.data_offsets;
        let map = map.clone();
        let label = name.clone();
        tensors.push(PackTensor::deferred(
            name,
            dtype,
            Shape::from(info.shape.clone()),
            None,
            to - from,
            move || {
                let bytes = &map[data_start + from..data_start + to];
                if let Some(expected) = expected {
                    let found = crc32fast::hash(bytes);
                    if found != expected {
                        return Err(burn_pack::Error::ValidationError(format!(
                            "tensor `{label}` has checksum {found:08x}, expected {expected:08x}"
                        )));
                    }
                }
                Ok(Bytes::from_bytes_vec(bytes.to_vec()))
            },
        ));
    }
    Ok(RawCheckpoint {
        tensors,
        format: "safetensors",
        scheme: None,
        metadata,
        unread: entry(UNREAD).and_then(|token| token.parse().ok()),
    })
}

/// Maps a file into memory.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read. If another process truncates the file meanwhile, the operating system ends this one:
    // the price of not copying gigabytes, which every loader of this format pays.
    unsafe { Mmap::map(file) }
}

fn open_pytorch(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let reader = PytorchReader::new(path).map_err(|error| match error {
        PytorchError::Io(source)
            if !matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            CheckpointError::Read {
                path: path.to_path_buf(),
                source,
            }
        }
        other => CheckpointError::Damaged {
            path: path.to_path_buf(),
            format: "PyTorch checkpoint",
            reason: other.to_string(),
        },
    })?;
    let tensors = reader.into_tensors().into_iter().map(|(name, tensor)| {
        let mut tensor = bridge::from_pytorch(tensor);
        tensor.name = name;
        tensor
    });
    Ok(RawCheckpoint {
        tensors: tensors.collect(),
        format: "PyTorch",
        scheme: None,
        metadata: None,
        unread: None,
    })
}

fn open_burnpack(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let damaged = |error: burn_pack::Error| CheckpointError::Damaged {
        path: path.to_path_buf(),
        format: "Burn record",
        reason: error.to_string(),
    };
    let reader = burn_pack::Reader::from_file(path).map_err(damaged)?;
    let metadata = reader
        .metadata()
        .get(CONFIG)
        .and_then(|text| serde_json::from_str(text).ok());
    Ok(RawCheckpoint {
        tensors: reader.into_tensors().map_err(damaged)?,
        format: "Burn record",
        scheme: Some(NamingScheme::Burn),
        metadata,
        unread: None,
    })
}
