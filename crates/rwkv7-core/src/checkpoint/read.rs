//! Opening checkpoint files. Nothing in a file is ever executed, no number in a file sizes memory before the length of the file
//! bounds the number, and tensors are read when they are needed.

mod burn_record;
mod content;
mod folder;
mod pytorch;
mod safetensors;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use burn_store::burn_pack::{self, Tensor as PackTensor};

use super::{CheckpointError, ModelMetadata, error::LARGEST_EXPANSION, names::NamingScheme};
use crate::files;

pub(super) use safetensors::read as safetensors;

/// Key of a file's metadata entry with the checksums of all tensors.
pub(super) const CHECKSUMS: &str = "metastate.crc32";

/// Key of a file's metadata entry with the checksum of the [header](super::header).
pub(super) const HEADER: &str = "metastate.header";

/// Key of a file's metadata entry with the [`ModelMetadata`].
pub(super) const CONFIG: &str = "metastate.config";

/// Key of a state file's metadata entry with the token that the model reads next.
pub(super) const UNREAD: &str = "metastate.unread";

/// Bytes at the beginning of a file that tell its content. The mark of a tar archive ends here.
const START: usize = 262;

/// Bytes of the largest `config.json` or index that is read.
pub(super) const LARGEST_JSON: u64 = 64 << 20;

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
    /// Bytes of all files.
    pub length: u64,
}

/// Opens a checkpoint file of any format, told by its first bytes, or a folder with safetensors files.
pub(super) fn open(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let raw = if path.is_dir() {
        folder::open(path)?
    } else {
        open_file(path)?
    };
    bounded(path, &raw)?;
    Ok(raw)
}

fn open_file(path: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let file = regular(path)?;
    let failed = |source| read_error(path, source);
    let length = file.metadata().map_err(failed)?.len();
    let mut start = Vec::with_capacity(START);
    (&file)
        .take(START as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    if start.is_empty() {
        return Err(CheckpointError::UnknownFormat {
            path: path.to_path_buf(),
            found: "the file is empty".into(),
        });
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    if content::is_safetensors(&start) {
        return safetensors::open(path);
    }
    if start.starts_with(&burn_pack::MAGIC_NUMBER.to_le_bytes()) {
        return burn_record::open(path, length);
    }
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        return pytorch::open(path, length, true);
    }
    if let Some((found, remedy)) = content::other(&start, path) {
        return Err(CheckpointError::OtherContent {
            path: path.to_path_buf(),
            found,
            remedy: remedy.into(),
        });
    }
    match extension {
        "safetensors" => safetensors::open(path),
        "bpk" => burn_record::open(path, length),
        "pth" | "pt" => pytorch::open(path, length, false),
        _ if start.starts_with(&[0x80]) => pytorch::open(path, length, false),
        _ => Err(CheckpointError::UnknownFormat {
            path: path.to_path_buf(),
            found: format!("it starts with {:02x?}", &start[..start.len().min(16)]),
        }),
    }
}

/// Opens a regular file.
fn regular(path: &Path) -> Result<File, CheckpointError> {
    files::open(path).map_err(|source| read_error(path, source))
}

fn read_error(path: &Path, source: io::Error) -> CheckpointError {
    match source.kind() {
        io::ErrorKind::NotFound => CheckpointError::NotFound {
            path: path.to_path_buf(),
        },
        _ => CheckpointError::Read {
            path: path.to_path_buf(),
            source,
        },
    }
}

/// Checks that the tensors are no larger in memory than files of models can be, and that none of them is empty: a shape without
/// values may name any size.
pub(super) fn bounded(path: &Path, raw: &RawCheckpoint) -> Result<(), CheckpointError> {
    let empty = |tensor: &&PackTensor| tensor.shape.iter().any(|&size| size == 0);
    if let Some(tensor) = raw.tensors.iter().find(empty) {
        let shape: Vec<usize> = tensor.shape.iter().copied().collect();
        return Err(CheckpointError::Damaged {
            path: path.to_path_buf(),
            format: raw.format,
            reason: format!(
                "tensor `{}` of shape {shape:?} holds no values",
                tensor.name
            ),
        });
    }
    let sizes = raw.tensors.iter().map(|tensor| tensor.byte_len() as u64);
    let needed = sizes.fold(0, u64::saturating_add);
    if needed > raw.length.saturating_mul(LARGEST_EXPANSION) {
        return Err(CheckpointError::Oversized {
            path: path.to_path_buf(),
            needed,
            held: raw.length,
        });
    }
    Ok(())
}
