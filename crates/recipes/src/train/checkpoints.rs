//! Checkpoints of a run: `checkpoints/{epoch}/{model,optimizer,schedule}.bpk` and their `manifest.json`.
//!
//! burn-train saves the three parts from three threads. They gather in `{epoch}.incomplete`, which gets its manifest and its name
//! only when all three saves have returned, and an old checkpoint goes only when a newer one is whole: whenever the run is
//! killed, the newest folder with a number for a name is a checkpoint to go on from.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::train::{
    checkpoint::{
        Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
    },
    metric::store::{Aggregate, EventStoreClient, Split},
};

use super::{
    manifest::{Extent, Manifest},
    metrics,
    metrics_log::MetricsLog,
    record::Shapes,
};
use crate::atomic;

/// The parts of a checkpoint.
pub const PARTS: [&str; 3] = ["model", "optimizer", "schedule"];

/// The name of a part's file.
pub fn file_name(part: &str) -> String {
    format!("{part}.bpk")
}

/// The checkpoints of a run in training. All clones share them.
#[derive(Clone)]
pub struct Checkpoints(Arc<Shared>);

struct Shared {
    folder: PathBuf,
    /// The fingerprint of the run.
    run: String,
    /// Steps of an epoch, and of the whole run.
    steps: (usize, usize),
    log: MetricsLog,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Parts saved of each checkpoint that is not whole yet.
    saved: BTreeMap<usize, usize>,
    /// Epochs of whole checkpoints of this run.
    whole: BTreeSet<usize>,
}

impl Checkpoints {
    /// Those in `folder`, of which the run knows the epochs `whole`. `run` is its fingerprint, `steps` those of an epoch and of the
    /// whole run.
    pub fn new(
        folder: &Path,
        run: String,
        steps: (usize, usize),
        log: MetricsLog,
        whole: BTreeSet<usize>,
    ) -> Self {
        Self(Arc::new(Shared {
            folder: folder.to_path_buf(),
            run,
            steps,
            log,
            state: Mutex::new(State {
                whole,
                ..State::default()
            }),
        }))
    }

    /// The three parts, for burn-train: model, optimizer, learning-rate schedule.
    pub fn parts(&self) -> [CheckpointPart; 3] {
        PARTS.map(|name| CheckpointPart {
            all: self.clone(),
            name,
        })
    }

    /// The epochs of the whole checkpoints, oldest first.
    pub fn epochs(&self) -> Vec<usize> {
        self.state().whole.iter().copied().collect()
    }

    /// Writes the manifest of a checkpoint whose other files are in `folder`.
    pub fn describe(&self, epoch: usize, folder: &Path) -> io::Result<()> {
        let files = PARTS.map(file_name).map(|name| -> io::Result<_> {
            let extent = Extent::of(&folder.join(&name))?;
            Ok((name, extent))
        });
        let shapes = Shapes::read(&folder.join(file_name(PARTS[0]))).map_err(io::Error::other)?;
        let Shared { steps, log, .. } = &*self.0;
        let manifest = Manifest {
            epoch,
            step: (epoch * steps.0).min(steps.1),
            run: self.0.run.clone(),
            tensors: shapes.len(),
            shapes: shapes.digest(),
            validation_loss: log.loss(epoch).map(|loss| loss.to_string()),
            metrics: log.extent(epoch),
            files: files.into_iter().collect::<io::Result<_>>()?,
        };
        manifest.write(folder)
    }

    fn whole(&self, epoch: usize) -> PathBuf {
        self.0.folder.join(epoch.to_string())
    }

    fn incomplete(&self, epoch: usize) -> PathBuf {
        self.0.folder.join(format!("{epoch}.incomplete"))
    }

    fn dying(&self, epoch: usize) -> PathBuf {
        self.0.folder.join(format!("{epoch}.old.incomplete"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a part; the last one gives the checkpoint its manifest and its name. That a file is there does not mean that its
    /// save has returned: burn-pack syncs the folder after the rename, and fails if the folder is gone by then.
    fn publish(&self, epoch: usize) -> io::Result<()> {
        let mut state = self.state();
        let count = state.saved.entry(epoch).or_insert(0);
        *count += 1;
        if *count < PARTS.len() {
            return Ok(());
        }
        state.saved.remove(&epoch);
        let (incomplete, whole) = (self.incomplete(epoch), self.whole(epoch));
        self.describe(epoch, &incomplete)?;
        if whole.exists() {
            self.bury(epoch)?;
        }
        atomic::rename(&incomplete, &whole)?;
        state.whole.insert(epoch);
        Ok(())
    }

    fn remove(&self, epoch: usize) -> io::Result<()> {
        let mut state = self.state();
        let newer = state.whole.last().is_some_and(|&last| last > epoch);
        if newer && state.whole.remove(&epoch) {
            self.bury(epoch)?;
        }
        Ok(())
    }

    /// Removes a checkpoint, out of sight first: a folder that is half removed must not look whole.
    fn bury(&self, epoch: usize) -> io::Result<()> {
        let dying = self.dying(epoch);
        atomic::rename(&self.whole(epoch), &dying)?;
        atomic::remove_folder(&dying)
    }
}

/// Removes checkpoints and files that a killed run left half-done.
///
/// # Errors
///
/// Those of the file system.
pub fn remove_incomplete(folder: &Path) -> io::Result<()> {
    atomic::remove_temporary(folder)?;
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "incomplete") {
            atomic::remove_folder(&path)?;
        } else if path.is_dir() {
            atomic::remove_temporary(&path)?;
        }
    }
    Ok(())
}

/// One of the three parts of the checkpoints.
pub struct CheckpointPart {
    all: Checkpoints,
    name: &'static str,
}

impl CheckpointPart {
    fn file(&self, folder: &Path) -> PathBuf {
        folder.join(file_name(self.name))
    }
}

impl<R: Checkpoint> Checkpointer<R> for CheckpointPart {
    fn save(&self, epoch: usize, record: R) -> Result<(), CheckpointerError> {
        let folder = self.all.incomplete(epoch);
        atomic::create_folder(&folder).map_err(CheckpointerError::IOError)?;
        record.save(self.file(&folder))?;
        atomic::point();
        self.all.publish(epoch).map_err(CheckpointerError::IOError)
    }

