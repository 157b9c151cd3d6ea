//! The key space of a block of four tokens.
//!
//! With `P(t, i) = diag(w_{i+1} … w_t)` and `P(t, t) = 1`, and tokens of the block counted from
//! 1, the state inside a block that starts from `S_0` is
//!
//! ```text
//! S_t = S_0 P(t, 0) + Σ_{i<=t} (sa_i b_iᵀ + v_i k_iᵀ) P(t, i)
//! ```
//!
//! so `S_{t-1} a_t` and the reads `S_t q_t` need the vectors `P(t-1, 0) a_t` and `P(t, 0) q_t`
//! and the scalars `b_i · P(t-1, i) a_t`, `b_i · P(t, i) q_t`, and the same with `k_i`. A
//! *query* `q` is whatever multiplies the state: `r`, or `dz` in the backward of a read.

use pulp::Simd;

use super::heads::Tokens;
use super::panel::Layout;
use super::scratch::{rows, vector_rows};
use crate::ops::cpu::simd::math::exp_row;
use crate::ops::cpu::simd::sum4::sum4;

/// Tokens per block.
pub(crate) const BLOCK: usize = 4;

// First rows of the parts of a block, in rows of `keys` elements.
const A: usize = 0;
const B: usize = 4;
const K: usize = 8;
const W: usize = 12;
const B_END: usize = 16;
const K_END: usize = 20;
const A_START: usize = 24;
const DECAY: usize = 28;
const QUERIES: usize = 29;

/// Rows of a block with `queries` queries.
pub(crate) const fn block_rows(queries: usize) -> usize {
    QUERIES + 2 * BLOCK * queries
}

/// One head's key-space inputs.
#[derive(Clone, Copy)]
pub(crate) struct KeyTokens<'a, const Q: usize> {
    pub(crate) log_w: Tokens<'a>,
    pub(crate) k: Tokens<'a>,
    pub(crate) a: Tokens<'a>,
    pub(crate) b: Tokens<'a>,
    pub(crate) queries: [Tokens<'a>; Q],
}

impl<const Q: usize> KeyTokens<'_, Q> {
    /// Asks for the rows of token `t`, if there is one.
    #[inline(always)]
    pub(crate) fn prefetch(&self, t: usize) {
        for part in [&self.log_w, &self.k, &self.a, &self.b]
            .into_iter()
            .chain(&self.queries)
        {
            part.prefetch(t);
        }
    }
}

/// The scalars between the tokens of a block, `[t][i]`; entries with `i > t` (`i >= t` for
/// the removal key) are 0.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<const Q: usize> {
    /// `b_i · P(t-1, i) a_t`.
    pub(crate) ab: [[f32; BLOCK]; BLOCK],
    /// `k_i · P(t-1, i) a_t`.
    pub(crate) ak: [[f32; BLOCK]; BLOCK],
    /// `b_i · P(t, i) q_t`.
    pub(crate) qb: [[[f32; BLOCK]; BLOCK]; Q],
    /// `k_i · P(t, i) q_t`.
    pub(crate) qk: [[[f32; BLOCK]; BLOCK]; Q],
}

impl<const Q: usize> Pairs<Q> {
    pub(crate) const ZERO: Self = Self {
        ab: [[0.0; BLOCK]; BLOCK],
        ak: [[0.0; BLOCK]; BLOCK],
        qb: [[[0.0; BLOCK]; BLOCK]; Q],
        qk: [[[0.0; BLOCK]; BLOCK]; Q],
    };
}

