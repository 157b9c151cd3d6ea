//! The files in the output folder of a training run, as far as loading a model needs them.

use std::path::{Path, PathBuf};

use rwkv7_core::checkpoint::{Checkpoint, CheckpointError, ModelMetadata};

/// The folder of a run's checkpoints, in its own: `checkpoints/{epoch}/model.bpk`.
pub const CHECKPOINTS: &str = "checkpoints";

/// The file with the model of an epoch's checkpoint; `folder` is the run's folder of checkpoints.
pub fn model_file(folder: &Path, epoch: usize) -> PathBuf {
    folder.join(epoch.to_string()).join("model.bpk")
}

/// The epochs of whole checkpoints in the run's folder of checkpoints, oldest first.
pub fn complete(folder: &Path) -> Vec<usize> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut epochs: Vec<usize> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    epochs.sort_unstable();
    epochs
}

/// The model of the newest checkpoint of the run in `out`.
pub fn newest_checkpoint(out: &Path) -> Option<PathBuf> {
    let folder = out.join(CHECKPOINTS);
    let epoch = complete(&folder).pop()?;
    Some(model_file(&folder, epoch))
}

/// Opens a checkpoint. A checkpoint inside a run's folder does not carry its configuration; the `config.json` of the run has it.
///
/// # Errors
///
/// As [`Checkpoint::open`].
pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    if checkpoint.metadata().is_some() || path.extension().is_none_or(|e| e != "bpk") {
        return Ok(checkpoint);
    }
    // From `checkpoints/{epoch}/model.bpk` to the run's folder.
    let mut folders = path.ancestors().skip(2).take(2);
    Ok(match folders.find_map(ModelMetadata::beside) {
        Some(metadata) => checkpoint.with_metadata(metadata),
        None => checkpoint,
    })
}