    fn restore(&self, epoch: usize) -> Result<R, CheckpointerError> {
        R::load(self.file(&self.all.whole(epoch)))
    }

    fn delete(&self, epoch: usize) -> Result<(), CheckpointerError> {
        self.all.remove(epoch).map_err(CheckpointerError::IOError)
    }
}

/// Saves after every epoch and keeps the newest checkpoints and the one with the lowest validation loss.
///
/// The folder itself decides, so that a resumed run also drops checkpoints that it kept before.
pub struct NewestAndBest {
    /// The checkpoints.
    pub checkpoints: Checkpoints,
    /// How many of the newest to keep.
    pub keep: usize,
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
        let log = &self.checkpoints.0.log;
        if log.not_finite().is_some() {
            return Vec::new();
        }
        let mut epochs = self.checkpoints.epochs();
        epochs.push(epoch);
        let first = first_of_size(&self.growths, epoch);
        let alike: Vec<usize> = epochs.iter().copied().filter(|e| *e >= first).collect();
        let best = log.best(&alike);
        let mut actions = vec![CheckpointingAction::Save];
        actions.extend(
            epochs
                .into_iter()
                .filter(|&e| e.saturating_add(self.keep) <= epoch && Some(e) != best)
                .map(CheckpointingAction::Delete),
        );
        actions
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::train::metrics_log::{Past, Steps};
    use burn::{
        module::Module,
        nn::LinearConfig,
        optim::{OptimizerRecord, lr_scheduler::LrSchedulerRecord},
        tensor::Device,
    };
    use zoo::run_folder::complete;

    fn checkpoints(folder: &Path) -> Checkpoints {
        let steps = Steps {
            done: 0,
            per_epoch: 5,
            accumulation: 1,
        };
        let log = MetricsLog::open(&folder.join("log"), steps, Past::default()).unwrap();
        Checkpoints::new(folder, "run".into(), (5, 12), log, BTreeSet::new())
    }

    fn save(all: &Checkpoints, part: usize, epoch: usize) {
        let model = LinearConfig::new(2, 2).init(&Device::flex());
        let saver = &all.parts()[part];
        match part {
            0 => Checkpointer::save(saver, epoch, model.into_record()),
            1 => Checkpointer::save(saver, epoch, OptimizerRecord::default()),
            _ => Checkpointer::save(saver, epoch, LrSchedulerRecord::new()),
        }
        .unwrap();
    }

    #[test]
    fn a_checkpoint_appears_with_its_last_part_and_goes_after_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let all = checkpoints(folder.path());
        save(&all, 0, 1);
        save(&all, 1, 1);
        assert!(complete(folder.path()).is_empty());
        save(&all, 2, 1);
        assert_eq!(complete(folder.path()), [1]);

        // The only whole checkpoint stays, however often it is to be removed.
        save(&all, 0, 2);
        all.remove(1).unwrap();
        assert_eq!(complete(folder.path()), [1]);
        save(&all, 1, 2);
        save(&all, 2, 2);
        all.remove(1).unwrap();
        all.remove(1).unwrap();
        assert_eq!(complete(folder.path()), [2]);

        save(&all, 0, 3);
        remove_incomplete(folder.path()).unwrap();
        let left = folder.path().read_dir().unwrap();
        let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["2", "log"].map(Into::into).into());
        assert_eq!(all.epochs(), [2]);
    }

    /// burn-pack syncs the folder after it has renamed the file: a checkpoint that gets its name in between makes that
    /// save fail, and training with it.
    #[test]
    fn a_checkpoint_waits_for_saves_whose_files_are_there_already() {
        let folder = tempfile::tempdir().unwrap();
        let all = checkpoints(folder.path());
        let unfinished = folder.path().join("1.incomplete");
        std::fs::create_dir(&unfinished).unwrap();
        std::fs::write(unfinished.join(file_name(PARTS[0])), "").unwrap();
        save(&all, 1, 1);
        save(&all, 2, 1);
        assert!(complete(folder.path()).is_empty());
        save(&all, 0, 1);
        assert_eq!(complete(folder.path()), [1]);
    }

    #[test]
    fn the_manifest_tells_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let all = checkpoints(folder.path());
        (0..3).for_each(|part| save(&all, part, 3));
        let checkpoint = folder.path().join("3");
        let manifest = Manifest::read(&checkpoint).unwrap().unwrap();
        assert_eq!(
            (manifest.epoch, manifest.step, manifest.tensors),
            (3, 12, 2)
        );
        assert_eq!(manifest.run, "run");
        for part in PARTS.map(file_name) {
            let extent = Extent::of(&checkpoint.join(&part)).unwrap();
            assert_eq!(manifest.files[&part], extent);
        }
    }
}
