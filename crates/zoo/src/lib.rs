//! Models of any architecture of this project: their configurations, their names, and where their weights come from.

pub mod atomic;
pub mod entries;
pub mod model;
pub mod run_folder;
pub mod source;

pub use entries::{Entry, config, entries, find, names, trained};
pub use model::{AnyModel, Arch, Model, ModelConfig};
pub use source::{Source, SourceError};
