//! Checkpoints of a run: `checkpoints/{epoch}/{model,optimizer,schedule}.bpk`.
//!
//! burn-train saves the three parts from three threads. They gather in `{epoch}.incomplete`, which gets its name only
//! when all three saves have returned, and an old checkpoint goes only when a newer one is whole: whenever the run is
//! killed, the newest folder with a number for a name is a checkpoint to go on from.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::{
    optim::{OptimizerRecord, lr_scheduler::LrSchedulerRecord},
    store::ModuleRecord,
    train::{
        checkpoint::{
            Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
        },
        metric::store::{Aggregate, EventStoreClient, Split},
    },
};

use zoo::run_folder::complete;

use super::{metrics, metrics_log::MetricsLog};

const PARTS: [&str; 3] = ["model", "optimizer", "schedule"];

/// A checkpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: damaged checkpoint: {reason}", path.display())]
pub struct DamagedCheckpoint {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub reason: String,
}

/// One of the three parts of the checkpoints in a folder.
pub struct CheckpointPart {
    folder: PathBuf,
    name: &'static str,
    /// Parts saved of each checkpoint that is not whole yet.
    saved: Arc<Mutex<BTreeMap<usize, usize>>>,
}

/// The three parts, for burn-train: model, optimizer, learning-rate schedule.
pub fn parts(folder: &Path) -> [CheckpointPart; 3] {
    let saved = Arc::new(Mutex::new(BTreeMap::new()));
    PARTS.map(|name| CheckpointPart {
        folder: folder.to_path_buf(),
        name,
        saved: saved.clone(),
    })
}

/// The newest checkpoint that can be read; 0 if there is none at all. A log line names the damaged ones that are passed over.
///
/// # Errors
///
/// [`DamagedCheckpoint`] if there are checkpoints and none can be read.
pub fn newest_usable(folder: &Path) -> Result<usize, DamagedCheckpoint> {
    let mut first = None;
    for epoch in complete(folder).into_iter().rev() {
        match read(&folder.join(epoch.to_string())) {
            Ok(()) => {
                if let Some(damaged) = first {
                    log::warn!("{damaged}; going on from the one before, epoch {epoch}");
                }
                return Ok(epoch);
            }
            Err(damaged) => first = first.or(Some(damaged)),
        }
    }
    first.map_or(Ok(0), Err)
}

fn read(checkpoint: &Path) -> Result<(), DamagedCheckpoint> {
    fn part<R: Checkpoint>(path: PathBuf) -> Result<(), DamagedCheckpoint> {
        match R::load(path.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(DamagedCheckpoint {
                path,
                reason: error.to_string(),
            }),
        }
    }
    part::<ModuleRecord>(file(checkpoint, PARTS[0]))?;
    part::<OptimizerRecord>(file(checkpoint, PARTS[1]))?;
    part::<LrSchedulerRecord>(file(checkpoint, PARTS[2]))
}

fn file(checkpoint: &Path, part: &str) -> PathBuf {
    checkpoint.join(part).with_extension("bpk")
}

/// Removes checkpoints that a killed run left half-done.
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

impl CheckpointPart {
    fn whole(&self, epoch: usize) -> PathBuf {
        self.folder.join(epoch.to_string())
    }

    fn incomplete(&self, epoch: usize) -> PathBuf {
        self.folder.join(format!("{epoch}.incomplete"))
    }

