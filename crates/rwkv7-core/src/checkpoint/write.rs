//! Writing checkpoint files: tensor by tensor, complete or not at all, and twice the same bytes for the same model.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use burn::tensor::DType;
use burn_store::{
    bridge,
    burn_pack::{self, AtomicFile, Tensor as PackTensor},
};
use safetensors::Dtype;

use super::{
    CheckpointError, header,
    read::{CHECKSUMS, CONFIG},
};
use crate::files;

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

/// A whole file that has not got its name yet. Without [`commit`](Self::commit) nothing of it stays.
pub(super) struct Pending {
    path: PathBuf,
    file: AtomicFile,
}

impl Pending {
    /// Writes a file beside `path` and syncs it.
    fn write(
        path: &Path,
        content: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> Result<Self, CheckpointError> {
        let written = || -> io::Result<AtomicFile> {
            files::check_output(path)?;
            let (temporary, file) = AtomicFile::create(path).map_err(io::Error::other)?;
            keep_private(path, &file)?;
            let mut out = BufWriter::with_capacity(1 << 16, &file);
            content(&mut out)?;
            out.flush()?;
            file.sync_all()?;
            Ok(temporary)
        };
        let file = written().map_err(|source| failed(path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Gives the file its name: whatever interrupts this, the name leads either to what it led to before or to the new file, which
    /// keeps the permissions of the file that it replaces.
    pub(super) fn commit(self) -> Result<(), CheckpointError> {
        let Self { path, file } = self;
        file.commit()
            .map_err(|error| failed(&path, io::Error::other(error)))
    }
}

fn failed(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Write {
        path: path.to_path_buf(),
        source,
    }
}

/// A file that replaces a private one is private from its first byte on.
#[cfg(unix)]
fn keep_private(path: &Path, file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match path.symlink_metadata() {
        Ok(old) if old.is_file() => {
            // Its owner may write to it until it is complete.
            let mode = old.permissions().mode() & 0o777 | 0o200;
            file.set_permissions(std::fs::Permissions::from_mode(mode))
        }
        _ => Ok(()),
    }
}

#[cfg(not(unix))]
fn keep_private(_path: &Path, _file: &File) -> io::Result<()> {
    Ok(())
}

/// A safetensors file with these metadata, the checksum of every tensor and one of the header.
pub(super) fn safetensors(
    path: &Path,
    tensors: &[PackTensor],
    checksums: BTreeMap<String, u32>,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<Pending, CheckpointError> {
    Pending::write(path, |out| {
        let mut tensors: Vec<(Dtype, &PackTensor)> = tensors
            .iter()
            .map(|tensor| Ok((dtype(tensor)?, tensor)))
            .collect::<io::Result<_>>()?;
        // Wide types first keep every tensor aligned to its type.
        tensors.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.name.cmp(&y.name)));
        let entries: Vec<header::Entry> = tensors
            .iter()
            .map(|&(dtype, tensor)| header::Entry {
                name: &tensor.name,
                dtype,
                shape: tensor.shape.iter().copied().collect(),
                length: tensor.byte_len(),
            })
            .collect();
        let own = [
            (CHECKSUMS, serde_json::to_string(&checksums)?),
            ("format", "pt".into()),
        ];
        let metadata = own.into_iter().chain(metadata).collect();
        out.write_all(&header::write(&entries, metadata))?;
        tensors
            .iter()
            .try_for_each(|(_, tensor)| out.write_all(&bytes(tensor)?))
    })
}

/// The checksum of each tensor of the file `path`.
pub(super) fn checksums(
    path: &Path,
    tensors: &[PackTensor],
) -> Result<BTreeMap<String, u32>, CheckpointError> {
    tensors
        .iter()
        .map(|tensor| Ok((tensor.name.clone(), crc32fast::hash(&bytes(tensor)?))))
        .collect::<io::Result<_>>()
        .map_err(|source| failed(path, source))
}

fn bytes(tensor: &PackTensor) -> io::Result<burn::tensor::Bytes> {
    tensor
        .to_bytes()
        .map_err(|error| io::Error::other(error.to_string()))
}

/// A JSON file.
pub(super) fn json(path: &Path, json: &serde_json::Value) -> Result<Pending, CheckpointError> {
    Pending::write(path, |out| out.write_all(&serde_json::to_vec_pretty(json)?))
}

/// Writes a Burn record, by way of a file beside it as [`Pending`].
pub(super) fn burnpack(
    path: &Path,
    tensors: Vec<PackTensor>,
    config: &str,
) -> Result<(), CheckpointError> {
    files::check_output(path).map_err(|source| failed(path, source))?;
    burn_pack::Writer::new(tensors)
        .with_metadata(CONFIG, config)
        .auto_extension(false)
        .overwrite(true)
        .write_to_file(path)
        .map_err(|error| failed(path, io::Error::other(error)))
}

/// A folder for the files of a model. Those parts of its path that are made here are removed again unless it is
/// [kept](Self::keep).
pub(super) struct NewFolder {
    made: Vec<PathBuf>,
}

impl NewFolder {
    pub(super) fn make(path: &Path) -> Result<Self, CheckpointError> {
        let missing = path.ancestors().take_while(|folder| {
            !folder.as_os_str().is_empty() && folder.symlink_metadata().is_err()
        });
        let new = Self {
            made: missing.map(Path::to_path_buf).collect(),
        };
        std::fs::create_dir_all(path).map_err(|source| failed(path, source))?;
        Ok(new)
    }

    pub(super) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        for folder in &self.made {
            // A folder that somebody has put something into stays.
            if std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
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
