//! Errors of reading and writing checkpoints.

use std::path::PathBuf;

use crate::{
    config::ConfigError,
    messages::{brief, listed},
};

/// How many times larger than their file tensors may be. Views of one storage and packed archives are larger than their file.
pub(super) const LARGEST_EXPANSION: u64 = 16;

/// A checkpoint that cannot be read, understood or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is no such file.
    #[error("{}: no such file or folder", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The file is of no known format.
    #[error(
        "{}: not a checkpoint: {found}; expected a PyTorch .pth, a .safetensors, a Burn .bpk, or a folder with model.safetensors",
        path.display()
    )]
    UnknownFormat {
        /// The path.
        path: PathBuf,
        /// The file's actual content.
        found: String,
    },
    /// The file is something else than a model that this program reads.
    #[error("{}: {}; {remedy}", path.display(), brief(found))]
    OtherContent {
        /// The path.
        path: PathBuf,
        /// The file's actual content.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor of a type that no parameter has.
    #[error(
        "{}: tensor `{}` is of type {found}, expected f64, f32, f16 or bf16; convert it to one of these with the program that \
         wrote it",
        path.display(),
        brief(tensor)
    )]
    Dtype {
        /// The path.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// The tensors are far larger than the file, by repeated or compressed values.
    #[error(
        "{}: its tensors take {needed} bytes, and the file has only {held}; a file of a model is never {LARGEST_EXPANSION} times \
         smaller than the model, so this one would fill the memory with repeated values",
        path.display()
    )]
    Oversized {
        /// The path.
        path: PathBuf,
        /// Bytes of all tensors in memory.
        needed: u64,
        /// Bytes of the file.
        held: u64,
    },
    /// The file is damaged or does not follow its format.
    #[error("{}: damaged or incomplete {format}: {}; fetch or save it again", path.display(), brief(reason))]
    Damaged {
        /// The path.
        path: PathBuf,
        /// The file's format.
        format: &'static str,
        /// The reader's message.
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
    /// Writing failed. The path still holds its old content.
    #[error("{}: cannot be written; nothing was changed", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The tensors do not make up a model.
    #[error("{}: the tensors do not make up a model of architecture {architecture}:\n  {}", path.display(), listed(problems))]
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
        /// The architecture that the file names.
        found: String,
        /// The architecture that was asked for.
        expected: String,
    },
    /// The tensors are not of the architecture that the file gives.
    #[error(
        "{}: the file, or the config.json beside it, says that the model is of architecture {said}, and its tensors are of \
         architecture {found}; put the file into a folder of its own, or beside the config.json of its own model",
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
    /// A configuration that neither the shapes nor the metadata tell.
    #[error("{}: {}", path.display(), brief(reason))]
    Undeclared {
        /// The path.
        path: PathBuf,
        /// A sentence that says what is missing and what to do.
        reason: String,
    },
    /// A layout that has no names for this architecture.
    #[error("{}: the layout of flash-linear-attention has no place for a model of architecture {architecture} or for one whose embedding has a width of its own or whose norms leave channels out; write official names or a Burn record", path.display())]
    NoSuchLayout {
        /// The path to write to.
        path: PathBuf,
        /// The architecture.
        architecture: String,
    },
    /// Weights that are not finite numbers.
    #[error(
        "{}: weights that are not finite numbers:\n  {}\nits training diverged, the file is damaged, or its type is too narrow for the values",
        path.display(),
        listed(problems)
    )]
    NotFinite {
        /// The path.
        path: PathBuf,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// Values that the wanted type cannot hold.
    #[error(
        "{}: nothing was written: {dtype} cannot hold these values:\n  {}\nchoose a type of a larger range, such as bf16 or f32",
        path.display(),
        listed(problems)
    )]
    Overflow {
        /// The path to write to.
        path: PathBuf,
        /// The type.
        dtype: &'static str,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A configuration file beside the tensors that cannot be understood.
    #[error("{}: {}", path.display(), brief(reason))]
    ConfigFile {
        /// The configuration file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// The dimensions do not make up a model.
    #[error("{}: the dimensions make up no model", path.display())]
    Config {
        /// The checkpoint.
        path: PathBuf,
        /// The field.
        source: ConfigError,
    },
}
