//! One token a byte.

use super::{Tokenizer, TokenizerError, fingerprint::fingerprint};

/// Ids are byte values, 256 of them. The end of text is 0, the NUL byte, which text does not contain.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteTokenizer;

impl Tokenizer for ByteTokenizer {
    fn vocab_size(&self) -> usize {
        256
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        Ok((self.encode(text)?, (1..=text.len()).collect()))
    }

    fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
        ids.iter()
            .map(|&id| {
                u8::try_from(id).map_err(|_| TokenizerError::UnknownId {
                    id,
                    vocab_size: 256,
                })
            })
            .collect()
    }

    fn end_of_text(&self) -> u32 {
        0
    }

    fn fingerprint(&self) -> String {
        fingerprint("byte", &[])
    }
}
