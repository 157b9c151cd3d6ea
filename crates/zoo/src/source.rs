//! Finding a model by its name, its file or its folder.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rwkv7_core::{
    checkpoint::{Checkpoint, CheckpointError},
    files,
};

use crate::{
    entries::{Entry, find, trained},
    run_folder::{self, RECIPE, beside, unfinished},
};

/// Bytes of the largest recipe that is read.
const LARGEST_RECIPE: u64 = 1 << 24;

/// Where a model comes from: [`open`](Self::open) gives its checkpoint, [`tokenizer`](Self::tokenizer) the tokenizer that it was
/// trained with.
///
/// ```
/// use metastate_zoo::{AnyConfig, Source};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // A name, a checkpoint file, or the folder of a training run or of a Hugging Face model.
/// let source = Source::find("reverse-meta-state".as_ref())?;
/// let config = AnyConfig::of(&source.open()?)?;
/// assert_eq!(config.num_params(), 104_896);
/// # Ok(()) }
/// ```
#[derive(Debug)]
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
        /// The given name.
        name: PathBuf,
    },
}

impl Source {
    /// The file or folder `name`, or else the trained model with this name.
    ///
    /// # Errors
    ///
    /// [`SourceError`] if the model with this name has no weights, or if there is neither a path nor a name.
    pub fn find(name: &Path) -> Result<Self, SourceError> {
        if name.exists() {
            return Ok(Self::Path(name.to_path_buf()));
        }
        match name.to_str().and_then(find) {
            Some(entry) if entry.is_trained() => Ok(Self::Zoo(entry)),
            Some(entry) => Err(SourceError::Untrained { name: &entry.name }),
            None => Err(SourceError::Nothing { name: name.into() }),
        }
    }

    /// The checkpoint.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`]; [`CheckpointError::UnknownFormat`] for the folder of a training run that has not ended.
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
                None => unreachable!("`find` gives only trained models"),
            },
        }
    }

    /// The recipe of the training run that left the model, as JSON, and where the recipe stands.
    pub(crate) fn recipe(&self) -> Option<(String, String)> {
        match self {
            Self::Path(path) => {
                let file = beside(path, RECIPE)?;
                let recipe = files::read_text(&file, LARGEST_RECIPE).ok()?;
                Some((file.display().to_string(), recipe))
            }
            Self::Zoo(entry) => Some((entry.name.clone(), entry.recipe()?.into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(out),
            Self::Zoo(entry) => out.write_str(&entry.name),
        }
    }
}
