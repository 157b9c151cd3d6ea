//! `manifest.json` of a checkpoint: what belongs to the checkpoint, with checksums. A checkpoint is used only where everything
//! that its manifest says is so.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::atomic;

/// The file within the folder of a checkpoint.
pub const MANIFEST: &str = "manifest.json";

/// The content of a checkpoint.
///
/// There are no floating-point numbers in it, because their text would have to come out the same for the checksum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Epochs done.
    pub epoch: usize,
    /// Optimizer steps done.
    pub step: usize,
    /// The [fingerprint](super::identity) of the run.
    pub run: String,
    /// Tensors of the model.
    pub tensors: usize,
    /// [Checksum](super::record::Shapes::digest) of their names and shapes.
    pub shapes: String,
    /// Validation loss, as text.
    pub validation_loss: Option<String>,
    /// `metrics.jsonl` up to the end of the epoch; none of an older version's run.
    pub metrics: Option<Extent>,
    /// Every other file of the checkpoint by its name.
    pub files: BTreeMap<String, Extent>,
}

/// Length and checksum of a file or of its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Bytes.
    pub bytes: u64,
    /// CRC-32 of the bytes.
    pub crc32: u32,
}

impl Extent {
    /// Those of a whole file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut sum = Sum::default();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(sum.extent()),
                Ok(read) => sum.add(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Those of bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            crc32: crc32fast::hash(bytes),
        }
    }
}

/// An [`Extent`] that grows.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    bytes: u64,
    hash: crc32fast::Hasher,
}

impl Sum {
    /// Takes in the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    /// Of all bytes so far.
    pub fn extent(&self) -> Extent {
        Extent {
            bytes: self.bytes,
            crc32: self.hash.clone().finalize(),
        }
    }
}

/// The manifest with the checksum of its own text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    crc32: u32,
}

impl Manifest {
    /// Writes the manifest into the folder of the checkpoint.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let sealed = Sealed {
            crc32: self.seal()?,
            manifest: self.clone(),
        };
        atomic::write(&folder.join(MANIFEST), |out| {
            serde_json::to_writer_pretty(&mut *out, &sealed)?;
            out.write_all(b"\n")
        })
    }

    /// The manifest in the folder of a checkpoint, if there is one; the reason, if it is damaged.
    pub fn read(folder: &Path) -> Result<Option<Self>, String> {
        let text = match std::fs::read_to_string(folder.join(MANIFEST)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let sealed: Sealed = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let found = sealed.manifest.seal().map_err(|error| error.to_string())?;
        match found == sealed.crc32 {
            true => Ok(Some(sealed.manifest)),
            false => Err(format!(
                "its checksum is {found}, and it says {}",
                sealed.crc32
            )),
        }
    }

    /// The validation loss, nats.
    pub fn loss(&self) -> Option<f64> {
        self.validation_loss.as_ref()?.parse().ok()
    }

    fn seal(&self) -> serde_json::Result<u32> {
        Ok(crc32fast::hash(&serde_json::to_vec(self)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let extent = Extent::of_bytes(b"content");
        Manifest {
            epoch: 3,
            step: 30,
            run: "ab".into(),
            tensors: 30,
            shapes: "cd".into(),
            validation_loss: Some(2.345_678_901_234_567_f64.to_string()),
            metrics: Some(extent),
            files: [("model.bpk".to_string(), extent)].into(),
        }
    }

    #[test]
    fn every_changed_bit_is_found_or_means_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest();
        manifest.write(folder.path()).unwrap();
        assert_eq!(manifest.loss(), Some(2.345_678_901_234_567));
        let path = folder.path().join(MANIFEST);
        let bytes = std::fs::read(&path).unwrap();
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).unwrap();
            if let Ok(found) = Manifest::read(folder.path()) {
                assert_eq!(found.as_ref(), Some(&manifest), "bit {bit}");
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Manifest::read(folder.path()), Ok(None));
    }

    #[test]
    fn the_extent_of_a_file_is_that_of_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(Extent::of(file.path()).unwrap(), Extent::of_bytes(&bytes));
    }
}
