//! Panels of a factor, rounded to bf16.

use core::ops::Range;

use pulp::{Simd, WithSimd};

use super::Matrix;

/// Words that are rounded at a time where a row lies across the panel.
const CHUNK: usize = 64;

/// Rounds `LINES` rows of a matrix from `first` on, as many as there are, for a part of the depth (its columns); a row that
/// is missing, or a second neighbour in depth, is zero. The even one of two neighbours is in a word's low half.
pub struct Pack<'a, const LINES: usize> {
    pub matrix: Matrix<'a>,
    pub first: usize,
    pub depth: Range<usize>,
    pub panel: &'a mut [[u32; LINES]],
}

impl<const LINES: usize> WithSimd for Pack<'_, LINES> {
    type Output = ();

    /// Plain code, which the compiler vectorises for the processor that `S` stands for.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self {
            matrix,
            first,
            depth,
            panel,
        } = self;
        let lines = LINES.min(matrix.rows - first);
        if lines < LINES {
            panel.fill([0; LINES]);
        }
        if matrix.transposed {
            along(matrix, first..first + lines, depth, panel);
        } else {
            for line in 0..lines {
                let row = &matrix.data[(first + line) * matrix.columns..][depth.clone()];
                across(row, line, panel);
            }
        }
    }
}

/// Rows that lie in memory as columns do: a row of memory is half of a row of the panel.
#[inline(always)]
fn along<const LINES: usize>(
    matrix: Matrix,
    lines: Range<usize>,
    depth: Range<usize>,
    panel: &mut [[u32; LINES]],
) {
    let row = |depth: usize| &matrix.data[depth * matrix.rows..][lines.clone()];
    for (words, at) in panel.iter_mut().zip(depth.clone().step_by(2)) {
        if at + 1 < depth.end {
            let pairs = row(at).iter().zip(row(at + 1));
            for (word, (even, odd)) in words.iter_mut().zip(pairs) {
                *word = join(*even, *odd);
            }
        } else {
            for (word, even) in words.iter_mut().zip(row(at)) {
                *word = join(*even, 0.0);
            }
        }
    }
}

/// A row of memory is a column of the panel.
#[inline(always)]
fn across<const LINES: usize>(row: &[f32], line: usize, panel: &mut [[u32; LINES]]) {
    let mut rounded = [0; CHUNK];
    for (panel, row) in panel.chunks_mut(CHUNK).zip(row.chunks(2 * CHUNK)) {
        let (pairs, rest) = row.as_chunks::<2>();
        for (word, [even, odd]) in rounded.iter_mut().zip(pairs) {
            *word = join(*even, *odd);
        }
        if let [even] = rest {
            rounded[pairs.len()] = join(*even, 0.0);
        }
        for (words, word) in panel.iter_mut().zip(rounded) {
            words[line] = word;
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
