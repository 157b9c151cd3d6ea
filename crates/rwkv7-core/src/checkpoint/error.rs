//! What can be wrong with a checkpoint.

use std::path::PathBuf;

use crate::config::ConfigError;

/// A checkpoint that cannot be read, understood or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing there.
    #[error("{}: no such file or folder", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The file is of no format that we read.
    #[error(
        "{}: not a checkpoint: {found}; expected a PyTorch .pth, a .safetensors, a Burn .bpk, or a folder with model.safetensors",
        path.display()
    )]
    UnknownFormat {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The file is damaged, or is not what its format says.
    #[error("{}: damaged or incomplete {format}: {reason}; fetch or save it again", path.display())]
    Damaged {
        /// The path.
        path: PathBuf,
        /// The file's format.
        format: &'static str,
        /// What the reader found.
        reason: String,
    },
    /// Reading failed for a reason outside the file.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Writing failed. What was at the path before is still there.
    #[error("{}: cannot be written; nothing was changed", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The tensors do not make up a model.
    #[error("{}: the tensors do not make up a model of architecture {architecture}:\n  {}", path.display(), problems.join("\n  "))]
    Tensors {
        /// The path.
        path: PathBuf,
        /// The architecture that was looked for.
        architecture: String,
        /// One line a tensor: missing, unknown or of the wrong shape.
        problems: Vec<String>,
    },
    /// A model of another architecture.
    #[error("{}: holds a model of architecture {found}, expected {expected}", path.display())]
    Architecture {
        /// The path.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The tensors are not of the architecture that the file gives.
    #[error(
        "{}: the file, or the config.json beside it, says that the model is of architecture {said}, and its tensors are of \
         architecture {found}; put the file into a folder of its own, or beside the config.json of its training run",
        path.display()
    )]
    Contradiction {
        /// The path.
        path: PathBuf,
        /// The architecture that the file gives.
        said: String,
        /// The one that its tensors have.
        found: String,
    },
    /// A configuration that neither shapes nor the file tell.
    #[error("{}: {reason}", path.display())]
    Undeclared {
        /// The path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// An architecture that a layout has no names for.
    #[error("{}: the layout of flash-linear-attention has no place for a model of architecture {architecture} or for one whose embedding has a width of its own or whose norms leave channels out; write official names or a Burn record", path.display())]
    NoSuchLayout {
        /// Where it was to be written.
        path: PathBuf,
        /// The architecture.
        architecture: String,
    },
    /// Weights that are no numbers.
    #[error(
        "{}: weights that are not finite numbers:\n  {}\nthe training run that made it diverged, or the file is damaged",
        path.display(),
        problems.join("\n  ")
    )]
    NotFinite {
        /// The path.
        path: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A configuration file beside the tensors that cannot be understood.
    #[error("{}: {reason}", path.display())]
    ConfigFile {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The dimensions do not make up a model.
    #[error("{}: the dimensions make up no model", path.display())]
    Config {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
}
