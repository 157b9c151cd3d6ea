//! The recurrence in tensor operations over chunks of tokens (the WY form of products of rank-one updates).
//!
//! For a chunk with log decays `g`, inclusive sums `G_t`, exclusive sums `E_t = G_t - g_t`, chunk sum `G_n`, and one row
//! per token:
//!
//! ```text
//! R̂ = R e^G   Â = A e^E   Ǩ = K e^-G   B̌ = B e^-G   K̄ = K e^(G_n-G)   B̄ = B e^(G_n-G)
//! M  = (I - stril(Â B̌ᵀ))⁻¹
//! SA = M (Â S0ᵀ + stril(Â Ǩᵀ) V)
//! Y  = R̂ S0ᵀ + tril(R̂ Ǩᵀ) V + tril(R̂ B̌ᵀ) SA
//! S  = S0 diag(e^G_n) + Vᵀ K̄ + SAᵀ B̄
//! ```
//!
//! `SA` is affine in `S0`, hence so is `S`: `S = S0 T + C` with `T = diag(e^G_n) + (MÂ)ᵀ B̄`. Everything but that one
//! product per chunk runs for all chunks at once.
//!
//! RWKV-7's decay has the floor e^(-e^(-1/2)) = 0.545 per step, so with a reference row in mid-chunk subtracted from
//! `G` (only differences of `G` enter the products) no exponent exceeds 0.61 n/2. What lies above the diagonal is
//! removed by selection, never by multiplication.

use burn::tensor::{Bool, DType, Device, Tensor};

use super::{Side, Wkv7Input};

/// Tokens per chunk of short sequences.
pub const CHUNK: usize = 16;

/// Tokens per chunk, by measurement (`docs/src/performance.md`): short chunks do less work, but the backward pass of a
/// long sequence pays for their number squared.
pub fn chunk_length(time: usize) -> usize {
    if time <= 64 { CHUNK } else { 64 }
}

/// What [`wkv7_traced`] leaves for [`read_states`]; `[batch, heads, chunks, chunk, size]` unless said otherwise.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Ǩ, relative to mid-chunk.
    k: Tensor<5>,
    /// B̌, relative to mid-chunk.
    b: Tensor<5>,
    /// V.
    v: Tensor<5>,
    /// SA.
    sa: Tensor<5>,
    /// e^G relative to mid-chunk.
    decay: Tensor<5>,
    /// States before each chunk, relative to mid-chunk, `[batch, heads, chunks, value, key]`.
    starts: Tensor<5>,
    /// Tokens without the padding.
    time: usize,
}

impl Trace {
    /// Shape, dtype and device of a query.
    pub(super) fn query(&self, side: Side) -> ([usize; 4], DType, Device) {
        let [batch, heads, _, _, size] = match side {
            Side::Value => self.v.dims(),
            Side::Key => self.k.dims(),
        };
        let shape = [batch, self.time, heads, size];
        (shape, self.v.dtype(), self.v.device())
    }
}

/// [`wkv7()`](super::wkv7()) over chunks of `chunk` tokens; any sequence length, differentiable by autodiff.
///
/// # Panics
///
/// If `chunk` is not a power of two between 2 and 128: beyond that f32 loses the products of decays.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>, chunk: usize) -> (Tensor<4>, Tensor<4>) {
    let (y, state, _) = wkv7_traced(input, s0, chunk);
    (y, state)
}

/// The state after every token read with `x`, for a traced call:
///
/// ```text
/// value side, z_t = x_t S_t:   Z = e^G (X S0 + tril(X Vᵀ) Ǩ + tril(X SAᵀ) B̌)
/// key side,   z_t = S_t x_t:   Z = X̂ S0ᵀ + tril(X̂ Ǩᵀ) V + tril(X̂ B̌ᵀ) SA,   X̂ = X e^G
/// ```
pub fn read_states(x: Tensor<4>, trace: &Trace, side: Side) -> Tensor<4> {
    let chunk = trace.v.dims()[3];
    let future = later_tokens(chunk, 0, &x.device());
    let x = fold(x, chunk);
    let scores = |x: &Tensor<5>, rows: &Tensor<5>| {
        let scores = x.clone().matmul(rows.clone().transpose());
        let dims = scores.dims();
        scores.mask_fill(future.clone().expand(dims), 0.0)
    };
    let Trace {
        k,
        b,
        v,
        sa,
        decay,
        starts,
        time,
    } = trace.clone();
    let z = match side {
        Side::Value => {
            let (with_v, with_sa) = (scores(&x, &v), scores(&x, &sa));
            (x.matmul(starts) + with_v.matmul(k) + with_sa.matmul(b)) * decay
        }
        Side::Key => {
            let x = x * decay;
            let (with_k, with_b) = (scores(&x, &k), scores(&x, &b));
            x.matmul(starts.transpose()) + with_k.matmul(v) + with_b.matmul(sa)
        }
    };
    unfold(z, time)
}

