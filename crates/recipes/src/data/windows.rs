//! Windows of a token file as datasets.

use std::ops::Range;

use burn::data::dataset::{Dataset, DatasetError};
use serde::{Deserialize, Serialize};

use super::{DataError, batch::Sequence, mix, tokens::TokenFile};

/// How training windows are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Anywhere, independently.
    Random,
    /// RWKV-LM's order: every window of the text once, by cubing modulo a prime p = 2 (mod 3).
    MagicPrime,
}

/// Training windows of `context` tokens, each with the token after it, in the order in which a run takes them.
#[derive(Clone)]
pub struct TrainingWindows {
    tokens: TokenFile,
    range: Range<usize>,
    context: usize,
    windows: usize,
    seed: u64,
    prime: Option<u64>,
}

impl TrainingWindows {
    /// `windows` windows of the part `range` of a token file. A longer run begins with the windows of a shorter one.
    ///
    /// # Errors
    ///
    /// [`DataError::TooShort`] if the part does not hold a window, or not enough of them for the magic prime.
    pub fn new(
        tokens: TokenFile,
        range: Range<usize>,
        context: usize,
        windows: usize,
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
            windows,
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

impl Dataset<Sequence> for TrainingWindows {
    fn get(&self, index: usize) -> Result<Sequence, DatasetError> {
        assert!(index < self.windows, "window {index} of {}", self.windows);
        window(&self.tokens, self.start(index as u64), self.context)
    }

    fn len(&self) -> usize {
        self.windows
    }
}

/// The windows of a part one after another, without overlap: every window once. The rest at the end, shorter than a
/// window, is not used.
#[derive(Clone)]
pub struct ValidationWindows {
    tokens: TokenFile,
    range: Range<usize>,
    context: usize,
    windows: usize,
    /// Windows taken in a row, and windows from the start of one row to the next.
    runs: (usize, usize),
}

impl ValidationWindows {
    /// Windows of the part `range` of a token file.
    ///
    /// # Errors
    ///
    /// [`DataError::TooShort`] if the part does not hold a window.
    pub fn new(tokens: TokenFile, range: Range<usize>, context: usize) -> Result<Self, DataError> {
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
            windows,
            runs: (windows, windows),
        })
    }

    /// Only about this many batches of `rows` windows, spread over the whole part.
    pub fn at_most(self, batches: usize, rows: usize) -> Self {
        let whole = self.windows.div_ceil(rows);
        let stride = whole.div_ceil(batches.max(1)) * rows;
        let before = (self.windows.div_ceil(stride) - 1) * stride;
        let last = (self.windows - before).min(rows);
        Self {
            windows: before / stride * rows + last,
            runs: (rows, stride),
            ..self
        }
    }

    /// The tokens of all windows, of which all but the first are targets.
    pub fn range(&self) -> Range<usize> {
        let windows = (self.range.len() - 1) / self.context;
        self.range.start..self.range.start + windows * self.context + 1
    }
}

impl Dataset<Sequence> for ValidationWindows {
    fn get(&self, index: usize) -> Result<Sequence, DatasetError> {
        assert!(index < self.windows, "window {index} of {}", self.windows);
        let (run, stride) = self.runs;
        let start = (index / run * stride + index % run) * self.context;
        window(&self.tokens, self.range.start + start, self.context)
    }

    fn len(&self) -> usize {
        self.windows
    }
}

fn window(tokens: &TokenFile, start: usize, context: usize) -> Result<Sequence, DatasetError> {
    let ids = tokens
        .ids(start..start + context + 1)
        .map_err(DatasetError::new)?;
    let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
    Ok(Sequence::new(&ids))
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
    use crate::data::corpus::Corpus;
    use rwkv7_core::tokenizer::ByteTokenizer;

    /// The primes of the official MiniPile run.
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
        };
        corpus.tokenize(folder.path()).unwrap()
    }

    #[test]
    fn targets_follow_inputs_and_longer_runs_begin_like_shorter_ones() {
        for sampling in [Sampling::Random, Sampling::MagicPrime] {
            let windows = |windows| {
                TrainingWindows::new(text(1000), 0..900, 8, windows, 1, sampling).unwrap()
            };
            let (short, long) = (windows(60), windows(200));
            let items: Vec<Sequence> = short.iter().map(Result::unwrap).collect();
            assert_eq!(items.len(), 60);
            for (index, item) in items.iter().enumerate() {
                assert_eq!(long.get(index).unwrap(), *item);
                assert_eq!(item.inputs[1..], item.targets[..7]);
            }
            assert_ne!(items[17], items[18]);
        }
    }

    fn targets(windows: &ValidationWindows) -> Vec<i32> {
        windows
            .iter()
            .flat_map(|item| item.unwrap().targets)
            .collect()
    }

    #[test]
    fn validation_covers_every_window_once() {
        let windows = ValidationWindows::new(text(1000), 100..205, 8).unwrap();
        let expected: Vec<i32> = (101..205).map(|i| i32::from(b'a') + i % 26).collect();
        assert_eq!(targets(&windows), expected);
        assert_eq!(windows.range(), 100..205);
        let error = ValidationWindows::new(text(20), 0..8, 8).err().unwrap();
        assert!(error.to_string().contains("8 tokens"), "{error}");
    }

    #[test]
    fn fewer_validation_batches_are_spread_over_the_text() {
        let windows = ValidationWindows::new(text(1000), 100..205, 8).unwrap();
        let expected = targets(&windows);
        // 13 windows are 7 batches of 2, of which at most 4, 3, 2 or 1 are wanted.
        for (batches, starts) in [
            (9, vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
            (4, vec![0, 1, 4, 5, 8, 9, 12]),
            (3, vec![0, 1, 6, 7, 12]),
            (2, vec![0, 1, 8, 9]),
            (1, vec![0, 1]),
        ] {
            let found = targets(&windows.clone().at_most(batches, 2));
            let expected: Vec<i32> = starts
                .iter()
                .flat_map(|start| expected[8 * start..8 * start + 8].to_vec())
                .collect();
            assert_eq!(found, expected, "{batches}");
        }
    }
}
