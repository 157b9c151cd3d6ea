//! Any Hugging Face `tokenizer.json`, through the `tokenizers` library.

use std::{collections::HashMap, path::Path};

use tokenizers::{DecoderWrapper, Encoding, ModelWrapper, Tokenizer as Library};

use super::{Tokenizer, TokenizerError, file, fingerprint::fingerprint, guard::caught};

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

/// Ids are below this; the largest published vocabulary has a million.
const MOST_IDS: usize = 1 << 24;

/// A text that a tokenizer reads when it is loaded: the library's panics then come here and not in the middle of a run.
const SAMPLE: &str = "The 1st sample,\n\n  of 文 text.";

/// A tokenizer of the `tokenizers` library.
///
/// What a `tokenizer.json` says of truncation, padding and dropout is for the programs that train with it and cuts, lengthens or
/// scrambles texts. These settings are switched off, with a warning in the log.
pub struct HuggingFaceTokenizer {
    library: Library,
    /// The bytes of each token, where the tokenizer works on bytes: a token may hold part of a character.
    bytes: Option<HashMap<u32, Vec<u8>>>,
    vocab_size: usize,
    end_of_text: u32,
    fingerprint: String,
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
        if let Some(reason) = file::not_a_tokenizer(json) {
            return Err(wrong(reason));
        }
        let mut library = caught(|| Library::from_bytes(json))
            .map_err(wrong)?
            .map_err(|error| wrong(error.to_string()))?;
        for setting in switch_off(&mut library).map_err(wrong)? {
            log::warn!(
                "tokenizer {}: its {setting} is switched off, as every token of a text counts",
                path.display()
            );
        }
        let vocabulary = library.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > MOST_IDS {
            let largest = vocab_size - 1;
            return Err(wrong(format!(
                "it has the id {largest}, expected ids below {MOST_IDS}"
            )));
        }
        let end_of_text = END_OF_TEXT
            .iter()
            .find_map(|name| vocabulary.get(*name).copied())
            .ok_or_else(|| {
                let names = END_OF_TEXT.join(", ");
                wrong(format!("no end-of-text token; expected one of {names}"))
            })?;
        let byte_level = matches!(library.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let bytes = byte_level.then(|| token_bytes(&library, &vocabulary));
        caught(|| try_sample(&library)).map_err(wrong)?;
        Ok(Self {
            library,
            bytes,
            vocab_size,
            end_of_text,
            fingerprint: fingerprint("tokenizer.json", json),
        })
    }

    /// Whether a token stands for no text.
    fn is_special(&self, id: u32) -> bool {
        let token = self.library.id_to_token(id);
        token.is_some_and(|token| self.library.get_added_vocabulary().is_special_token(&token))
    }

    /// Bytes of the text that a token stands for, as far as the token alone tells.
    fn length(&self, id: u32, bytes: &HashMap<u32, Vec<u8>>) -> usize {
        match bytes.get(&id) {
            Some(bytes) if !bytes.is_empty() => bytes.len(),
            // A special token that the text spells out.
            _ => self.library.id_to_token(id).map_or(0, |token| token.len()),
        }
    }
}

/// Switches off what changes the tokens of a text, and names each such setting that was on.
fn switch_off(library: &mut Library) -> Result<Vec<String>, String> {
    let mut off = Vec::new();
    if let Some(truncation) = library.get_truncation() {
        off.push(format!("truncation to {} tokens", truncation.max_length));
        let cut = library.with_truncation(None).map(|_| ());
        cut.map_err(|error| error.to_string())?;
    }
    if library.get_padding().is_some() {
        off.push("padding".into());
        library.with_padding(None);
    }
    if let ModelWrapper::BPE(model) = library.get_model()
        && let Some(dropout) = model.dropout.filter(|&dropout| dropout > 0.0)
    {
        off.push(format!("dropout of {dropout}"));
        let mut model = model.clone();
        model.dropout = None;
        library.with_model(model);
    }
    Ok(off)
}

/// Encodes and decodes the sample. An error is no reason to refuse a tokenizer: a vocabulary may lack the sample's characters.
fn try_sample(library: &Library) {
    let ids = match library.encode_fast(SAMPLE, false) {
        Ok(encoding) => encoding.get_ids().to_vec(),
        Err(_) => Vec::new(),
    };
    if !ids.is_empty() {
        let _ = library.decode(&ids, true);
    }
    for id in ids {
        let _ = library.decode(&[id], true);
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

/// The result of a call of the library.
fn called<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    let library = |reason| TokenizerError::Library { reason };
    caught(call)
        .map_err(library)?
        .map_err(|error| library(error.to_string()))
}

impl Tokenizer for HuggingFaceTokenizer {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = called(|| self.library.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A byte-level tokenizer's tokens tell their own lengths. For others the library says which part of the text each token is
    /// of; a token without a part of its own, such as the rest of a character, ends where the one before it ends.
    fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        if let Some(bytes) = &self.bytes {
            let ids = self.encode(text)?;
            let mut end = 0;
            let ends = ids.iter().map(|&id| {
                end += self.length(id, bytes);
                end
            });
            let ends: Vec<usize> = ends.collect();
            if ends.last().copied().unwrap_or(0) == text.len() {
                return Ok((ids, ends));
            }
        }
        let encoding: Encoding = called(|| self.library.encode(text, false))?;
        let mut end = 0;
        let ends = encoding.get_offsets().iter().map(|offsets| {
            end = end.max(offsets.1).min(text.len());
            end
        });
        Ok((encoding.get_ids().to_vec(), ends.collect()))
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
            // Some of the library's decoders panic on no tokens at all.
            if ids.iter().all(|&id| self.is_special(id)) {
                return Ok(Vec::new());
            }
            return called(|| self.library.decode(ids, true)).map(String::into_bytes);
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

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn is_concatenative(&self) -> bool {
        self.bytes.is_some()
    }

    /// Bytes are written `<0x0A>`; special tokens stand for no text.
    fn holds_back(&self, id: u32) -> bool {
        let token = self.library.id_to_token(id).unwrap_or_default();
        let digits = token
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'));
        digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
            || self.library.get_added_vocabulary().is_special_token(&token)
    }
}
