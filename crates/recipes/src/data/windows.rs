//! Windows of a token file as batches.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    DataError,
    loader::{Batch, BatchSource},
    mix,
    tokens::TokenFile,
};

/// How training windows are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Anywhere, independently.
    Random,
    /// RWKV-LM's order: every window of the text once, by cubing modulo a prime p = 2 (mod 3).
    MagicPrime,
}

/// Training windows of `context` tokens and the token after each.
pub struct TrainingWindows {
    tokens: TokenFile,
    range: Range<usize>,
    context: usize,
    rows: usize,
    seed: u64,
    prime: Option<u64>,
}

impl TrainingWindows {
    /// Windows of the part `range` of a token file, `rows` a batch.
    ///
    /// # Errors
    ///
    /// [`DataError::TooShort`] if the part does not hold a window, or not enough of them for the magic prime.
    pub fn new(
        tokens: TokenFile,
        range: Range<usize>,
        context: usize,
        rows: usize,
        seed: u64,
        sampling: Sampling,
    ) -> Result<Self, DataError> {
        let too_short = DataError::TooShort {
            part: "training",
            tokens: range.len(),
            context,
        };
        if range.len() <= context {
            return Err(too_short);
        }
        let prime = match sampling {
            Sampling::Random => None,
            Sampling::MagicPrime => Some(magic_prime(range.len(), context).ok_or(too_short)?),
        };
        Ok(Self {
            tokens,
            range,
            context,
            rows,
            seed,
            prime,
        })
    }

    fn start(&self, sample: u64) -> usize {
        let offset = match self.prime {
            None => mix(self.seed ^ mix(sample)) % (self.range.len() - self.context) as u64,
            Some(prime) => magic_order(sample + 1, prime) * self.context as u64,
        };
        self.range.start + offset as usize
    }
}

impl BatchSource for TrainingWindows {
    fn batch(&self, step: usize) -> Batch {
        let starts = (0..self.rows).map(|row| self.start((step * self.rows + row) as u64));
        windows(&self.tokens, starts, self.context)
    }
}

/// The windows of a part one after another, without overlap: every window once. What is left at the end, shorter than a
/// window, is not used.
pub struct ValidationWindows {
    tokens: TokenFile,
    range: Range<usize>,
    context: usize,
    rows: usize,
    stride: usize,
}

impl ValidationWindows {
    /// Windows of the part `range` of a token file, at most `rows` a batch.
    ///
    /// # Errors
    ///
    /// [`DataError::TooShort`] if the part does not hold a window.
    pub fn new(
        tokens: TokenFile,
        range: Range<usize>,
        context: usize,
        rows: usize,
    ) -> Result<Self, DataError> {
        if range.len() <= context {
            return Err(DataError::TooShort {
                part: "validation",
                tokens: range.len(),
                context,
            });
        }
        let windows = (range.len() - 1) / context;
        Ok(Self {
            tokens,
            range,
            context,
            rows: rows.min(windows),
            stride: 1,
        })
    }

    /// Number of batches: all but the last are full, and all windows are in one of them.
    pub fn batches(&self) -> usize {
        self.windows().div_ceil(self.rows).div_ceil(self.stride)
    }

    /// Only about this many batches, spread over the whole part.
    pub fn at_most(mut self, batches: usize) -> Self {
        self.stride = self.windows().div_ceil(self.rows).div_ceil(batches.max(1));
        self
    }

    /// The windows' tokens, of which all but the first are targets.
    pub fn range(&self) -> Range<usize> {
        self.range.start..self.range.start + self.windows() * self.context + 1
    }

    fn windows(&self) -> usize {
        (self.range.len() - 1) / self.context
    }
}

impl BatchSource for ValidationWindows {
    fn batch(&self, step: usize) -> Batch {
        let first = step * self.stride * self.rows;
        let last = (first + self.rows).min(self.windows());
        let starts = (first..last).map(|window| self.range.start + window * self.context);
        windows(&self.tokens, starts, self.context)
    }
}

