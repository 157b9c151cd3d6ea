//! Burn records. The format has no checksums.

use std::{io::Read, path::Path};

use burn_store::burn_pack::{self, HEADER_SIZE};

use super::{CONFIG, RawCheckpoint, read_error, regular};
use crate::checkpoint::{CheckpointError, names::NamingScheme};

pub fn open(path: &Path, length: u64) -> Result<RawCheckpoint, CheckpointError> {
    let wrong = |reason: String| CheckpointError::Damaged {
        path: path.to_path_buf(),
        format: "Burn record",
        reason,
    };
    let damaged = |error: burn_pack::Error| wrong(error.to_string());
    let mut start = Vec::with_capacity(HEADER_SIZE);
    regular(path)?
        .take(HEADER_SIZE as u64)
        .read_to_end(&mut start)
        .map_err(|source| read_error(path, source))?;
    // The reader makes room for the metadata before it reads them. Their length stands in the last four bytes of the header.
    if let Some(&size) = start[..].last_chunk::<4>()
        && start.len() == HEADER_SIZE
        && u64::from(u32::from_le_bytes(size)) > length
    {
        let size = u32::from_le_bytes(size);
        return Err(wrong(format!(
            "its header says that {size} bytes of metadata follow, and the file has {length} bytes"
        )));
    }
    let reader = burn_pack::Reader::from_file_exact(path).map_err(damaged)?;
    let metadata = match reader.metadata().get(CONFIG) {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|e| wrong(format!("{CONFIG}: {e}")))?)
        }
        None => None,
    };
    Ok(RawCheckpoint {
        tensors: reader.into_tensors().map_err(damaged)?,
        format: "Burn record",
        scheme: Some(NamingScheme::Burn),
        metadata,
        unread: None,
        length,
    })
}
