//! The task of RWKV-LM's small demo: write the digits of a number backwards.
//!
//! A sequence is `\0 1 2 3 , 3 2 1 \0` in bytes, 0 being the byte tokenizer's end of text, so that a trained model answers the
//! prompt `123,` and stops. Loss and accuracy count the answer only: the reversed digits and the end. One number in 16
//! is held out of training, by a hash of its digits; validation asks for those alone.

use std::ops::Range;

use burn::data::dataset::{Dataset, DatasetError};

use super::{batch::Sequence, mix};

/// Separates number and answer.
const SEPARATOR: u8 = b',';

/// Random numbers of `min_digits` to `max_digits` digits to be reversed.
#[derive(Clone, Copy, Debug)]
pub struct Reverse {
    /// Digits of the shortest number; at least 3 where all are held out.
    pub min_digits: usize,
    /// Digits of the longest number.
    pub max_digits: usize,
    /// How many numbers.
    pub numbers: usize,
    /// Seed of the numbers.
    pub seed: u64,
    /// Whether to draw held-out numbers instead of the others.
    pub held_out: bool,
}

impl Reverse {
    /// Tokens a row: end, number, separator, answer, of which the last is only a target.
    pub fn context(&self) -> usize {
        2 * self.max_digits + 2
    }

    /// Number `index`, as digits.
    pub fn number(&self, index: usize) -> Vec<u8> {
        let mut state = mix(self.seed ^ mix(index as u64));
        let mut next = |below: u64| {
            state = mix(state);
            state % below
        };
        loop {
            let lengths = 1 + self.max_digits - self.min_digits;
            let digits = self.min_digits + next(lengths as u64) as usize;
            let number: Vec<u8> = (0..digits).map(|_| b'0' + next(10) as u8).collect();
            if is_held_out(&number) == self.held_out {
                return number;
            }
        }
    }

    /// A number, the separator and the answer, of which the answer alone counts.
    pub fn sequence(&self, number: &[u8]) -> Sequence {
        let context = self.context();
        let mut bytes = vec![0];
        bytes.extend_from_slice(number);
        bytes.push(SEPARATOR);
        bytes.extend(number.iter().rev());
        // The end of the answer, then padding with the same byte.
        bytes.resize(context + 1, 0);
        let ids: Vec<i32> = bytes.into_iter().map(i32::from).collect();
        let answer = Self::answer(number);
        let counts = |t| if answer.contains(&t) { 1.0 } else { 0.0 };
        Sequence {
            mask: Some((0..context).map(counts).collect()),
            ..Sequence::new(&ids)
        }
    }

    /// Where the answer stands among the targets: the reversed digits and the end.
    pub fn answer(number: &[u8]) -> Range<usize> {
        number.len() + 1..2 * number.len() + 2
    }
}

/// Whether a number is kept for validation. Short ones, of which there are few, are all trained on.
fn is_held_out(number: &[u8]) -> bool {
    let hash = number.iter().fold(number.len() as u64, |hash, &digit| {
        mix(hash ^ u64::from(digit))
    });
    number.len() >= 3 && hash.is_multiple_of(16)
}

impl Dataset<Sequence> for Reverse {
    fn get(&self, index: usize) -> Result<Sequence, DatasetError> {
        assert!(index < self.numbers, "number {index} of {}", self.numbers);
        Ok(self.sequence(&self.number(index)))
    }

    fn len(&self) -> usize {
        self.numbers
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TASK: Reverse = Reverse {
        min_digits: 1,
        max_digits: 5,
        numbers: 2000,
        seed: 3,
        held_out: false,
    };

    #[test]
    fn the_counted_targets_are_the_number_backwards_and_the_end() {
        for index in 80..120 {
            let number = TASK.number(index);
            let Sequence {
                inputs,
                targets,
                mask,
            } = TASK.get(index).unwrap();
            let counts = mask.unwrap();
            let counted = targets
                .iter()
                .zip(&counts)
                .filter(|(_, counts)| **counts > 0.0);
            let answer: Vec<u8> = counted.map(|(&byte, _)| byte as u8).collect();
            let expected: Vec<u8> = number.iter().rev().copied().chain([0]).collect();
            assert_eq!(answer, expected);
            let asked = inputs.iter().take(number.len() + 2);
            let asked: Vec<u8> = asked.map(|&byte| byte as u8).collect();
            assert_eq!(asked, [&[0], number.as_slice(), &[SEPARATOR]].concat());
            assert_eq!(inputs.len(), TASK.context());
        }
    }

    #[test]
    fn validation_asks_only_for_numbers_that_training_never_shows() {
        let held_out = Reverse {
            held_out: true,
            ..TASK
        };
        let numbers = |task: Reverse| -> std::collections::HashSet<Vec<u8>> {
            (0..task.numbers).map(|index| task.number(index)).collect()
        };
        let (trained, kept) = (numbers(TASK), numbers(held_out));
        assert!(trained.is_disjoint(&kept));
        assert!(kept.iter().all(|n| n.len() >= 3) && trained.iter().any(|n| n.len() == 1));
    }
}
