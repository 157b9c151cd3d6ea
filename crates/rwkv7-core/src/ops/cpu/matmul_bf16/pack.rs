//! Panels of a factor, rounded to bf16.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::Matrix;

/// Words of a panel's column that are rounded before they are put there.
const CHUNK: usize = 64;
/// Rows of memory that go into one panel after another while they are in the level-1 cache; even.
const ROWS_IN_CACHE: usize = 32;

/// Rounds rows of a matrix for a part of the depth (its columns), `LINES` rows a panel, one panel after another. Rows that
/// the last panel lacks are zero, as is a second neighbour in depth. The even one of two neighbours is in a word's low half.
pub struct Pack<'a, const LINES: usize> {
    pub matrix: Matrix<'a>,
    pub rows: Range<usize>,
    pub depth: Range<usize>,
    pub panels: &'a mut [[u32; LINES]],
}

impl<const LINES: usize> WithSimd for Pack<'_, LINES> {
    type Output = ();

    /// Plain code, which the compiler vectorises for the processor that `S` stands for.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        if self.matrix.transposed {
            self.along();
        } else {
            self.across();
        }
    }
}

impl<const LINES: usize> Pack<'_, LINES> {
    /// A row of memory has a part of every panel's row.
    #[inline(always)]
    fn along(self) {
        let pairs = self.depth.len().div_ceil(2);
        let row = |depth: usize| &self.matrix.data[depth * self.matrix.rows..][self.rows.clone()];
        let nothing = [0.0; LINES];
        for start in self.depth.clone().step_by(ROWS_IN_CACHE) {
            let rows = start..self.depth.end.min(start + ROWS_IN_CACHE);
            let first = (start - self.depth.start) / 2;
            for (i, panel) in self.panels.chunks_exact_mut(pairs).enumerate() {
                let part = |depth| row(depth).chunks(LINES).nth(i).unwrap_or_default();
                for (words, depth) in panel[first..].iter_mut().zip(rows.clone().step_by(2)) {
                    let even = part(depth);
                    let odd = if depth + 1 < rows.end {
                        part(depth + 1)
                    } else {
                        &nothing[..even.len()]
                    };
                    join_all(words, even, odd);
                }
            }
        }
    }

    /// A row of memory is a column of a panel.
    #[inline(always)]
    fn across(self) {
        let pairs = self.depth.len().div_ceil(2);
        let mut rounded = [0; CHUNK];
        for (i, panel) in self.panels.chunks_exact_mut(pairs).enumerate() {
            let lines = self.rows.clone().skip(i * LINES).take(LINES);
            if lines.len() < LINES {
                panel.fill([0; LINES]);
            }
            for (line, row) in lines.enumerate() {
                let row = &self.matrix.data[row * self.matrix.columns..][self.depth.clone()];
                for (words, row) in panel.chunks_mut(CHUNK).zip(row.chunks(2 * CHUNK)) {
                    let (pairs, rest) = row.as_chunks::<2>();
                    for (word, [even, odd]) in rounded.iter_mut().zip(pairs) {
                        *word = join(*even, *odd);
                    }
                    if let [even] = rest {
                        rounded[pairs.len()] = join(*even, 0.0);
                    }
                    for (words, word) in words.iter_mut().zip(rounded) {
                        words[line] = word;
                    }
                }
            }
        }
    }
}

/// A panel's row of neighbours in depth; zeros where there are none.
#[inline(always)]
fn join_all<const LINES: usize>(words: &mut [u32; LINES], even: &[f32], odd: &[f32]) {
    // The usual case, of a length that the compiler knows.
    if let (Some(even), Some(odd)) = (even.first_chunk::<LINES>(), odd.first_chunk::<LINES>()) {
        for line in 0..LINES {
            words[line] = join(even[line], odd[line]);
        }
    } else {
        words.fill(0);
        for (word, (even, odd)) in words.iter_mut().zip(even.iter().zip(odd)) {
            *word = join(*even, *odd);
        }
    }
}

#[inline(always)]
fn join(even: f32, odd: f32) -> u32 {
    round(even) >> 16 | round(odd) & 0xffff_0000
}

/// To the nearest bf16, in the upper half of the word; of two as near the even one.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding would make an infinity of a NaN with few bits set, or a number.
    if value.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }
}
