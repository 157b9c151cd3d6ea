//! Where a model comes from: a name of the zoo, a checkpoint file or a folder.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rwkv7_core::checkpoint::{Checkpoint, CheckpointError};

use crate::{
    entries::{Entry, find, trained},
    run_folder::{self, newest_checkpoint},
};

/// Where a model comes from.
pub enum Source {
    /// A file or folder.
    Path(PathBuf),
    /// A trained model of the zoo.
    Zoo(&'static Entry),
}

/// No model with weights.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A model of the zoo that is only a configuration.
    #[error(
        "{name} is a configuration without weights: train it with --recipe text --data PATH --set model.preset={name}; trained \
         models of the zoo: {}",
        trained().collect::<Vec<_>>().join(", ")
    )]
    Untrained {
        /// The model.
        name: &'static str,
    },
    /// Neither a path nor a name.
    #[error(
        "{}: no such file or folder, and no model of the zoo; trained models of the zoo: {}",
        name.display(),
        trained().collect::<Vec<_>>().join(", ")
    )]
    Nothing {
        /// What was asked for.
        name: PathBuf,
    },
}

impl Source {
    /// A name of the zoo, or else a path.
    ///
    /// # Errors
    ///
    /// [`SourceError`] if the name is that of a configuration, or if there is nothing.
    pub fn find(name: &Path) -> Result<Self, SourceError> {
        if name.exists() {
            return Ok(Self::Path(name.to_path_buf()));
        }
        match name.to_str().and_then(find) {
            Some(entry) if entry.trained.is_some() => Ok(Self::Zoo(entry)),
            Some(entry) => Err(SourceError::Untrained { name: entry.name }),
            None => Err(SourceError::Nothing { name: name.into() }),
        }
    }

    /// The checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn open(&self) -> Result<Checkpoint, CheckpointError> {
        match self {
            Self::Path(path) => match unfinished(path) {
                Some(found) => Err(CheckpointError::UnknownFormat {
                    path: path.clone(),
                    found,
                }),
                None => run_folder::open(path),
            },
            Self::Zoo(entry) => match entry.weights() {
                Some(weights) => weights,
                None => unreachable!("only trained models are found"),
            },
        }
    }
}

/// What there is in the folder of a training run that has not ended.
fn unfinished(folder: &Path) -> Option<String> {
    if !folder.join("recipe.json").is_file() || folder.join("model.safetensors").exists() {
        return None;
    }
    let newest = match newest_checkpoint(folder) {
        Some(file) => format!("its newest checkpoint is {}", file.display()),
        None => "it has no checkpoint yet".into(),
    };
    Some(format!(
        "the folder of a training run that has not ended; {newest}, and `train --resume` ends it"
    ))
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(out),
            Self::Zoo(entry) => out.write_str(entry.name),
        }
    }
}
