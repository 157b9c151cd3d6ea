//! The RWKV World tokenizer: at each position, the longest entry of the vocabulary that matches the bytes there.
//!
//! The vocabulary is `rwkv_vocab_v20230424.txt` of ChatRWKV: a line is `id literal length`, the literal a Python string
//! (its UTF-8 bytes count) or bytes object, the length in bytes. Every single byte is an entry, so any input has a
//! tokenization. Id 0 ends a document and is not in the file.

use std::path::Path;

use super::{Tokenizer, TokenizerError, file, fingerprint::fingerprint};

/// Ids are at most this, so that a wrong number takes no memory; the published vocabulary has 65,529.
const LARGEST_ID: u32 = 1 << 20;

/// The RWKV World tokenizer.
pub struct WorldTokenizer {
    /// Bytes by id; empty for ids that do not occur.
    tokens: Vec<Vec<u8>>,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    fingerprint: String,
}

/// A node of the trie: its children are `edges[first..first + count]`, sorted by byte.
#[derive(Clone, Copy, Default)]
struct Node {
    first: u32,
    count: u16,
    /// The token that ends here; 0 for none.
    id: u32,
}

#[derive(Clone, Copy)]
struct Edge {
    byte: u8,
    node: u32,
}

impl WorldTokenizer {
    /// Reads a vocabulary file's content; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Vocabulary`] names the line and what it should hold.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, TokenizerError> {
        let wrong = |line: usize, found: String, expected: &str| TokenizerError::Vocabulary {
            path: path.to_path_buf(),
            line,
            found,
            expected: expected.to_string(),
        };
        if let Some(other) = file::not_a_vocabulary(bytes) {
            return Err(wrong(0, other.into(), "an RWKV World vocabulary"));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].split(|&b| b == b'\n').count();
            wrong(
                line,
                "bytes that are not UTF-8".into(),
                "an RWKV World vocabulary",
            )
        })?;
        let mut tokens: Vec<Vec<u8>> = vec![Vec::new()];
        let mut entries: Vec<(Vec<u8>, u32)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let shown = || format!("`{}`", line.chars().take(60).collect::<String>());
            let form = "`id literal length`, a line of an RWKV World vocabulary";
            let (id, rest) = line
                .split_once(' ')
                .ok_or_else(|| wrong(number, shown(), form))?;
            let (literal, length) = rest
                .rsplit_once(' ')
                .ok_or_else(|| wrong(number, shown(), form))?;
            let id: u32 = id.parse().map_err(|_| wrong(number, shown(), form))?;
            let length: usize = length
                .trim_end()
                .parse()
                .map_err(|_| wrong(number, shown(), form))?;
            let token = literal_bytes(literal)
                .ok_or_else(|| wrong(number, shown(), "a Python string or bytes literal"))?;
            if token.is_empty() || token.len() != length {
                let found = format!("a token of {} bytes", token.len());
                return Err(wrong(
                    number,
                    found,
                    &format!("{length}, as the line says, and at least 1"),
                ));
            }
            if id == 0 || id > LARGEST_ID {
                return Err(wrong(
                    number,
                    format!("id {id}"),
                    &format!("an id from 1 to {LARGEST_ID}; 0 is the end of text"),
                ));
            }
            let slot = id as usize;
            if tokens.len() <= slot {
                tokens.resize(slot + 1, Vec::new());
            }
            if !tokens[slot].is_empty() {
                return Err(wrong(number, format!("id {id} again"), "every id once"));
            }
            tokens[slot].clone_from(&token);
            entries.push((token, id));
        }
        entries.sort();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let found = format!(
                "the same token under the ids {} and {}",
                pair[0].1, pair[1].1
            );
            return Err(wrong(0, found, "every token once"));
        }
        let single = entries.iter().filter(|(token, _)| token.len() == 1).count();
        if single != 256 {
            let found = format!("{single} single bytes among {} tokens", entries.len());
            return Err(wrong(0, found, "all 256, so that every text has tokens"));
        }
        let mut tokenizer = Self {
            tokens,
            nodes: Vec::new(),
            edges: Vec::new(),
            fingerprint: fingerprint("world", bytes),
        };
        tokenizer.build(&entries);
        Ok(tokenizer)
    }

    /// Builds the trie of sorted entries, breadth first, so that the children of a node lie side by side.
    fn build(&mut self, entries: &[(Vec<u8>, u32)]) {
        self.nodes.push(Node::default());
        let mut queue = std::collections::VecDeque::from([(0_usize, entries, 0_usize)]);
        while let Some((node, mut entries, depth)) = queue.pop_front() {
            if let Some((token, id)) = entries.first()
                && token.len() == depth
            {
                self.nodes[node].id = *id;
                entries = &entries[1..];
            }
            self.nodes[node].first = self.edges.len() as u32;
            for group in entries.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                let child = self.nodes.len();
                self.nodes.push(Node::default());
                self.edges.push(Edge {
                    byte: group[0].0[depth],
                    node: child as u32,
                });
                self.nodes[node].count += 1;
                queue.push_back((child, group, depth + 1));
            }
        }
    }

    /// The ids of a text, and where in the text each one ends.
    fn matches(&self, text: &str) -> impl Iterator<Item = (u32, usize)> {
        let bytes = text.as_bytes();
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let (id, length) = self.longest(rest);
            at += length;
            Some((id, at))
        })
    }

    /// The longest token at the start of `bytes`: its id and length.
    fn longest(&self, bytes: &[u8]) -> (u32, usize) {
        let mut node = self.nodes[0];
        let mut best = (0, 0);
        for (depth, byte) in bytes.iter().enumerate() {
            let first = node.first as usize;
            let children = &self.edges[first..first + node.count as usize];
            // The root has all 256 children, in order.
            let child = if children.len() == 256 {
                usize::from(*byte)
            } else {
                match children.binary_search_by_key(byte, |edge| edge.byte) {
                    Ok(child) => child,
                    Err(_) => break,
                }
            };
            node = self.nodes[children[child].node as usize];
            if node.id != 0 {
                best = (node.id, depth + 1);
            }
        }
        best
    }
}

