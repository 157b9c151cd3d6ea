//! Text from tokens as they come.

use super::{Tokenizer, TokenizerError};

/// Turns ids into text one by one and never splits a character: bytes that may still become a character are held back.
pub struct StreamDecoder<'a> {
    tokenizer: &'a dyn Tokenizer,
    pending: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder with nothing held back.
    pub fn new(tokenizer: &'a dyn Tokenizer) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// The text that `id` completes; bytes that cannot become a character any more are U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.pending.extend(self.tokenizer.decode_bytes(&[id])?);
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = used + invalid.len() == self.pending.len();
            if invalid.is_empty() || (at_end && is_prefix(invalid)) {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
        self.pending.drain(..used);
        Ok(text)
    }

    /// The rest at the end of the text: U+FFFD if a character was cut off.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could make these a character.
fn is_prefix(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
