//! The neighbours of the operator, each in one pass over memory on the CPU.
//!
//! In plain tensor operations every addition reads and writes whole tensors; on a GPU Burn fuses them, on the CPU it does
//! not. Each function here takes the fused kernel for f32 tensors on the CPU and plain operations everywhere else. With the
//! environment variable `RWKV7_OP` set to `chunked` or `oracle`, it is plain operations on the CPU too.

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod op;
mod plain;

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::{
    backend::DispatchDevice,
    optim::AdaptiveMomentumState,
    tensor::{DType, Device, Int, Tensor},
};

use crate::optimizer::OptimizerConfig;

/// Inputs of [`key_preparation`]; per token `[batch, time, C]`, per channel `[1, 1, C]`.
pub(crate) struct KeyPreparation {
    /// Projected key.
    pub k: Tensor<3>,
    /// Decay before its bias and sigmoid.
    pub w: Tensor<3>,
    /// In-context learning rate before its bias and sigmoid.
    pub a: Tensor<3>,
    /// Decay bias.
    pub w0: Tensor<3>,
    /// In-context learning rate bias.
    pub a0: Tensor<3>,
    /// Scale of the removal key.
    pub k_k: Tensor<3>,
    /// How much the in-context learning rate scales the replacement key.
    pub k_a: Tensor<3>,
}

/// Results of [`key_preparation`], `[batch, time, heads, head_size]`.
pub(crate) struct Keys {
    /// ln w = -e^(-1/2) σ(w + w0).
    pub log_w: Tensor<4>,
    /// k̃ = k ⊙ (1 + (a - 1) ⊙ k_a) with a = σ(a + a0).
    pub k: Tensor<4>,
    /// -κ̂ with κ̂ = normalise(k ⊙ k_k) per head.
    pub a: Tensor<4>,
    /// κ̂ ⊙ a.
    pub b: Tensor<4>,
}

/// Inputs of [`read_out`].
pub(crate) struct ReadOut {
    /// What the operator read, `[batch, time, heads, head_size]`.
    pub y: Tensor<4>,
    /// Receptance, of the same shape.
    pub r: Tensor<4>,
    /// Replacement key, of the same shape.
    pub k: Tensor<4>,
    /// Value, of the same shape.
    pub v: Tensor<4>,
    /// Gate, `[batch, time, C]`.
    pub gate: Tensor<3>,
    /// Weight of the bonus, `[heads, head_size]`.
    pub r_k: Tensor<2>,
    /// Scale of the group norm, `[C]`.
    pub gamma: Tensor<1>,
    /// Shift of the group norm, `[C]`.
    pub beta: Tensor<1>,
    /// Epsilon of the group norm.
    pub epsilon: f64,
    /// Channels of each head over which the group norm is taken; all where none.
    pub prefix: Option<usize>,
}

/// `h + (previous - h) ⊙ μ` for every μ `[1, 1, C]`; `h [batch, time, C]`, `last [batch, C]` the token before the first.
pub(crate) fn token_shift(h: Tensor<3>, last: Tensor<2>, mus: Vec<Tensor<3>>) -> Vec<Tensor<3>> {
    #[cfg(feature = "flex")]
    if flex::takes(&h) && flex::takes(&last) {
        return flex::token_shift(h, last, mus);
    }
    plain::token_shift(h, last, mus)
}

/// Decay and keys of the operator; heads of `head_size` channels.
pub(crate) fn key_preparation(input: KeyPreparation, head_size: usize) -> Keys {
    #[cfg(feature = "flex")]
    if flex::takes(&input.k) && flex::takes(&input.w) && flex::takes(&input.a) {
        return flex::key_preparation(input, head_size);
    }
    plain::key_preparation(input, head_size)
}

