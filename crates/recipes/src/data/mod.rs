//! From files to batches.
//!
//! | module | |
//! |---|---|
//! | [`source`] | reads the documents in text files |
//! | [`corpus`] | makes token ids of text files, once |
//! | [`tokens`] | a file of token ids |
//! | [`cache`] | the folder of these files |
//! | [`windows`] | datasets: windows of a token file |
//! | [`reverse`] | dataset: numbers and their digits backwards |
//! | [`batch`] | an item of these datasets, and the batcher |
//! | [`loader`] | a data loader that goes on at any step |
//!
//! The datasets implement [`Dataset`](burn::data::dataset::Dataset), so that Burn's own loaders take them too:
//!
//! ```
//! use burn::{data::dataloader::DataLoaderBuilder, tensor::Device};
//! use metastate_recipes::data::{batch::LmBatcher, reverse::Reverse};
//!
//! let task = Reverse { min_digits: 1, max_digits: 5, numbers: 20, seed: 0, held_out: false };
//! let loader = DataLoaderBuilder::new(LmBatcher)
//!     .batch_size(8)
//!     .shuffle(1)
//!     .set_device(Device::flex())
//!     .build(task);
//! for batch in loader.iter() {
//!     let batch = batch?;
//!     assert_eq!(batch.inputs.dims()[1], task.context());
//! }
//! # Ok::<(), burn::data::dataset::DatasetError>(())
//! ```

pub mod batch;
pub mod cache;
pub mod corpus;
mod inputs;
pub mod loader;
pub mod reverse;
pub mod source;
pub mod tokens;
pub mod windows;

use std::{
    io,
    path::{Path, PathBuf},
};

use burn::data::dataset::DatasetError;
use rwkv7_core::tokenizer::TokenizerError;

/// Text or tokens that cannot be used. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A compressed file that does not decompress.
    #[error("{}: the compressed data is damaged or cut off after {offset} bytes of text; get the file again", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// Bytes of text read before.
        offset: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// The token file cannot be written.
    #[error("{}: cannot be written; set XDG_CACHE_HOME to a folder with room", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No file with text in a folder.
    #[error(
        "{}: no text; expected files ending in .txt, .md, .jsonl or .ndjson, also with .gz or .zst after that",
        path.display()
    )]
    NoText {
        /// The folder.
        path: PathBuf,
    },
    /// A file without text.
    #[error("{}: the file is empty, or all of its documents are; leave it out, or give a file with text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no text.
    #[error("{}: {reason}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What shows that it is none.
        reason: String,
    },
    /// A file that somebody changed while it was read.
    #[error("{}: the file changed while it was read; start again when it is complete", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A part of a corpus that holds nothing but the ends of empty documents.
    #[error("the {part} text has no text, only the ends of empty documents; give more text")]
    Blank {
        /// Training or validation.
        part: &'static str,
    },
    /// Bytes that are no text.
    #[error("{}: byte {offset} is not UTF-8; convert the file to UTF-8 or leave it out", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte in the (decompressed) text.
        offset: u64,
    },
    /// A line of a `.jsonl` file that is no object with the text field.
    #[error("{}, line {line}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// The reason.
        reason: String,
    },
    /// The tokenizer failed or gave an id beyond its vocabulary.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TokenizerError,
    },
    /// A token file that is damaged.
    #[error("{}: damaged token file: {reason}; delete it and it will be made again", path.display())]
    Damaged {
        /// The token file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Too little text for one window.
    #[error(
        "the {part} text has {tokens} tokens, too few for a context of {context}; give more text or a shorter context"
    )]
    TooShort {
        /// Training or validation.
        part: &'static str,
        /// Tokens there are.
        tokens: usize,
        /// Tokens a window needs, less one.
        context: usize,
    },
    /// A dataset that did not give an item.
    #[error("the dataset failed")]
    Dataset(#[from] DatasetError),
}

/// The error for a file that cannot be read.
fn read_error(path: &Path, source: io::Error) -> DataError {
    DataError::Read {
        path: path.to_path_buf(),
        source,
    }
}

/// Mixes 64 bits thoroughly (SplitMix64's finaliser): randomness as a function of position, with no state to save.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