/// A prepared block: `[block_rows, keys]`.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    data: &'a [f32],
    keys: usize,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(data: &'a [f32], layout: &Layout) -> Self {
        Self {
            data,
            keys: layout.keys,
        }
    }

    /// `P(t-1, 0) a_t`.
    #[inline(always)]
    pub(crate) fn a_start(&self) -> [&'a [f32]; BLOCK] {
        rows(self.data, A_START, self.keys)
    }

    /// `P(4, i) b_i`.
    #[inline(always)]
    pub(crate) fn b_end(&self) -> [&'a [f32]; BLOCK] {
        rows(self.data, B_END, self.keys)
    }

    /// `P(4, i) k_i`.
    #[inline(always)]
    pub(crate) fn k_end(&self) -> [&'a [f32]; BLOCK] {
        rows(self.data, K_END, self.keys)
    }

    /// `P(4, 0)`.
    #[inline(always)]
    pub(crate) fn decay(&self) -> &'a [f32] {
        let [decay] = rows(self.data, DECAY, self.keys);
        decay
    }

    /// `P(t, 0) q_t` of query `n`.
    #[inline(always)]
    pub(crate) fn query_start(&self, n: usize) -> [&'a [f32]; BLOCK] {
        rows(self.data, QUERIES + (2 * n + 1) * BLOCK, self.keys)
    }

    #[inline(always)]
    pub(crate) fn a<S: Simd>(&self) -> [&'a [S::f32s]; BLOCK] {
        vector_rows::<S, BLOCK>(self.data, A, self.keys)
    }

    #[inline(always)]
    pub(crate) fn b<S: Simd>(&self) -> [&'a [S::f32s]; BLOCK] {
        vector_rows::<S, BLOCK>(self.data, B, self.keys)
    }

    #[inline(always)]
    pub(crate) fn k<S: Simd>(&self) -> [&'a [S::f32s]; BLOCK] {
        vector_rows::<S, BLOCK>(self.data, K, self.keys)
    }

    /// The decays of the single tokens.
    #[inline(always)]
    pub(crate) fn w<S: Simd>(&self) -> [&'a [S::f32s]; BLOCK] {
        vector_rows::<S, BLOCK>(self.data, W, self.keys)
    }

    #[inline(always)]
    pub(crate) fn query<S: Simd>(&self, n: usize) -> [&'a [S::f32s]; BLOCK] {
        vector_rows::<S, BLOCK>(self.data, QUERIES + 2 * n * BLOCK, self.keys)
    }
}

/// Loads the `count <= 4` tokens from `from` into `block` and prepares them. Missing tokens
/// leave the state as it is (`w = 1`, all else 0).
#[inline(always)]
pub(crate) fn prepare<S: Simd, const Q: usize>(
    simd: S,
    layout: &Layout,
    tokens: &KeyTokens<'_, Q>,
    from: usize,
    count: usize,
    block: &mut [f32],
) -> Pairs<Q> {
    let keys = layout.keys;
    tokens
        .a
        .load(simd, from, count, &mut block[A * keys..B * keys], keys);
    tokens
        .b
        .load(simd, from, count, &mut block[B * keys..K * keys], keys);
    tokens
        .k
        .load(simd, from, count, &mut block[K * keys..W * keys], keys);
    for (n, row) in block[W * keys..B_END * keys]
        .chunks_exact_mut(keys)
        .enumerate()
    {
        if n < count {
            exp_row(simd, tokens.log_w.row(from + n), &mut row[..layout.key]);
        } else {
            row.fill(1.0);
        }
    }
    for n in 0..Q {
        let part = &mut block[(QUERIES + 2 * n * BLOCK) * keys..][..BLOCK * keys];
        tokens.queries[n].load(simd, from, count, part, keys);
    }

    let mut pairs = Pairs::ZERO;
    pairs_of::<S, Q, 0>(simd, block, keys, &mut pairs);
    pairs_of::<S, Q, 1>(simd, block, keys, &mut pairs);
    pairs_of::<S, Q, 2>(simd, block, keys, &mut pairs);
    pairs_of::<S, Q, 3>(simd, block, keys, &mut pairs);
    decay_from_start::<S, Q>(simd, block, keys);
    pairs
}

