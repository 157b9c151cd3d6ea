//! From files to batches: [`source`] reads documents, [`tokens`] keeps them as a memory-mapped file of token ids,
//! [`windows`] and [`reverse`] make batches of them, [`loader`] hands these to burn-train.

pub mod loader;
pub mod reverse;
pub mod source;
pub mod tokens;
pub mod windows;

use std::path::PathBuf;

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
    #[error("{}: no text; expected files ending in .txt, .md or .jsonl, also with .gz or .zst after that", path.display())]
    NoText {
        /// The folder.
        path: PathBuf,
    },
    /// A file without content.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
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
        /// What is wrong.
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
        /// What is wrong.
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
}

/// Mixes 64 bits thoroughly (SplitMix64's finaliser): randomness as a function of position, with no state to save.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