/// `[batch, time, heads, size] -> [batch, heads, chunks, chunk, size]`; padding with zeros is a step that does nothing.
fn fold(x: Tensor<4>, chunk: usize) -> Tensor<5> {
    let [batch, time, heads, size] = x.dims();
    let chunks = time.div_ceil(chunk);
    let missing = chunks * chunk - time;
    let x = if missing == 0 {
        x
    } else {
        let zeros = Tensor::zeros([batch, missing, heads, size], (&x.device(), x.dtype()));
        Tensor::cat(vec![x, zeros], 1)
    };
    x.reshape([batch, chunks, chunk, heads, size])
        .permute([0, 3, 1, 2, 4])
}

/// The inverse of [`fold`].
fn unfold(x: Tensor<5>, time: usize) -> Tensor<4> {
    let [batch, heads, chunks, chunk, size] = x.dims();
    let x = x
        .permute([0, 2, 3, 1, 4])
        .reshape([batch, chunks * chunk, heads, size]);
    if chunks * chunk == time {
        x
    } else {
        x.narrow(1, 0, time)
    }
}

/// [`wkv7`], and what [`read_states`] needs.
///
/// # Panics
///
/// As [`wkv7`].
pub fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>, chunk: usize) -> (Tensor<4>, Tensor<4>, Trace) {
    assert!(
        chunk.is_power_of_two() && (2..=128).contains(&chunk),
        "wkv7: the chunk length is {chunk}, expected a power of two from 2 to 128"
    );
    let [_, time, _, key] = input.r.dims();
    let chunk = chunk.min(time.next_power_of_two().max(2));
    let chunks = time.div_ceil(chunk);
    let device = input.r.device();
    let dtype = input.r.dtype();
    let [r, g, k, v, a, b] =
        [input.r, input.log_w, input.k, input.v, input.a, input.b].map(|x| fold(x, chunk));

    let inclusive = g.clone().cumsum(3);
    let total = inclusive.clone().narrow(3, chunk - 1, 1); // [batch, heads, chunks, 1, key]
    let middle = inclusive.clone().narrow(3, chunk / 2 - 1, 1);
    let relative = inclusive - middle.clone();
    // Everything is scaled relative to mid-chunk; these lead from the chunk's start there, and from there to its end.
    let enter = middle.clone().exp();
    let leave = (total.clone() - middle).exp();
    let decay = relative.clone().exp();
    let r = r * decay.clone();
    let a = a * (relative.clone() - g).exp();
    let stretch = relative.neg().exp();
    let k = k * stretch.clone();
    let b = b * stretch;

    // Columns 0..chunk meet the keys k, columns chunk..2 chunk the keys b.
    let keys = Tensor::cat(vec![k.clone(), b.clone()], 3).transpose();
    let with_r = r.clone().matmul(keys.clone());
    let with_a = a.clone().matmul(keys);
    let future = later_tokens(chunk, 0, &device);
    let not_past = later_tokens(chunk, -1, &device);
    let select = |scores: &Tensor<5>, half: usize, mask: &Tensor<5, Bool>| {
        let [b, h, c, n, _] = scores.dims();
        scores
            .clone()
            .narrow(4, half * chunk, chunk)
            .mask_fill(mask.clone().expand([b, h, c, n, n]), 0.0)
    };
    let rk = select(&with_r, 0, &future);
    let rb = select(&with_r, 1, &future);
    let ak = select(&with_a, 0, &not_past);
    let ab = select(&with_a, 1, &not_past);

    // SA = reads S0ᵀ + writes
    let solve = inverse_of_unit_lower(ab);
    let reads = solve.clone().matmul(a) * enter.clone();
    let writes = solve.matmul(ak.matmul(v.clone()));

    let identity = Tensor::<2>::eye(key, &device)
        .cast(dtype)
        .reshape([1, 1, 1, key, key]);
    let transition =
        identity * total.exp() + reads.clone().transpose().matmul(b.clone()) * leave.clone();
    let update =
        v.clone().transpose().matmul(k.clone()) + writes.clone().transpose().matmul(b.clone());
    let update = update * leave;

    let mut state = s0.unsqueeze_dim::<5>(2); // [batch, heads, 1, value, key]
    let mut starts = Vec::with_capacity(chunks);
    for c in 0..chunks {
        let next = state.clone().matmul(transition.clone().narrow(2, c, 1))
            + update.clone().narrow(2, c, 1);
        starts.push(std::mem::replace(&mut state, next));
    }
    let starts = Tensor::cat(starts, 2); // [batch, heads, chunks, value, key]

    let sa = reads.matmul(starts.clone().transpose()) + writes;
    let starts = starts * enter;
    let y = r.matmul(starts.clone().transpose()) + rk.matmul(v.clone()) + rb.matmul(sa.clone());
    let trace = Trace {
        k,
        b,
        v,
        sa,
        decay,
        starts,
        time,
    };
    (unfold(y, time), state.squeeze_dim::<4>(2), trace)
}

