//! Text from tokens as they come.

use super::{Tokenizer, TokenizerError, window::Window};

/// Turns ids into text one by one: all pieces together are the text of all ids. What later ids may still change is held back, so
/// a character is never split.
pub struct StreamDecoder<'a> {
    tokenizer: &'a dyn Tokenizer,
    held: Held,
}

/// What is not handed on yet.
enum Held {
    /// The bytes of a character that is not whole yet.
    Bytes(Vec<u8>),
    /// The last tokens, where the text of a token depends on its neighbours.
    Window(Window),
}

impl<'a> StreamDecoder<'a> {
    /// A decoder with nothing held back.
    pub fn new(tokenizer: &'a dyn Tokenizer) -> Self {
        Self::after(tokenizer, &[])
    }

    /// A decoder for the ids that follow `context`, whose own text is known. Many tokenizers drop the space at the start of a
    /// text; the text that goes on after another one keeps its space.
    pub fn after(tokenizer: &'a dyn Tokenizer, context: &[u32]) -> Self {
        let held = match tokenizer.is_concatenative() {
            true => Held::Bytes(Vec::new()),
            false => Held::Window(Window::new(tokenizer, context)),
        };
        Self { tokenizer, held }
    }

    /// The text that is certain with `id`; bytes that cannot become a character any more are U+FFFD.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::decode_bytes`]; then the text goes on without the id.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        match &mut self.held {
            Held::Window(window) => window.push(self.tokenizer, id),
            Held::Bytes(bytes) => {
                bytes.extend(self.tokenizer.decode_bytes(&[id])?);
                Ok(whole_characters(bytes))
            }
        }
    }

    /// The rest at the end of the text: U+FFFD if a character was cut off.
    pub fn finish(self) -> String {
        match self.held {
            Held::Window(window) => window.finish(),
            Held::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

/// Takes the text from the start of `bytes` and leaves those that may still become a character.
fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = used + invalid.len() == bytes.len();
        if invalid.is_empty() || (at_end && is_prefix(invalid)) {
            continue;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += invalid.len();
    }
    bytes.drain(..used);
    text
}

/// Whether more bytes could make these a character.
fn is_prefix(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
