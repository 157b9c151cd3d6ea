//! Safetensors files, with the checksums that files of this project carry.

use std::{collections::BTreeMap, fs::File, ops::Deref, path::Path, sync::Arc};

use burn::tensor::{Bytes, DType, Shape};
use burn_store::burn_pack::{self, Tensor as PackTensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use super::{CHECKSUMS, CONFIG, HEADER, RawCheckpoint, UNREAD, read_error, regular};
use crate::checkpoint::{CheckpointError, header};

pub fn open(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let file = regular(path)?;
    let failed = |source| read_error(path, source);
    if file.metadata().map_err(failed)?.len() == 0 {
        return Err(CheckpointError::UnknownFormat {
            path: path.to_path_buf(),
            found: "the file is empty".into(),
        });
    }
    let map = map(&file).map_err(failed)?;
    read(path, Arc::new(map))
}

/// Maps a file into memory.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read. If another process truncates the file meanwhile, the operating system ends this one:
    // the price of not copying gigabytes, which every loader of this format pays.
    unsafe { Mmap::map(file) }
}

/// The tensors of a safetensors file in memory; `path` is for messages.
pub fn read<T>(path: &Path, map: Arc<T>) -> Result<RawCheckpoint, CheckpointError>
where
    T: Deref<Target = [u8]> + Send + Sync + 'static,
{
    let damaged = |reason: String| CheckpointError::Damaged {
        path: path.to_path_buf(),
        format: "safetensors file",
        reason,
    };
    let (header_length, header) =
        SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
    let data_start = 8 + header_length;
    let entry = |key: &str| header.metadata().as_ref().and_then(|m| m.get(key));
    check_header(&header, entry(HEADER)).map_err(damaged)?;
    let json = |key: &str, error: serde_json::Error| damaged(format!("{key}: {error}"));
    let checksums: BTreeMap<String, u32> = match entry(CHECKSUMS) {
        Some(text) => serde_json::from_str(text).map_err(|e| json(CHECKSUMS, e))?,
        None => BTreeMap::new(),
    };
    let metadata = match entry(CONFIG) {
        Some(text) => Some(serde_json::from_str(text).map_err(|e| json(CONFIG, e))?),
        None => None,
    };
    let unread =
        match entry(UNREAD) {
            Some(token) => Some(token.parse().map_err(|_| {
                damaged(format!("{UNREAD} is `{token}`, expected the id of a token"))
            })?),
            None => None,
        };
    let mut tensors = Vec::new();
    // In the order of their names, so that the same file always gives the same error.
    for (name, info) in header.tensors().into_iter().collect::<BTreeMap<_, _>>() {
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(CheckpointError::Dtype {
                    path: path.to_path_buf(),
                    tensor: name,
                    found: other.to_string(),
                });
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
        unread,
        length: map.len() as u64,
    })
}

/// Compares the header with its own checksum, which files of other programs and older ones of this project do not have.
fn check_header(header: &Metadata, expected: Option<&String>) -> Result<(), String> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let metadata = header.metadata().iter().flatten();
    let metadata = metadata.map(|(key, value)| (key.as_str(), value.as_str()));
    let all = header.tensors();
    let tensors = all
        .iter()
        .map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()));
    let found = header::checksum(metadata, tensors);
    if found == *expected {
        return Ok(());
    }
    Err(format!(
        "the header has checksum {found}, {HEADER} is `{expected}`"
    ))
}
