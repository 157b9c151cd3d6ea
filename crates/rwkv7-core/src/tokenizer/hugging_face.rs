//! Any Hugging Face `tokenizer.json`, through the `tokenizers` library.

use std::{collections::HashMap, path::Path};

use tokenizers::{DecoderWrapper, Tokenizer as Library};

use super::{Tokenizer, TokenizerError};

/// Names under which tokenizers keep their end of text, best first.
const END_OF_TEXT: [&str; 8] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|rwkv_tokenizer_end_of_text|>",
    "<|im_end|>",
    "[SEP]",
    "[EOS]",
];

/// A tokenizer of the `tokenizers` library.
pub struct HuggingFaceTokenizer {
    library: Library,
    /// The bytes of each token, where the tokenizer works on bytes: a token may hold part of a character.
    bytes: Option<HashMap<u32, Vec<u8>>>,
    vocab_size: usize,
    end_of_text: u32,
}

impl HuggingFaceTokenizer {
    /// Reads a `tokenizer.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::HuggingFace`] if the library refuses it or it has no end-of-text token.
    pub fn from_bytes(json: &[u8], path: &Path) -> Result<Self, TokenizerError> {
        let wrong = |reason: String| TokenizerError::HuggingFace {
            path: path.to_path_buf(),
            reason,
        };
        let library = Library::from_bytes(json).map_err(|error| wrong(error.to_string()))?;
        let vocabulary = library.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let end_of_text = END_OF_TEXT
            .iter()
            .find_map(|name| vocabulary.get(*name).copied())
            .ok_or_else(|| {
                let names = END_OF_TEXT.join(", ");
                wrong(format!("no end-of-text token; expected one of {names}"))
            })?;
        let byte_level = matches!(library.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let bytes = byte_level.then(|| token_bytes(&library, &vocabulary));
        Ok(Self {
            library,
            bytes,
            vocab_size,
            end_of_text,
        })
    }
}

/// The bytes of every token of a byte-level tokenizer. Added tokens are plain text, special ones stand for none.
fn token_bytes(library: &Library, vocabulary: &HashMap<String, u32>) -> HashMap<u32, Vec<u8>> {
    let alphabet = byte_alphabet();
    let added = library.get_added_tokens_decoder();
    vocabulary
        .iter()
        .map(|(token, &id)| {
            let bytes = match added.get(&id) {
                Some(added) if added.special => Vec::new(),
                Some(added) => added.content.clone().into_bytes(),
                None => token
                    .chars()
                    .filter_map(|c| alphabet.get(&c).copied())
                    .collect(),
            };
            (id, bytes)
        })
        .collect()
}

/// The characters in which byte-level tokenizers write bytes: printable Latin-1 as itself, the other bytes in order from
/// U+0100 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255_u8)
        .filter_map(|byte| {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next += 1;
                    next - 1
                }
            };
            Some((char::from_u32(code)?, byte))
        })
        .collect()
}

impl Tokenizer for HuggingFaceTokenizer {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.library
                .encode_fast(text, false)
                .map_err(|error| TokenizerError::Library {
                    reason: error.to_string(),
                })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
        let unknown = |id: u32| TokenizerError::UnknownId {
            id,
            vocab_size: self.vocab_size,
        };
        let Some(bytes) = &self.bytes else {
            if let Some(&id) = ids
                .iter()
                .find(|&&id| self.library.id_to_token(id).is_none())
            {
                return Err(unknown(id));
            }
            let text = self.library.decode(ids, true);
            return text
                .map(String::into_bytes)
                .map_err(|error| TokenizerError::Library {
                    reason: error.to_string(),
                });
        };
        let mut out = Vec::new();
        for &id in ids {
            out.extend_from_slice(bytes.get(&id).ok_or_else(|| unknown(id))?);
        }
        Ok(out)
    }

    fn end_of_text(&self) -> u32 {
        self.end_of_text
    }
}
