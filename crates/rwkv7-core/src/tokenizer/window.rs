//! Text as it comes from a tokenizer whose decoder looks at the neighbours of a token.

use std::collections::VecDeque;

use super::{Tokenizer, TokenizerError};

/// A token's text may still change with this many tokens after it: a decoder may join what several tokens say.
const LOOKAHEAD: usize = 3;

/// Tokens before the newest ones that are decoded with them, as a decoder may drop a space at the start of a text.
const KEPT: usize = 32;

/// The last tokens of a text, and how much of their text was handed on.
pub(super) struct Window {
    ids: Vec<u32>,
    /// Bytes at the start of the window's text that were handed on.
    shown: usize,
    /// The texts of the window: of all its ids but the last three, but the last two, but the last one, of all of them.
    texts: VecDeque<String>,
}

impl Window {
    /// A window that goes on after `context`, whose text was handed on.
    pub fn new(tokenizer: &dyn Tokenizer, context: &[u32]) -> Self {
        let first = context.len().saturating_sub(KEPT);
        let whole = context[first..]
            .iter()
            .position(|&id| !tokenizer.holds_back(id));
        let ids = whole.map_or(&[][..], |skipped| &context[first + skipped..]);
        // A context that cannot be decoded is none.
        let (ids, text) = match tokenizer.decode(ids) {
            Ok(text) => (ids.to_vec(), text),
            Err(_) => (Vec::new(), String::new()),
        };
        Self {
            ids,
            shown: text.len(),
            texts: VecDeque::from(vec![text; LOOKAHEAD + 1]),
        }
    }

    /// The text that is certain now that `id` is known.
    pub fn push(&mut self, tokenizer: &dyn Tokenizer, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids).inspect_err(|_| {
            self.ids.pop();
        })?;
        self.texts.pop_front();
        self.texts.push_back(text);
        // A run of bytes becomes characters as a whole or not at all.
        if tokenizer.holds_back(id) {
            return Ok(String::new());
        }
        let piece = self.certain();
        self.shown += piece.len();
        self.slide(tokenizer);
        Ok(piece)
    }

    /// The rest of the text.
    pub fn finish(&self) -> String {
        let text = self.texts.back();
        text.and_then(|text| text.get(self.shown..))
            .unwrap_or("")
            .to_string()
    }

    /// What all texts of the window have in common beyond the part handed on, without a last character that may be unfinished.
    fn certain(&self) -> String {
        let Some(text) = self.texts.back() else {
            return String::new();
        };
        let common = self.texts.iter().map(|other| common_prefix(text, other));
        let end = common.min().unwrap_or(0);
        let certain = text.get(self.shown..end).unwrap_or("");
        certain
            .trim_end_matches(char::REPLACEMENT_CHARACTER)
            .to_string()
    }

    /// Forgets the oldest tokens where the rest can be decoded without them and does not depend on them.
    fn slide(&mut self, tokenizer: &dyn Tokenizer) {
        let start = self.ids.len().saturating_sub(KEPT);
        if start < KEPT || tokenizer.holds_back(self.ids[start]) {
            return;
        }
        let ids = &self.ids[start..];
        let texts = (0..=LOOKAHEAD)
            .rev()
            .map(|behind| tokenizer.decode(&ids[..ids.len() - behind]));
        let Ok(texts) = texts.collect::<Result<VecDeque<String>, _>>() else {
            return;
        };
        let mut shown = None;
        for (old, new) in self.texts.iter().zip(&texts) {
            let rest = old.len().checked_sub(self.shown);
            let same = rest.filter(|&rest| {
                new.len() >= rest
                    && old.as_bytes()[self.shown..] == new.as_bytes()[new.len() - rest..]
            });
            let at = same.map(|rest| new.len() - rest);
            if at.is_none() || shown.is_some_and(|shown| Some(shown) != at) {
                return;
            }
            shown = at;
        }
        self.shown = shown.unwrap_or(self.shown);
        self.ids.drain(..start);
        self.texts = texts;
    }
}

/// Bytes that two texts have in common at their starts, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(same)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Letters, the second of which no text begins with.
    struct Letters;

    impl Tokenizer for Letters {
        fn vocab_size(&self) -> usize {
            2
        }

        fn encode(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
            Ok(Vec::new())
        }

        fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
            if ids.first() == Some(&1) {
                let reason = "a text begins with b".into();
                return Err(TokenizerError::Library { reason });
            }
            Ok(ids.iter().map(|&id| b'a' + id as u8).collect())
        }

        fn end_of_text(&self) -> u32 {
            0
        }

        fn fingerprint(&self) -> String {
            String::new()
        }

        fn is_concatenative(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_window_that_cannot_begin_at_a_token_begins_at_a_later_one() {
        let ids: Vec<u32> = (0..200)
            .map(|i| u32::from(i % KEPT == KEPT - 1 || i == KEPT))
            .collect();
        let mut window = Window::new(&Letters, &[]);
        let mut text = String::new();
        for &id in &ids {
            text += &window.push(&Letters, id).unwrap();
            assert!(window.ids.len() < 3 * KEPT);
        }
        text += &window.finish();
        assert_eq!(text, Letters.decode(&ids).unwrap());
    }
}
