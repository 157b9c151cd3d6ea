//! Writing checkpoint files: tensor by tensor, complete or not at all.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use burn::tensor::DType;
use burn_store::{
    bridge,
    burn_pack::{self, AtomicFile, Tensor as PackTensor},
};
use safetensors::{Dtype, View};

use super::{
    CheckpointError,
    read::{CHECKSUMS, CONFIG},
};

/// The tensor in this dtype, cast when it is read; rounding is to the nearest, ties to even.
pub(super) fn cast(tensor: PackTensor, dtype: Option<DType>) -> PackTensor {
    match dtype {
        Some(dtype) if dtype != tensor.dtype => {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            bridge::map_data(tensor, name, dtype, shape, move |data| {
                data.convert_dtype(dtype)
            })
        }
        _ => tensor,
    }
}

/// Writes a safetensors file with these metadata and a checksum of every tensor.
pub(super) fn safetensors(
    path: &Path,
    tensors: &[PackTensor],
    metadata: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write {
        path: path.to_path_buf(),
        source,
    };
    let mut checksums = BTreeMap::new();
    for tensor in tensors {
        let bytes = tensor
            .to_bytes()
            .map_err(|e| failed(io::Error::other(e.to_string())))?;
        checksums.insert(tensor.name.clone(), crc32fast::hash(&bytes));
    }
    let checksums = serde_json::to_string(&checksums).map_err(|e| failed(e.into()))?;
    let own = [(CHECKSUMS, checksums), ("format", "pt".into())];
    let metadata: HashMap<String, String> = own
        .into_iter()
        .chain(metadata)
        .map(|(key, value)| (key.into(), value))
        .collect();

    let problem = Mutex::new(None);
    let views = tensors
        .iter()
        .map(|tensor| {
            let view = Lazy {
                tensor,
                dtype: dtype(tensor)?,
                shape: tensor.shape.iter().copied().collect(),
                problem: &problem,
            };
            Ok((tensor.name.as_str(), view))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    replace(path, |temporary| {
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(|error| {
            match error {
                safetensors::SafeTensorError::IoError(error) => error,
                other => io::Error::other(other),
            }
        })?;
        let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.take().map_or(Ok(()), Err)
    })
}

/// Writes a JSON file.
pub(super) fn json(path: &Path, json: &serde_json::Value) -> Result<(), CheckpointError> {
    replace(path, |temporary| {
        std::fs::write(temporary, serde_json::to_vec_pretty(json)?)
    })
}

/// Writes a file beside `path`, syncs the file and renames it to `path`: whatever interrupts this, `path` holds either what it
/// held before or all of the new content.
fn replace(
    path: &Path,
    content: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let written = || -> io::Result<()> {
        let (file, _) = AtomicFile::create(path).map_err(io::Error::other)?;
        content(file.path())?;
        file.commit().map_err(io::Error::other)
    };
    written().map_err(|source| CheckpointError::Write {
        path: path.to_path_buf(),
        source,
    })
}

/// A tensor that is read when it is written. The library has no way to report that this failed, so the reason is kept
/// and the file given up afterwards.
struct Lazy<'a> {
    tensor: &'a PackTensor,
    dtype: Dtype,
    shape: Vec<usize>,
    problem: &'a Mutex<Option<io::Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.tensor.to_bytes() {
            Ok(bytes) => Cow::Owned(bytes.to_vec()),
            Err(error) => {
                if let Ok(mut problem) = self.problem.lock() {
                    *problem = Some(io::Error::other(error.to_string()));
                }
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_len()
    }
}

/// Writes a Burn record, by way of a file beside it as [`replace`].
pub(super) fn burnpack(
    path: &Path,
    tensors: Vec<PackTensor>,
    config: &str,
) -> Result<(), CheckpointError> {
    burn_pack::Writer::new(tensors)
        .with_metadata(CONFIG, config)
        .auto_extension(false)
        .overwrite(true)
        .write_to_file(path)
        .map_err(|error| CheckpointError::Write {
            path: path.to_path_buf(),
            source: io::Error::other(error),
        })
}

fn dtype(tensor: &PackTensor) -> io::Result<Dtype> {
    Ok(match tensor.dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => {
            let reason = format!(
                "tensor `{}` is of type {other:?}, which no checkpoint holds",
                tensor.name
            );
            return Err(io::Error::other(reason));
        }
    })
}