    fn saved(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts this part; the last one gives the checkpoint its name. That a file is there does not mean that its save
    /// has returned: burn-pack syncs the folder after the rename, and fails if the folder is gone by then.
    fn publish(&self, epoch: usize) -> io::Result<()> {
        let mut saved = self.saved();
        let count = saved.entry(epoch).or_insert(0);
        *count += 1;
        if *count < PARTS.len() {
            return Ok(());
        }
        saved.remove(&epoch);
        let whole = self.whole(epoch);
        if whole.exists() {
            std::fs::remove_dir_all(&whole)?;
        }
        std::fs::rename(self.incomplete(epoch), &whole)?;
        #[cfg(unix)]
        std::fs::File::open(&self.folder)?.sync_all()?;
        Ok(())
    }

    fn remove(&self, epoch: usize) -> io::Result<()> {
        let _guard = self.saved();
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

impl<R: Checkpoint> Checkpointer<R> for CheckpointPart {
    fn save(&self, epoch: usize, record: R) -> Result<(), CheckpointerError> {
        let folder = self.incomplete(epoch);
        std::fs::create_dir_all(&folder).map_err(CheckpointerError::IOError)?;
        record.save(file(&folder, self.name))?;
        self.publish(epoch).map_err(CheckpointerError::IOError)
    }

    fn restore(&self, epoch: usize) -> Result<R, CheckpointerError> {
        R::load(file(&self.whole(epoch), self.name))
    }

    fn delete(&self, epoch: usize) -> Result<(), CheckpointerError> {
        self.remove(epoch).map_err(CheckpointerError::IOError)
    }
}

/// Saves after every epoch and keeps the newest checkpoints and the one with the lowest validation loss.
///
/// The folder itself decides, so that a resumed run also drops checkpoints that it kept before.
pub struct NewestAndBest {
    /// Where the checkpoints are.
    pub folder: PathBuf,
    /// How many of the newest to keep.
    pub keep: usize,
    /// Validation losses.
    pub log: MetricsLog,
    /// Epochs after which the model grew. The best checkpoint is one of the model as it is.
    pub growths: Vec<usize>,
}

/// The first epoch whose checkpoint has the model of epoch `epoch`'s size.
pub fn first_of_size(growths: &[usize], epoch: usize) -> usize {
    let past = growths.iter().filter(|growth| **growth <= epoch);
    past.copied().max().unwrap_or(0)
}

impl CheckpointingStrategy for NewestAndBest {
    fn checkpointing(
        &mut self,
        epoch: usize,
        store: &EventStoreClient,
    ) -> Vec<CheckpointingAction> {
        // The answer comes after every event before the question: from here on the log holds this epoch's loss.
        store.find_metric(metrics::LOSS, epoch, Aggregate::Mean, &Split::Valid);
        if self.log.not_finite().is_some() {
            return Vec::new();
        }
        let mut epochs = complete(&self.folder);
        epochs.push(epoch);
        let first = first_of_size(&self.growths, epoch);
        let alike: Vec<usize> = epochs.iter().copied().filter(|e| *e >= first).collect();
        let best = self.log.best(&alike);
        let mut actions = vec![CheckpointingAction::Save];
        actions.extend(
            epochs
                .into_iter()
                .filter(|&e| e + self.keep <= epoch && Some(e) != best)
                .map(CheckpointingAction::Delete),
        );
        actions
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::{module::Module, nn::LinearConfig, tensor::Device};

    fn save(part: &CheckpointPart, epoch: usize) {
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

    /// burn-pack syncs the folder after it has renamed the file: a checkpoint that gets its name in between makes that
    /// save fail, and training with it.
    #[test]
    fn a_checkpoint_waits_for_saves_whose_files_are_there_already() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let unfinished = folder.path().join("1.incomplete");
        std::fs::create_dir(&unfinished).unwrap();
        std::fs::write(file(&unfinished, PARTS[0]), "").unwrap();
        save(&parts[1], 1);
        save(&parts[2], 1);
        assert!(complete(folder.path()).is_empty());
        save(&parts[0], 1);
        assert_eq!(complete(folder.path()), [1]);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_named_if_there_is_no_other() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_usable(folder.path()).unwrap(), 0);
        let model = LinearConfig::new(2, 2).init(&Device::flex());
        let make = |epoch: usize| {
            let checkpoint = folder.path().join(epoch.to_string());
            std::fs::create_dir(&checkpoint).unwrap();
            model
                .clone()
                .into_record()
                .save(file(&checkpoint, "model"))
                .unwrap();
            OptimizerRecord::save(OptimizerRecord::default(), file(&checkpoint, "optimizer"))
                .unwrap();
            LrSchedulerRecord::save(LrSchedulerRecord::new(), file(&checkpoint, "schedule"))
                .unwrap();
        };
        make(9);
        make(10);
        assert_eq!(newest_usable(folder.path()).unwrap(), 10);
        std::fs::write(folder.path().join("10/optimizer.bpk"), b"cut").unwrap();
        assert_eq!(newest_usable(folder.path()).unwrap(), 9);
        std::fs::remove_file(folder.path().join("9/schedule.bpk")).unwrap();
        let error = newest_usable(folder.path()).unwrap_err().to_string();
        assert!(error.contains("10/optimizer.bpk"), "{error}");
    }
}
