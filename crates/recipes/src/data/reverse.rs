//! The task of RWKV-LM's small demo: write the digits of a number backwards.
//!
//! A row is `\0 1 2 3 , 3 2 1 \0` in bytes, 0 being the byte tokenizer's end of text, so that a trained model answers the
//! prompt `123,` and stops. Loss and accuracy count the answer only: the reversed digits and the end. One number in 16
//! is held out of training, by a hash of its digits; validation asks for those alone.

use super::{
    loader::{Batch, BatchSource},
    mix,
};

/// Separates number and answer.
const SEPARATOR: u8 = b',';

/// Random numbers of `min_digits` to `max_digits` digits to be reversed.
#[derive(Clone, Copy, Debug)]
pub struct Reverse {
    /// Digits of the shortest number; at least 3 where all are held out.
    pub min_digits: usize,
    /// Digits of the longest number.
    pub max_digits: usize,
    /// Rows a batch.
    pub rows: usize,
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

    /// The number in a row of a step.
    pub fn number(&self, step: usize, row: usize) -> Vec<u8> {
        let mut state = mix(self.seed ^ mix((step * self.rows + row) as u64));
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
}

/// Whether a number is kept for validation. Short ones, of which there are few, are all trained on.
fn is_held_out(number: &[u8]) -> bool {
    let hash = number.iter().fold(number.len() as u64, |hash, &digit| {
        mix(hash ^ u64::from(digit))
    });
    number.len() >= 3 && hash.is_multiple_of(16)
}

impl BatchSource for Reverse {
    fn batch(&self, step: usize) -> Batch {
        let context = self.context();
        let mut batch = Batch {
            rows: self.rows,
            inputs: Vec::with_capacity(self.rows * context),
            targets: Vec::with_capacity(self.rows * context),
            mask: Some(Vec::with_capacity(self.rows * context)),
        };
        for row in 0..self.rows {
            let number = self.number(step, row);
            let mut bytes = vec![0];
            bytes.extend_from_slice(&number);
            bytes.push(SEPARATOR);
            bytes.extend(number.iter().rev());
            // The end of the answer, then padding with the same byte.
            bytes.resize(context + 1, 0);
            batch
                .inputs
                .extend(bytes[..context].iter().map(|&b| i32::from(b)));
            batch
                .targets
                .extend(bytes[1..].iter().map(|&b| i32::from(b)));
            let answer = number.len() + 1..2 * number.len() + 2;
            let counts = |t| if answer.contains(&t) { 1.0 } else { 0.0 };
            if let Some(mask) = &mut batch.mask {
                mask.extend((0..context).map(counts));
            }
        }
        batch
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TASK: Reverse = Reverse {
        min_digits: 1,
        max_digits: 5,
        rows: 40,
        seed: 3,
        held_out: false,
    };

    #[test]
    fn the_counted_targets_are_the_number_backwards_and_the_end() {
        let batch = TASK.batch(2);
        let context = TASK.context();
        let mask = batch.mask.unwrap();
        for row in 0..TASK.rows {
            let number = TASK.number(2, row);
            let span = row * context..(row + 1) * context;
            let answer: Vec<u8> = span
                .clone()
                .filter(|&i| mask[i] > 0.0)
                .map(|i| batch.targets[i] as u8)
                .collect();
            let expected: Vec<u8> = number.iter().rev().copied().chain([0]).collect();
            assert_eq!(answer, expected);
            let asked: Vec<u8> = batch.inputs[span]
                .iter()
                .map(|&b| b as u8)
                .take(number.len() + 2)
                .collect();
            assert_eq!(asked, [&[0], number.as_slice(), &[SEPARATOR]].concat());
        }
    }

    #[test]
    fn validation_asks_only_for_numbers_that_training_never_shows() {
        let held_out = Reverse {
            held_out: true,
            ..TASK
        };
        let numbers = |task: Reverse| -> std::collections::HashSet<Vec<u8>> {
            (0..50)
                .flat_map(|step| (0..40).map(move |row| task.number(step, row)))
                .collect()
        };
        let (trained, kept) = (numbers(TASK), numbers(held_out));
        assert!(trained.is_disjoint(&kept));
        assert!(kept.iter().all(|n| n.len() >= 3) && trained.iter().any(|n| n.len() == 1));
    }
}
