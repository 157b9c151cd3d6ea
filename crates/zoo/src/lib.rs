//! RWKV-7 and Meta-State models for Burn by name, file or folder, whatever their architecture.
//!
//! A program that is given a model at run time does not know its architecture. This crate finds the model, reads the architecture
//! out of it and loads it. Nothing here trains.
//!
//! ```
//! use burn::tensor::Device;
//! use metastate_zoo::{AnyModel, Source, for_architecture, row};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::default();
//! let source = Source::find("reverse-meta-state".as_ref())?;
//! let model = AnyModel::load(source.open()?, &device)?;
//! let (_, tokenizer) = source.tokenizer(None, model.vocab_size())?;
//! let prompt = row(&tokenizer.encode("31415,")?, model.vocab_size(), &device)?;
//! let logits = for_architecture!(AnyModel, model, model => model.network.forward(prompt, None).0);
//! assert_eq!(logits.dims(), [1, 6, 256]);
//! # Ok(()) }
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`config`](mod@config) | [`AnyConfig`], a configuration of any architecture |
//! | [`model`] | [`AnyModel`], a model of any architecture |
//! | [`entries`](mod@entries) | the models that have a name |
//! | [`source`] | [`Source`], a model by name, file or folder |
//! | [`tokenizer`] | the tokenizer that a model was trained with, and token ids as a tensor |
//! | [`change`] | configurations with some fields changed |
//! | [`run_folder`] | the files of a training run that loading needs |
//!
//! The feature `clap` makes [`Arch`] a value of command lines.

pub mod change;
pub mod config;
pub mod entries;
pub mod model;
pub mod run_folder;
pub mod source;
pub mod tokenizer;

pub use change::{TargetError, changed};
pub use config::{AnyConfig, Arch};
pub use entries::{Entry, config, entries, find, names, trained};
pub use model::{AnyModel, Model};
pub use source::{Source, SourceError};
pub use tokenizer::{TextError, row};