impl Tokenizer for WorldTokenizer {
    fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.matches(text).map(|(id, _)| id).collect())
    }

    fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        Ok(self.matches(text).unzip())
    }

    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            match self.tokens.get(id as usize) {
                Some(token) if !token.is_empty() || id == 0 => bytes.extend_from_slice(token),
                _ => {
                    let vocab_size = self.vocab_size();
                    return Err(TokenizerError::UnknownId { id, vocab_size });
                }
            }
        }
        Ok(bytes)
    }

    fn end_of_text(&self) -> u32 {
        0
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// The bytes of a Python literal: `'…'`, `"…"`, or the same after a `b`. In a string `\xNN` is a code point, in a bytes
/// object it is a byte.
fn literal_bytes(literal: &str) -> Option<Vec<u8>> {
    let (is_bytes, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = quoted.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = Vec::new();
    let mut chars = inner.chars();
    let push = |c: char, out: &mut Vec<u8>| {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    };
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(c, &mut out);
            continue;
        }
        let digits = match chars.next()? {
            'n' => {
                out.push(b'\n');
                continue;
            }
            't' => {
                out.push(b'\t');
                continue;
            }
            'r' => {
                out.push(b'\r');
                continue;
            }
            c @ ('\\' | '\'' | '"') => {
                push(c, &mut out);
                continue;
            }
            'x' => 2,
            'u' if !is_bytes => 4,
            'U' if !is_bytes => 8,
            _ => return None,
        };
        let hex: String = chars.by_ref().take(digits).collect();
        let code = u32::from_str_radix(&hex, 16)
            .ok()
            .filter(|_| hex.len() == digits)?;
        if is_bytes {
            out.push(u8::try_from(code).ok()?);
        } else {
            push(char::from_u32(code)?, &mut out);
        }
    }
    Some(out)
}
