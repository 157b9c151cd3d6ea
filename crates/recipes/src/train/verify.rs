//! Which checkpoint a run goes on from: the newest one that is whole and its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use zoo::run_folder::complete;

use super::{
    checkpoints::{PARTS, file_name},
    manifest::{Extent, MANIFEST, Manifest},
    record::{Shapes, check_model, check_optimizer, check_schedule},
};

/// A checkpoint that is not as the run wrote it, or not the run's.
#[derive(Debug, thiserror::Error)]
#[error("{}: damaged checkpoint: {reason}", path.display())]
pub struct DamagedCheckpoint {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub reason: String,
}

/// What the checkpoints of a run have to be.
pub struct Verifier<'a> {
    /// The folder of the checkpoints.
    pub folder: &'a Path,
    /// The run's fingerprint.
    pub run: String,
    /// Whether every checkpoint has a manifest: not those of older versions of this program.
    pub manifests: bool,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// Steps of an epoch.
    pub per_epoch: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Whether the model grows.
    pub grows: bool,
    /// The tensors of the model after an epoch.
    pub shapes: &'a dyn Fn(usize) -> Shapes,
}

/// Where a run goes on.
#[derive(Debug, Default)]
pub struct Position {
    /// Epochs done.
    pub epoch: usize,
    /// `metrics.jsonl` at that time.
    pub metrics: Option<Extent>,
    /// Validation losses by epoch, of the checkpoints that have manifests.
    pub losses: BTreeMap<usize, f64>,
    /// Epochs whose checkpoints are there.
    pub whole: BTreeSet<usize>,
    /// Those of them without a manifest.
    pub without_manifest: Vec<usize>,
}

impl Verifier<'_> {
    /// The newest checkpoint that can be used; epoch 0 if there is none at all. Log lines name those that are passed over.
    ///
    /// # Errors
    ///
    /// [`DamagedCheckpoint`] if there are checkpoints and none can be used.
    pub fn newest(&self) -> Result<Position, DamagedCheckpoint> {
        let epochs: BTreeSet<usize> = complete(self.folder).into_iter().collect();
        let mut damaged = Vec::new();
        for &epoch in epochs.iter().rev() {
            let manifest = match self.check(epoch) {
                Ok(manifest) => manifest,
                Err(error) => {
                    damaged.push(error);
                    continue;
                }
            };
            for damaged in damaged {
                log::warn!("{damaged}; going on from an earlier one, epoch {epoch}");
            }
            let whole: BTreeSet<usize> = epochs.range(1..=epoch).copied().collect();
            let mut position = Position {
                epoch,
                metrics: manifest.and_then(|manifest| manifest.metrics),
                ..Position::default()
            };
            for &earlier in &whole {
                match Manifest::read(&self.checkpoint(earlier)) {
                    Ok(Some(manifest)) => {
                        let loss = manifest.loss().filter(|_| manifest.run == self.run);
                        position.losses.extend(loss.map(|loss| (earlier, loss)));
                    }
                    Ok(None)
                        if earlier == epoch || (!self.manifests && self.check(earlier).is_ok()) =>
                    {
                        position.without_manifest.push(earlier);
                    }
                    // The best model is looked for among the others.
                    _ => {}
                }
            }
            return Ok(Position { whole, ..position });
        }
        damaged
            .into_iter()
            .next()
            .map_or(Ok(Position::default()), Err)
    }

    /// Checks everything of a checkpoint before any of it is used.
    ///
    /// # Errors
    ///
    /// [`DamagedCheckpoint`] names the file and the reason.
    pub fn check(&self, epoch: usize) -> Result<Option<Manifest>, DamagedCheckpoint> {
        let folder = self.checkpoint(epoch);
        if epoch == 0 || epoch > self.epochs {
            let reason = format!(
                "the run has epochs 1 to {}; remove the folder, it is not this run's",
                self.epochs
            );
            return Err(damaged(folder, reason));
        }
        let step = (epoch * self.per_epoch).min(self.steps);
        let shapes = (self.shapes)(epoch);
        let manifest =
            Manifest::read(&folder).map_err(|reason| damaged(folder.join(MANIFEST), reason))?;
        match &manifest {
            Some(manifest) => self.check_manifest(&folder, manifest, (epoch, step), &shapes)?,
            None if self.manifests => {
                let reason =
                    "it is missing; without one, it is not this run's checkpoint or not whole";
                return Err(damaged(folder.join(MANIFEST), reason.into()));
            }
            None => log::warn!(
                "{}: an older version wrote it without checksums, so that only names and shapes are compared",
                folder.display()
            ),
        }
        let [model, optimizer, schedule] = PARTS.map(|part| folder.join(file_name(part)));
        let named = |path: &Path| {
            let path = path.to_path_buf();
            |reason| damaged(path, reason)
        };
        let ids = check_model(&model, &shapes).map_err(named(&model))?;
        let taken = (!self.grows).then_some(step);
        check_optimizer(&optimizer, &ids, taken).map_err(named(&optimizer))?;
        check_schedule(&schedule, step).map_err(named(&schedule))?;
        Ok(manifest)
    }

    fn check_manifest(
        &self,
        folder: &Path,
        manifest: &Manifest,
        (epoch, step): (usize, usize),
        shapes: &Shapes,
    ) -> Result<(), DamagedCheckpoint> {
        let other = |what: &str, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            let reason = format!("it is of {what} {found}, expected {expected}");
            match found == expected {
                true => Ok(()),
                false => Err(damaged(folder.join(MANIFEST), reason)),
            }
        };
        other("run", &manifest.run, &self.run)?;
        other("epoch", &manifest.epoch, &epoch)?;
        other("step", &manifest.step, &step)?;
        other("a model with shapes", &manifest.shapes, &shapes.digest())?;
        for name in PARTS.map(file_name) {
            let path = folder.join(&name);
            let Some(expected) = manifest.files.get(&name) else {
                return Err(damaged(path, format!("{MANIFEST} does not name it")));
            };
            let found = match Extent::of(&path) {
                Ok(found) => found,
                Err(error) => return Err(damaged(path, error.to_string())),
            };
            if found != *expected {
                let (bytes, crc32) = (expected.bytes, expected.crc32);
                let reason = format!(
                    "it has {} bytes with checksum {:08x}, and {MANIFEST} says {bytes} with {crc32:08x}",
                    found.bytes, found.crc32
                );
                return Err(damaged(path, reason));
            }
        }
        Ok(())
    }

    fn checkpoint(&self, epoch: usize) -> PathBuf {
        self.folder.join(epoch.to_string())
    }
}

fn damaged(path: PathBuf, reason: String) -> DamagedCheckpoint {
    DamagedCheckpoint { path, reason }
}