/// The scalars of token `I` with itself and the later ones, and its rows decayed to the end.
#[inline(always)]
fn pairs_of<S: Simd, const Q: usize, const I: usize>(
    simd: S,
    block: &mut [f32],
    keys: usize,
    pairs: &mut Pairs<Q>,
) {
    let zero = simd.splat_f32s(0.0);
    let (inputs, rest) = block.split_at_mut(B_END * keys);
    let (ends, rest) = rest.split_at_mut((A_START - B_END) * keys);
    let (b_end, k_end) = ends.split_at_mut((K_END - B_END) * keys);
    let inputs = Keys { data: inputs, keys };
    let (a, w) = (inputs.a::<S>(), inputs.w::<S>());
    let (b, k) = (inputs.b::<S>()[I], inputs.k::<S>()[I]);
    let mut q: [[&[S::f32s]; BLOCK]; Q] = [[&[]; BLOCK]; Q];
    for n in 0..Q {
        q[n] = vector_rows::<S, BLOCK>(rest, QUERIES - A_START + 2 * n * BLOCK, keys);
    }
    let count = keys / S::F32_LANES;
    let b_end = &mut S::as_mut_simd_f32s(&mut b_end[I * keys..][..keys]).0[..count];
    let k_end = &mut S::as_mut_simd_f32s(&mut k_end[I * keys..][..keys]).0[..count];

    let mut ab = [zero; BLOCK];
    let mut ak = [zero; BLOCK];
    let mut qb = [[zero; BLOCK]; Q];
    let mut qk = [[zero; BLOCK]; Q];
    for c in 0..count {
        let (mut b, mut k) = (b[c], k[c]);
        for n in 0..Q {
            qb[n][I] = simd.mul_add_e_f32s(b, q[n][I][c], qb[n][I]);
            qk[n][I] = simd.mul_add_e_f32s(k, q[n][I][c], qk[n][I]);
        }
        for t in I + 1..BLOCK {
            ab[t] = simd.mul_add_e_f32s(b, a[t][c], ab[t]);
            ak[t] = simd.mul_add_e_f32s(k, a[t][c], ak[t]);
            b = simd.mul_f32s(b, w[t][c]);
            k = simd.mul_f32s(k, w[t][c]);
            for n in 0..Q {
                qb[n][t] = simd.mul_add_e_f32s(b, q[n][t][c], qb[n][t]);
                qk[n][t] = simd.mul_add_e_f32s(k, q[n][t][c], qk[n][t]);
            }
        }
        b_end[c] = b;
        k_end[c] = k;
    }
    for t in I..BLOCK {
        let first = if Q > 0 {
            [qb[0][t], qk[0][t]]
        } else {
            [zero; 2]
        };
        let sums = sum4(simd, [ab[t], ak[t], first[0], first[1]]);
        (pairs.ab[t][I], pairs.ak[t][I]) = (sums[0], sums[1]);
        if Q > 0 {
            (pairs.qb[0][t][I], pairs.qk[0][t][I]) = (sums[2], sums[3]);
        }
        for n in 1..Q {
            let sums = sum4(simd, [qb[n][t], qk[n][t], zero, zero]);
            (pairs.qb[n][t][I], pairs.qk[n][t][I]) = (sums[0], sums[1]);
        }
    }
}

/// `P(t-1, 0) a_t`, `P(t, 0) q_t` and `P(4, 0)`.
#[inline(always)]
fn decay_from_start<S: Simd, const Q: usize>(simd: S, block: &mut [f32], keys: usize) {
    let count = keys / S::F32_LANES;
    let block = &mut S::as_mut_simd_f32s(block).0[..block_rows(Q) * count];
    for c in 0..count {
        let mut decay = simd.splat_f32s(1.0);
        for t in 0..BLOCK {
            block[(A_START + t) * count + c] = simd.mul_f32s(block[(A + t) * count + c], decay);
            decay = simd.mul_f32s(decay, block[(W + t) * count + c]);
            for n in 0..Q {
                let query = QUERIES + 2 * n * BLOCK + t;
                block[(query + BLOCK) * count + c] = simd.mul_f32s(block[query * count + c], decay);
            }
        }
        block[DECAY * count + c] = decay;
    }
}
