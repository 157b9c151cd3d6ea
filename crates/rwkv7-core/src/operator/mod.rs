//! The WKV-7 operator, the one recurrence of the project.
//!
//! Per batch row and head, with `S` of shape `[value, key]`, `w = exp(log_w)` and row vectors per token
//! (RWKV-7, arXiv 2503.14456; official code: `RWKV-v7/train_temp`):
//!
//! ```text
//! sa_t = S_{t-1} a_t
//! S_t  = S_{t-1} diag(w_t) + sa_t b_tᵀ + v_t k_tᵀ
//! y_t  = S_t r_t
//! ```
//!
//! | name | here | RWKV-7 passes | shape |
//! |---|---|---|---|
//! | r | receptance | r | `[batch, time, heads, key]` |
//! | log_w | log of the decay, ≤ 0 | -e^(-1/2) σ(·) | `[batch, time, heads, key]` |
//! | k | replacement key | k ⊙ (1 + (a - 1) ⊙ k_a) | `[batch, time, heads, key]` |
//! | v | value | v | `[batch, time, heads, value]` |
//! | a | removal direction | -κ̂ | `[batch, time, heads, key]` |
//! | b | removal weight | κ̂ ⊙ a | `[batch, time, heads, key]` |
//! | S0 | state before the first token | carried | `[batch, heads, value, key]` |
//!
//! Two forms compute it: [`oracle::wkv7`], token by token, is what every other form is tested against;
//! [`chunked::wkv7`] does the same with matrix products over chunks of tokens. [`wkv7`] chooses.

pub mod chunked;
pub mod oracle;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::{DType, FloatDType, Tensor};

/// Inputs of the operator, shapes as in the [module documentation](self).
#[derive(Clone, Debug)]
pub struct Wkv7Input {
    /// Receptance, `[batch, time, heads, key]`.
    pub r: Tensor<4>,
    /// Log decay, `[batch, time, heads, key]`.
    pub log_w: Tensor<4>,
    /// Replacement key, `[batch, time, heads, key]`.
    pub k: Tensor<4>,
    /// Value, `[batch, time, heads, value]`.
    pub v: Tensor<4>,
    /// Removal direction -κ̂, `[batch, time, heads, key]`.
    pub a: Tensor<4>,
    /// Removal weight κ̂ ⊙ a, `[batch, time, heads, key]`.
    pub b: Tensor<4>,
}

/// Runs the WKV-7 recurrence: returns `y [batch, time, heads, value]` and the state after the last token
/// `[batch, heads, value, key]`.
///
/// Half-precision inputs are widened: the state and all sums are f32 (f64 for f64 inputs); `y` comes back in the dtype
/// of `v`. The decay is passed as its logarithm because a decay near 1 does not survive in half precision.
///
/// # Panics
///
/// If the shapes do not agree; the message names the input.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    check_shapes(&input, &s0);
    let dtype = input.v.dtype();
    let Wkv7Input {
        r,
        log_w,
        k,
        v,
        a,
        b,
    } = input;
    let [r, log_w, k, v, a, b] = [r, log_w, k, v, a, b].map(widen);
    let s0 = narrow(s0, r.dtype());
    let time = r.dims()[1];
    let input = Wkv7Input {
        r,
        log_w,
        k,
        v,
        a,
        b,
    };
    let (y, state) = if time == 1 {
        oracle::wkv7(input, s0)
    } else {
        chunked::wkv7(input, s0, chunked::chunk_length(time))
    };
    (narrow(y, dtype), state)
}

/// f16 and bf16 become f32; f32 and f64 stay.
pub(crate) fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}

/// `x` in this dtype.
pub(crate) fn narrow<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype {
        x
    } else {
        x.cast(FloatDType::from(dtype))
    }
}

fn check_shapes(input: &Wkv7Input, s0: &Tensor<4>) {
    let [batch, time, heads, key] = input.r.dims();
    assert!(time > 0, "wkv7: the sequence is empty");
    for (name, tensor) in [
        ("log_w", &input.log_w),
        ("k", &input.k),
        ("a", &input.a),
        ("b", &input.b),
    ] {
        let found = tensor.dims();
        assert!(
            found == [batch, time, heads, key],
            "wkv7: {name} has shape {found:?}, r has {:?}",
            [batch, time, heads, key]
        );
    }
    let found = input.v.dims();
    assert!(
        found[..3] == [batch, time, heads],
        "wkv7: v has shape {found:?}, r has {:?}",
        [batch, time, heads, key]
    );
    let expected = [batch, heads, found[3], key];
    let found = s0.dims();
    assert!(
        found == expected,
        "wkv7: S0 has shape {found:?}, expected {expected:?}"
    );
}
