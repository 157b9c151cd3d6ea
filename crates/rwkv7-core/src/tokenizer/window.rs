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
        // Ids that stand for no text are no context.
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
        self.slide(tokenizer)?;
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

    /// Forgets the oldest tokens where the rest of the text does not depend on them.
    fn slide(&mut self, tokenizer: &dyn Tokenizer) -> Result<(), TokenizerError> {
        let start = self.ids.len().saturating_sub(KEPT);
        if start < KEPT || tokenizer.holds_back(self.ids[start]) {
            return Ok(());
        }
        let ids = &self.ids[start..];
        let texts = (0..=LOOKAHEAD)
            .rev()
            .map(|behind| tokenizer.decode(&ids[..ids.len() - behind]));
        let texts = texts.collect::<Result<VecDeque<String>, _>>()?;
        let mut shown = None;
        for (old, new) in self.texts.iter().zip(&texts) {
            let rest = old.len().checked_sub(self.shown);
            let same = rest.filter(|&rest| {
                new.len() >= rest
                    && old.as_bytes()[self.shown..] == new.as_bytes()[new.len() - rest..]
            });
            let at = same.map(|rest| new.len() - rest);
            if at.is_none() || shown.is_some_and(|shown| Some(shown) != at) {
                return Ok(());
            }
            shown = at;
        }
        self.shown = shown.unwrap_or(self.shown);
        self.ids.drain(..start);
        self.texts = texts;
        Ok(())
    }
}

/// Bytes that two texts have in common at their starts, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(same)
}