fn windows(tokens: &TokenFile, starts: impl Iterator<Item = usize>, context: usize) -> Batch {
    let (mut inputs, mut targets, mut rows) = (Vec::new(), Vec::new(), 0);
    for start in starts {
        let ids: Vec<i32> = tokens
            .ids(start..start + context + 1)
            .map(|id| id as i32)
            .collect();
        inputs.extend_from_slice(&ids[..context]);
        targets.extend_from_slice(&ids[1..]);
        rows += 1;
    }
    Batch {
        rows,
        inputs,
        targets,
        mask: None,
    }
}

/// The largest prime p = 2 (mod 3) below `tokens / context - 1`: modulo such a prime, cubing is a permutation.
fn magic_prime(tokens: usize, context: usize) -> Option<u64> {
    let limit = (tokens / context).checked_sub(1)? as u64;
    (2..limit).rev().find(|&p| p % 3 == 2 && is_prime(p))
}

fn is_prime(n: u64) -> bool {
    n >= 2
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// Which window sample number `sample` is: (⌊φ p⌋ sample³) mod p with φ = (√5 - 1) / 2.
fn magic_order(sample: u64, prime: u64) -> u64 {
    let modulo = |a: u64, b: u64| (u128::from(a) * u128::from(b) % u128::from(prime)) as u64;
    let factor = (prime as f64 * (5_f64.sqrt() - 1.0) / 2.0) as u64;
    let sample = sample % prime;
    modulo(factor, modulo(sample, modulo(sample, sample)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::tokens::Corpus;
    use rwkv7_core::tokenizer::ByteTokenizer;

    /// Reference `rwkv7.md` 3.4: the primes of the official MiniPile run.
    #[test]
    fn magic_primes_of_the_official_runs() {
        for (context, prime) in [
            (512, 2_926_181),
            (1024, 1_463_027),
            (2048, 731_531),
            (4096, 365_759),
        ] {
            assert_eq!(magic_prime(1_498_226_207, context), Some(prime));
        }
    }

    #[test]
    fn the_magic_order_takes_every_window_once() {
        let prime = 1013;
        assert!(is_prime(prime) && prime % 3 == 2);
        let mut seen: Vec<u64> = (0..prime)
            .map(|sample| magic_order(sample, prime))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..prime).collect::<Vec<_>>());
    }

    fn text(length: usize) -> TokenFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(
            &path,
            (0..length)
                .map(|i| b'a' + (i % 26) as u8)
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let corpus = Corpus {
            paths: &[path],
            text_field: "text",
            tokenizer: &ByteTokenizer,
            tokenizer_name: "byte",
        };
        corpus.tokenize(folder.path()).unwrap()
    }

    #[test]
    fn targets_follow_inputs_and_steps_repeat() {
        let windows = TrainingWindows::new(text(1000), 0..900, 8, 3, 1, Sampling::Random).unwrap();
        let batch = windows.batch(17);
        assert_eq!(batch, windows.batch(17));
        assert_ne!(batch, windows.batch(18));
        for row in 0..3 {
            let row = row * 8..(row + 1) * 8;
            assert_eq!(batch.inputs[row.clone()][1..], batch.targets[row][..7]);
        }
    }

    #[test]
    fn validation_covers_every_window_once() {
        let windows = ValidationWindows::new(text(1000), 100..205, 8, 4).unwrap();
        assert_eq!(windows.batches(), 4);
        let targets: Vec<i32> = (0..4)
            .flat_map(|step| windows.batch(step).targets)
            .collect();
        let expected: Vec<i32> = (101..205).map(|i| i32::from(b'a') + i % 26).collect();
        assert_eq!(targets, expected);
        assert_eq!(windows.range(), 100..205);
        let error = ValidationWindows::new(text(20), 0..8, 8, 1)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("8 tokens"), "{error}");
    }
}
