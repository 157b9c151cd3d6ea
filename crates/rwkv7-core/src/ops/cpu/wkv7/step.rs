//! A few tokens at a time (inference): row by row on the state as it lies in memory.

use pulp::Simd;

use super::block::KeyTokens;
use super::dims::MAX_SIZE;
use super::heads::{OutputTokens, Tokens};
use crate::ops::cpu::simd::math::exp_row;
use crate::ops::cpu::simd::sum4::sum4;

/// Up to this many tokens [`steps`] is cheaper than loading the state into panels.
pub(crate) const MAX_TOKENS: usize = 7;

/// Rows of the state that are processed together.
const ROWS: usize = 4;

/// `time <= MAX_TOKENS` tokens of one head; `state` is `[value, key]`.
#[inline(always)]
pub(crate) fn steps<S: Simd>(
    simd: S,
    keys: &KeyTokens<'_, 1>,
    v: Tokens<'_>,
    s0: &[f32],
    time: usize,
    mut y: OutputTokens<'_>,
    state: &mut [f32],
) {
    let key = keys.a.width;
    let mut w = [0.0; MAX_SIZE];
    state.copy_from_slice(s0);
    for t in 0..time {
        exp_row(simd, keys.log_w.row(t), &mut w[..key]);
        let token = Token {
            w: &w[..key],
            r: keys.queries[0].row(t),
            k: keys.k.row(t),
            a: keys.a.row(t),
            b: keys.b.row(t),
        };
        let (v, y) = (v.row(t), y.row(t));
        let (v, v_tail) = v.as_chunks::<ROWS>();
        let (y, y_tail) = y.as_chunks_mut::<ROWS>();
        let (state, state_tail) = state.split_at_mut(v.len() * ROWS * key);
        for ((rows, v), y) in state.chunks_exact_mut(ROWS * key).zip(v).zip(y) {
            *y = token.advance(simd, rows, *v);
        }
        for ((row, v), y) in state_tail.chunks_exact_mut(key).zip(v_tail).zip(y_tail) {
            [*y] = token.advance(simd, row, [*v]);
        }
    }
}

/// One token's key-space rows, `[key]` each.
struct Token<'a> {
    w: &'a [f32],
    r: &'a [f32],
    k: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
}

impl Token<'_> {
    /// Moves `R` rows of the state over this token and returns their outputs.
    #[inline(always)]
    fn advance<S: Simd, const R: usize>(&self, simd: S, rows: &mut [f32], v: [f32; R]) -> [f32; R] {
        let key = self.w.len();
        let whole = key - key % S::F32_LANES;
        let mut sums = [simd.splat_f32s(0.0); R];
        for c in (0..key).step_by(S::F32_LANES) {
            let a = load(simd, self.a, c, whole);
            for i in 0..R {
                sums[i] =
                    simd.mul_add_e_f32s(load(simd, &rows[i * key..][..key], c, whole), a, sums[i]);
            }
        }
        let sa = sum_rows(simd, sums);
        sums = [simd.splat_f32s(0.0); R];
        for c in (0..key).step_by(S::F32_LANES) {
            let (w, k, b, r) = (
                load(simd, self.w, c, whole),
                load(simd, self.k, c, whole),
                load(simd, self.b, c, whole),
                load(simd, self.r, c, whole),
            );
            for i in 0..R {
                let row = &mut rows[i * key..][..key];
                let mut s = simd.mul_f32s(load(simd, row, c, whole), w);
                s = simd.mul_add_e_f32s(simd.splat_f32s(v[i]), k, s);
                s = simd.mul_add_e_f32s(simd.splat_f32s(sa[i]), b, s);
                sums[i] = simd.mul_add_e_f32s(s, r, sums[i]);
                if c < whole {
                    S::as_mut_simd_f32s(&mut row[c..]).0[0] = s;
                } else {
                    simd.partial_store_f32s(&mut row[c..], s);
                }
            }
        }
        sum_rows(simd, sums)
    }
}

/// The vector at `c`, partial from `whole` on.
#[inline(always)]
fn load<S: Simd>(simd: S, row: &[f32], c: usize, whole: usize) -> S::f32s {
    if c < whole {
        S::as_simd_f32s(&row[c..]).0[0]
    } else {
        simd.partial_load_f32s(&row[c..])
    }
}

#[inline(always)]
fn sum_rows<S: Simd, const R: usize>(simd: S, x: [S::f32s; R]) -> [f32; R] {
    let mut sums = [0.0; R];
    if R == ROWS {
        sums.copy_from_slice(&sum4(simd, [x[0], x[1 % R], x[2 % R], x[3 % R]]));
    } else {
        for i in 0..R {
            sums[i] = simd.reduce_sum_f32s(x[i]);
        }
    }
    sums
}
