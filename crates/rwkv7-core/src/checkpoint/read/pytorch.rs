//! PyTorch checkpoints: archives of `torch.save`, and its older single pickle.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use burn_store::{
    bridge,
    burn_pack::{self, Tensor as PackTensor},
    pytorch_reader::{FileFormat, PickleError, PytorchError, PytorchReader},
};
use zip::ZipArchive;

use super::{RawCheckpoint, regular};
use crate::checkpoint::{CheckpointError, error::LARGEST_EXPANSION};

/// `is_archive` tells an archive from a single pickle.
pub fn open(path: &Path, length: u64, is_archive: bool) -> Result<RawCheckpoint, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged {
        path: path.to_path_buf(),
        format: "PyTorch checkpoint",
        reason,
    };
    let other = |found: String, remedy: &str| CheckpointError::OtherContent {
        path: path.to_path_buf(),
        found,
        remedy: remedy.into(),
    };
    let file = regular(path)?;
    let archive = match is_archive {
        true => ZipArchive::new(BufReader::with_capacity(1 << 16, file)).ok(),
        false => None,
    };
    if let Some(archive) = &archive {
        check_sizes(archive, length).map_err(damaged)?;
        let is_pickle = |name: &[u8]| name.ends_with(b"data.pkl");
        if !archive.file_names_raw().any(is_pickle) {
            return Err(other(
                "a zip archive that torch.save did not write".into(),
                "unpack it, and name the model that it holds",
            ));
        }
    }
    let reader = PytorchReader::new(path).map_err(|error| match error {
        PytorchError::Io(source)
            if !matches!(
                source.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            CheckpointError::Read {
                path: path.to_path_buf(),
                source,
            }
        }
        PytorchError::Pickle(PickleError::UnsupportedType(name)) => other(
            format!("a PyTorch checkpoint with `{name}`, which is neither f64, f32, f16 nor bf16"),
            "save only the tensors of the model, in one of these types",
        ),
        other => damaged(other.to_string()),
    })?;
    let archive = match (&reader.metadata().format_type, archive) {
        (FileFormat::Zip, Some(archive)) => Some(Arc::new(Verified::new(archive))),
        _ => None,
    };
    let tensors = reader.into_tensors().into_iter().map(|(name, tensor)| {
        let mut tensor = bridge::from_pytorch(tensor);
        tensor.name = name;
        match &archive {
            Some(archive) => verified(tensor, archive.clone()),
            None => tensor,
        }
    });
    Ok(RawCheckpoint {
        tensors: tensors.collect(),
        format: "PyTorch",
        scheme: None,
        metadata: None,
        unread: None,
        length,
    })
}

type Archive = ZipArchive<BufReader<File>>;

/// Checks the sizes that the archive's directory names, before anything is unpacked.
fn check_sizes(archive: &Archive, length: u64) -> Result<(), String> {
    let (mut packed, mut unpacked) = (0_u64, 0_u64);
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(|e| e.to_string())?;
        packed = packed.saturating_add(entry.compressed_size());
        unpacked = unpacked.saturating_add(entry.size());
    }
    if packed > length || unpacked > length.saturating_mul(LARGEST_EXPANSION) {
        return Err(format!(
            "its entries of {packed} bytes unpack to {unpacked} bytes, and the file has {length}"
        ));
    }
    Ok(())
}

/// An archive whose entries are compared with their checksums once, when the first tensor is read. The reader of the tensors does
/// this only for a tensor that is all of an entry, and not for one that is a part of it.
struct Verified {
    archive: Mutex<Archive>,
    problem: OnceLock<Option<String>>,
}

impl Verified {
    fn new(archive: Archive) -> Self {
        Self {
            archive: Mutex::new(archive),
            problem: OnceLock::new(),
        }
    }

    fn check(&self) -> Result<(), burn_pack::Error> {
        let problem = self.problem.get_or_init(|| {
            let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
            (0..archive.len()).find_map(|index| damaged_entry(&mut archive, index))
        });
        match problem {
            Some(problem) => Err(burn_pack::Error::ValidationError(problem.clone())),
            None => Ok(()),
        }
    }
}

/// Reads an entry to its end, where the archive's reader compares the checksum. An entry whose checksum is 0 has none: `torch.save`
/// writes it so on demand.
fn damaged_entry(archive: &mut Archive, index: usize) -> Option<String> {
    let mut read = || -> io::Result<()> {
        let entry = archive.by_index_data(index)?;
        let (size, has_checksum) = (entry.size(), entry.crc32() != 0);
        if !has_checksum {
            return Ok(());
        }
        let mut content = archive.by_index(index)?.take(size + 1);
        if io::copy(&mut content, &mut io::sink())? > size {
            return Err(io::Error::other(format!(
                "it holds more than its {size} bytes"
            )));
        }
        Ok(())
    };
    let error = read().err()?;
    let name = match archive.name_for_index(index) {
        Some(Ok(name)) => name,
        _ => "without a name".into(),
    };
    Some(format!("entry `{name}` of the archive: {error}"))
}

/// The tensor, which is read after the whole archive was verified.
fn verified(tensor: PackTensor, archive: Arc<Verified>) -> PackTensor {
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let length = tensor.byte_len();
    PackTensor::deferred(name, dtype, shape, None, length, move || {
        archive.check()?;
        tensor.to_bytes()
    })
}