/// True above the given diagonal: what token `row` must not see. `[1, 1, 1, n, n]`.
fn later_tokens(n: usize, diagonal: i64, device: &burn::tensor::Device) -> Tensor<5, Bool> {
    Tensor::<2, Bool>::tril_mask([n, n], diagonal, device).reshape([1, 1, 1, n, n])
}

/// `(I - x)⁻¹` for strictly lower triangular `x [.., n, n]`, n a power of two.
///
/// Forward substitution in blocks: with the inverses P and Q of two neighbouring diagonal blocks and the block X below
/// the first and beside the second, the inverse of both together is `[[P, 0], [Q X P, Q]]`. A power series of `x` would
/// need fewer steps, but it is unusable in f32: with repeated keys the powers grow to 1e16 before they cancel.
fn inverse_of_unit_lower(x: Tensor<5>) -> Tensor<5> {
    let [b, h, c, n, _] = x.dims();
    let outer = b * h * c;
    let constant = x.clone().detach();
    // [outer, blocks, size, size]: the inverses of the diagonal blocks, from size 1 up.
    let mut inverse = Tensor::<4>::ones([outer, n, 1, 1], (&x.device(), x.dtype()));
    let mut size = 1;
    while size < n {
        let pairs = n / (2 * size);
        // Diagonal blocks of twice the size, of which the lower left quarter is X.
        let below = diagonal_blocks(constant.clone(), outer, pairs, size);
        let both = inverse.reshape([outer, pairs, 2, size * size]);
        let first = both
            .clone()
            .narrow(2, 0, 1)
            .reshape([outer, pairs, size, size]);
        let second = both.narrow(2, 1, 1).reshape([outer, pairs, size, size]);
        let corner = second.clone().matmul(below).matmul(first.clone());
        let zeros = Tensor::zeros([outer, pairs, size, size], (&x.device(), x.dtype()));
        inverse = Tensor::cat(
            vec![
                Tensor::cat(vec![first, zeros], 3),
                Tensor::cat(vec![corner, second], 3),
            ],
            2,
        );
        size *= 2;
    }
    let inverse = inverse.reshape([b, h, c, n, n]);
    if x.is_autodiff() {
        // d(I - x)⁻¹ = (I - x)⁻¹ dx (I - x)⁻¹: the added term is zero and carries exactly this derivative.
        let zero = x - constant;
        inverse.clone() + inverse.clone().matmul(zero).matmul(inverse)
    } else {
        inverse
    }
}

/// The lower left quarters, `[outer, pairs, size, size]`, of the diagonal blocks of size `2 size` of `x [.., n, n]`.
fn diagonal_blocks(x: Tensor<5>, outer: usize, pairs: usize, size: usize) -> Tensor<4> {
    let double = 2 * size;
    let n = pairs * double;
    let x = x.reshape([outer, n, n]);
    let blocks = (0..pairs)
        .map(|p| {
            let row = p * double + size;
            let column = p * double;
            x.clone()
                .slice([0..outer, row..row + size, column..column + size])
                .unsqueeze_dim::<4>(1)
        })
        .collect();
    Tensor::cat(blocks, 1)
}
