//! The output folder of a training run, as far as loading a model needs it.
//!
//! ```text
//! recipe.json                        written when the run starts
//! config.json
//! tokenizer.json, vocabulary.txt     a copy of the tokenizer's file, or neither for the tokenizer `byte`
//! checkpoints/{epoch}/model.bpk      one folder for each epoch that is kept
//! model.safetensors                  written when the run ends
//! ```

use std::path::{Path, PathBuf};

use rwkv7_core::checkpoint::{Checkpoint, CheckpointError, ModelMetadata};

/// The folder of the checkpoints within that of the run.
pub const CHECKPOINTS: &str = "checkpoints";

/// The file of the recipe within the folder of the run.
pub const RECIPE: &str = "recipe.json";

/// The copy of the tokenizer's file within the folder of the run: a Hugging Face tokenizer, or a World vocabulary.
pub const TOKENIZERS: [&str; 2] = ["tokenizer.json", "vocabulary.txt"];

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

/// The file `name` of the run that left the model in `path`. The file lies beside the model. For a checkpoint of the run (`.bpk`)
/// it may also lie one or two folders above.
pub fn beside(path: &Path, name: &str) -> Option<PathBuf> {
    let checkpoint = path.extension().is_some_and(|e| e == "bpk");
    let folders = path.ancestors().skip(usize::from(!path.is_dir()));
    let folders = folders.take(if checkpoint { 3 } else { 1 });
    let mut files = folders.map(|folder| folder.join(name));
    files.find(|file| file.is_file())
}

/// The state of a run that has not ended, in words; none where `folder` holds a model or no run.
pub(crate) fn unfinished(folder: &Path) -> Option<String> {
    if !folder.join(RECIPE).is_file() || folder.join("model.safetensors").exists() {
        return None;
    }
    let checkpoints = folder.join(CHECKPOINTS);
    let newest = match complete(&checkpoints).pop() {
        Some(epoch) => format!(
            "its newest checkpoint is {}",
            model_file(&checkpoints, epoch).display()
        ),
        None => "it has no checkpoint yet".into(),
    };
    Some(format!(
        "the folder of a training run that has not ended; {newest}, and `train --resume` ends it"
    ))
}