/// `(-ẑ, ẑ ⊙ σ(rate + bias))` with ẑ = z/|z| per head, for `z [batch, time, heads, n]`, `rate [batch, time, C]` and
/// `bias [1, 1, C]`; of the rate, the first n channels of each head.
pub(crate) fn removal_key(
    z: Tensor<4>,
    rate: Tensor<3>,
    bias: Tensor<3>,
) -> (Tensor<4>, Tensor<4>) {
    #[cfg(feature = "flex")]
    if flex::takes(&z) && flex::takes(&rate) && z.dims()[2] * z.dims()[3] == rate.dims()[2] {
        return flex::removal_key(z, rate, bias);
    }
    plain::removal_key(z, rate, bias)
}

/// `v + (first - v) ⊙ σ(s + v0)`, all `[batch, time, C]` but v0 `[1, 1, C]`.
pub(crate) fn value_residual(
    v: Tensor<3>,
    first: Tensor<3>,
    s: Tensor<3>,
    v0: Tensor<3>,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::takes(&v) && flex::takes(&s) {
        return flex::value_residual(v, first, s, v0);
    }
    plain::value_residual(v, first, s, v0)
}

/// `(groupnorm(y) + (Σ r ⊙ k ⊙ r_k) v) ⊙ gate`, `[batch, time, C]`; norm and sum are over each head.
pub(crate) fn read_out(input: ReadOut) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if input.prefix.is_none() && flex::takes(&input.y) && flex::takes(&input.gate) {
        return flex::read_out(input);
    }
    plain::read_out(input)
}

pub(crate) use plain::prefix_norm;

/// Layer norm over the last axis of `x [batch, time, C]`, scale γ and shift β `[C]`.
pub(crate) fn layer_norm(
    x: Tensor<3>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::layer_norm(x, gamma, beta, epsilon);
    }
    plain::layer_norm(x, gamma, beta, epsilon)
}

/// relu(x)².
pub(crate) fn relu_squared(x: Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::relu_squared(x);
    }
    plain::relu_squared(x)
}

/// The sigmoid.
pub(crate) fn sigmoid(x: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::sigmoid(x);
    }
    burn::tensor::activation::sigmoid(x)
}

/// The hyperbolic tangent.
pub(crate) fn tanh(x: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::tanh(x);
    }
    x.tanh()
}

/// Softmax cross-entropy in nats of every row, `[rows]`, for `logits [rows, V]` and `targets [rows]`.
pub(crate) fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if flex::takes(&logits) {
        return flex::cross_entropy(logits, targets);
    }
    plain::cross_entropy(logits, targets)
}

/// `x w` for `x [rows, in]` and `w [in, out]`, both rounded to bf16; sums are f32.
pub(crate) fn bf16_product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) && flex::takes(&weight) && flex::has_bf16_products() {
        return flex::bf16_product(x, weight);
    }
    plain::bf16_product(x, weight)
}

/// Whether the device multiplies in bf16.
pub(crate) fn has_bf16_products(device: &Device) -> bool {
    if matches!(
        device.clone().inner().as_dispatch(),
        DispatchDevice::Flex(_)
    ) {
        #[cfg(feature = "flex")]
        return flex::has_bf16_products();
    }
    device.supports_dtype(DType::BF16)
}

/// Whether [`adamw`] takes these.
pub(crate) fn adamw_takes<const D: usize>(parameter: &Tensor<D>, gradient: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    if flex::takes(parameter) && flex::takes(gradient) {
        return true;
    }
    let _ = (parameter, gradient);
    false
}

/// One step of AdamW, for tensors that [`adamw_takes`].
#[cfg_attr(not(feature = "flex"), allow(unused_variables))]
pub(crate) fn adamw<const D: usize>(
    config: &OptimizerConfig,
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: AdaptiveMomentumState<D>,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    #[cfg(feature = "flex")]
    return flex::adamw(config, rate, parameter, gradient, state);
    #[cfg(not(feature = "flex"))]
    unreachable!("there is no fused AdamW in this build")
}

/// Sum of squares, `[1]`.
pub(crate) fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) && !x.is_autodiff() {
        return flex::sum_of_squares(x);
    }
    x.square().sum()
}
