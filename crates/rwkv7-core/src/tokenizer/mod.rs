//! Tokenizers behind one small interface: bytes, the RWKV World vocabulary, and any Hugging Face `tokenizer.json`.

mod byte;
mod file;
mod fingerprint;
mod guard;
mod hugging_face;
mod stream;
mod window;
mod world;

use std::path::{Path, PathBuf};

pub use byte::ByteTokenizer;
pub use file::LARGEST_FILE;
pub use hugging_face::HuggingFaceTokenizer;
pub use stream::StreamDecoder;
pub use world::WorldTokenizer;

/// A map between text and token ids that loses nothing.
///
/// ```
/// use rwkv7_core::tokenizer;
///
/// let tokenizer = tokenizer::load("byte")?;
/// assert_eq!(tokenizer.encode("Hi")?, [72, 105]);
/// assert_eq!(tokenizer.decode(&[72, 105])?, "Hi");
/// # Ok::<(), tokenizer::TokenizerError>(())
/// ```
pub trait Tokenizer: Send + Sync {
    /// The largest id plus one: a model needs at least this many embeddings.
    fn vocab_size(&self) -> usize;

    /// The ids of a text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Library`] if a third-party tokenizer fails.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError>;

    /// The ids of a text, and where in the text the part of each id ends: offsets in bytes that never fall and are at most the
    /// length of the text.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode) and [`decode_bytes`](Self::decode_bytes).
    fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        let ids = self.encode(text)?;
        let mut end = 0;
        let mut ends = Vec::with_capacity(ids.len());
        for id in &ids {
            end = text.len().min(end + self.decode_bytes(&[*id])?.len());
            ends.push(end);
        }
        Ok((ids, ends))
    }

    /// The bytes that ids stand for; they may end within a character.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`], and [`TokenizerError::Library`] if a third-party tokenizer fails.
    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError>;

    /// The id between documents, which stands for no text.
    fn end_of_text(&self) -> u32;

    /// What tells this tokenizer from every other one: 32 hexadecimal digits, a hash of its kind and of the bytes of its file.
    /// The place and the name of the file do not count.
    fn fingerprint(&self) -> String;

    /// Whether the bytes of several ids are those of each id, one after the other. Where they are not, as where a space at the
    /// start of a text is dropped, a [`StreamDecoder`] decodes the last ids together.
    fn is_concatenative(&self) -> bool {
        true
    }

    /// Whether the text of an id is certain only when an id follows that holds nothing back: bytes that are a character together,
    /// and ids between them that stand for no text. Nobody asks a concatenative tokenizer.
    fn holds_back(&self, id: u32) -> bool {
        let _ = id;
        false
    }

    /// The text that ids stand for. Bytes that are not valid UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// As [`decode_bytes`](Self::decode_bytes).
    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(String::from_utf8_lossy(&self.decode_bytes(ids)?).into_owned())
    }
}

/// A tokenizer that cannot be loaded or an id that it does not know.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("tokenizer {}: cannot be read; expected `byte`, an RWKV World vocabulary or a tokenizer.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line of a World vocabulary that cannot be understood.
    #[error("tokenizer {}, line {line}: found {found}, expected {expected}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Line number from 1; 0 for the file as a whole.
        line: usize,
        /// The content of the line.
        found: String,
        /// The content that a vocabulary has there.
        expected: String,
    },
    /// A `tokenizer.json` that the `tokenizers` library refuses or that lacks something.
    #[error("tokenizer {}: {reason}", path.display())]
    HuggingFace {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The `tokenizers` library failed on a text.
    #[error("the tokenizer failed: {reason}")]
    Library {
        /// The library's message.
        reason: String,
    },
    /// An id that the tokenizer does not have.
    #[error(
        "token id {id} is not in the vocabulary of {vocab_size} ids; the model and the tokenizer do not belong together"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
}

/// Loads a tokenizer: `byte`, the path of a Hugging Face `tokenizer.json`, or that of an RWKV World vocabulary.
///
/// # Errors
///
/// [`TokenizerError`] names the file and the cause.
pub fn load(spec: &str) -> Result<Box<dyn Tokenizer>, TokenizerError> {
    if spec == "byte" {
        return Ok(Box::new(ByteTokenizer));
    }
    let path = Path::new(spec);
    let bytes = file::read(path).map_err(|source| TokenizerError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if first == Some(&b'{') {
        Ok(Box::new(HuggingFaceTokenizer::from_bytes(&bytes, path)?))
    } else {
        Ok(Box::new(WorldTokenizer::from_bytes(&bytes, path)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod json_tests;
