//! Checkpoints of a run: `checkpoints/{epoch}/{model,optimizer,schedule}.bpk`.
//!
//! burn-train saves the three parts from three threads. They gather in `{epoch}.incomplete`, which gets its name only
//! with the last part on disk, and an old checkpoint goes only when a newer one is whole: whenever the run is killed,
//! the newest folder with a number for a name is a checkpoint to go on from.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use burn::train::checkpoint::{Checkpoint, Checkpointer, CheckpointerError};

const PARTS: [&str; 3] = ["model", "optimizer", "schedule"];

/// One of the three parts of the checkpoints in a folder.
pub struct Part {
    folder: PathBuf,
    name: &'static str,
    lock: Arc<Mutex<()>>,
}

/// The three parts, for burn-train: model, optimizer, learning-rate schedule.
pub fn parts(folder: &Path) -> [Part; 3] {
    let lock = Arc::new(Mutex::new(()));
    PARTS.map(|name| Part {
        folder: folder.to_path_buf(),
        name,
        lock: lock.clone(),
    })
}

/// The epochs of whole checkpoints, oldest first.
pub fn complete(folder: &Path) -> Vec<usize> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut epochs: Vec<usize> = entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    epochs.sort_unstable();
    epochs
}

/// Removes what a killed run left half-done.
///
/// # Errors
///
/// Those of the file system.
pub fn remove_incomplete(folder: &Path) -> io::Result<()> {
    let Ok(entries) = folder.read_dir() else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "incomplete") {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

impl Part {
    fn whole(&self, epoch: usize) -> PathBuf {
        self.folder.join(epoch.to_string())
    }

    fn incomplete(&self, epoch: usize) -> PathBuf {
        self.folder.join(format!("{epoch}.incomplete"))
    }

    fn file(&self, folder: &Path) -> PathBuf {
        folder.join(self.name).with_extension("bpk")
    }

    fn publish(&self, epoch: usize) -> io::Result<()> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let gathered = self.incomplete(epoch);
        let whole = self.whole(epoch);
        let all = PARTS
            .iter()
            .all(|part| gathered.join(part).with_extension("bpk").is_file());
        if all {
            if whole.exists() {
                std::fs::remove_dir_all(&whole)?;
            }
            std::fs::rename(&gathered, &whole)?;
            #[cfg(unix)]
            std::fs::File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }

    fn remove(&self, epoch: usize) -> io::Result<()> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = self.whole(epoch);
        let newer = complete(&self.folder)
            .last()
            .is_some_and(|&last| last > epoch);
        if newer && whole.exists() {
            // Out of sight first: a folder that is half removed must not look whole.
            let dying = self.incomplete(epoch);
            std::fs::rename(&whole, &dying)?;
            std::fs::remove_dir_all(&dying)?;
        }
        Ok(())
    }
}

impl<R: Checkpoint> Checkpointer<R> for Part {
    fn save(&self, epoch: usize, record: R) -> Result<(), CheckpointerError> {
        let folder = self.incomplete(epoch);
        std::fs::create_dir_all(&folder).map_err(CheckpointerError::IOError)?;
        record.save(self.file(&folder))?;
        self.publish(epoch).map_err(CheckpointerError::IOError)
    }

    fn restore(&self, epoch: usize) -> Result<R, CheckpointerError> {
        R::load(self.file(&self.whole(epoch)))
    }

    fn delete(&self, epoch: usize) -> Result<(), CheckpointerError> {
        self.remove(epoch).map_err(CheckpointerError::IOError)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::optim::lr_scheduler::LrSchedulerRecord;

    fn save(part: &Part, epoch: usize) {
        Checkpointer::<LrSchedulerRecord>::save(part, epoch, LrSchedulerRecord::new()).unwrap();
    }

    #[test]
    fn a_checkpoint_appears_with_its_last_part_and_goes_after_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        save(&parts[0], 1);
        save(&parts[1], 1);
        assert!(complete(folder.path()).is_empty());
        save(&parts[2], 1);
        assert_eq!(complete(folder.path()), [1]);

        // The only whole checkpoint stays, however often it is to be removed.
        save(&parts[0], 2);
        parts[0].remove(1).unwrap();
        assert_eq!(complete(folder.path()), [1]);
        save(&parts[1], 2);
        save(&parts[2], 2);
        parts[1].remove(1).unwrap();
        parts[2].remove(1).unwrap();
        assert_eq!(complete(folder.path()), [2]);

        save(&parts[0], 3);
        remove_incomplete(folder.path()).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
