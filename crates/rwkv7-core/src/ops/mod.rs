//! The operations that a layer calls, each by the path that the device has for them.
//!
//! The WKV-7 recurrence and the reads of its states are [`wkv7()`], [`wkv7_traced`] and [`read_states`]; the other operations
//! are its neighbours in a layer, the loss and the optimizer. A path is one of:
//!
//! - [`reference`](mod@reference): the formula in tensor operations, on any backend, differentiable by autodiff. Every other path is tested
//!   against it.
//! - [`chunked`]: the recurrence in matrix products over chunks of tokens, in tensor operations too.
//! - a custom operation with hand-written gradients: a trait in `backends/`, implemented for the CPU (kernels in `cpu/`), for
//!   GPUs (kernels in `gpu/`) and, with the other two, for autodiff. In tensor operations, an operation reads and writes whole
//!   tensors for every addition that Burn does not fuse; a custom operation does so once.
//!
//! Custom operations run where the device has them, on f32 and, on GPUs, in half precision. The environment variable `RWKV7_OP`
//! set to `chunked` or `reference` (or `oracle`) keeps them from running, to find out whether a driver computes one wrongly;
//! `packed` makes GPUs compute as they do in browsers, with few storage buffers. `RWKV7_OPERATOR` is the variable's older name.
//!
//! To add an operation: write the formula in `reference.rs`, the kernel in a file of `cpu/`, the tensors and the trait in
//! `backends/`, its implementations in `backends/flex.rs` and `backends/autodiff.rs` (a call of `record`), and a function here
//! that decides between the two. To give it a GPU kernel: write the kernel in a file of `gpu/`, add `Cube` and `Fusion` to the
//! attribute of the trait, with the metadata of its outputs, and implement the trait in a file of `backends/cubecl/`.

mod backends;
pub mod chunked;
#[cfg(feature = "flex")]
mod cpu;
mod dtype;
#[cfg(feature = "gpu")]
mod gpu;
pub(crate) mod head_loss;
mod in_words;
mod multi_output;
#[cfg(feature = "gpu")]
pub(crate) mod parameters;
mod path;
pub mod reference;
mod wkv7;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::{
    backend::Dispatch,
    optim::AdaptiveMomentumState,
    tensor::{DType, Device, Int, Tensor},
};

use crate::optimizer::OptimizerConfig;
use backends::{
    Activation, ActivationOps, CrossEntropyOps, KeyPreparationOps, KeyPreparationTensors,
    LayerNormOps, LayerNormTensors, MatmulBf16Ops, MatmulTensors, ReadOutOps, ReadOutTensors,
    RemovalKeyOps, RemovalKeyTensors, SixTokenShiftTensors, TokenShiftOps, TokenShiftTensors,
    ValueResidualOps, ValueResidualTensors,
};
use path::{Path, is_cpu, takes_cpu_kernel, takes_heads, takes_kernel};

pub use dtype::{narrow, widen};
pub(crate) use head_loss::head_loss;
pub(crate) use in_words::recurrence_in_words;
pub(crate) use reference::prefix_norm;
pub use reference::unit;
pub(crate) use wkv7::with_narrow_keys;
pub use wkv7::{Side, Trace, Wkv7Input, read_states, wkv7, wkv7_traced};

/// `h + (previous - h) ⊙ μ` for `h [batch, time, C]`, `last [batch, C]` the token before the first, and μ `[1, 1, C]`.
pub(crate) fn token_shift(h: Tensor<3>, last: Tensor<2>, mu: Tensor<3>) -> Tensor<3> {
    let last = narrow(last, h.dtype());
    if !takes_kernel(&h, [last.dtype(), mu.dtype()], 7) {
        let [output] = reference::token_shift(h, last, [mu]);
        return output;
    }
    Tensor::from_dispatch(Dispatch::token_shift(TokenShiftTensors {
        h: h.into_dispatch(),
        last: last.into_dispatch(),
        mu: mu.into_dispatch(),
    }))
}

/// [`token_shift`] with the six mixes of time mixing, in one pass.
pub(crate) fn six_token_shifts(
    h: Tensor<3>,
    last: Tensor<2>,
    mus: [Tensor<3>; 6],
) -> [Tensor<3>; 6] {
    let last = narrow(last, h.dtype());
    let types = mus.each_ref().map(|mu| mu.dtype());
    if !takes_kernel(&h, types, 17) {
        // With few storage buffers one after another.
        return match takes_kernel(&h, types, 7) {
            true => mus.map(|mu| token_shift(h.clone(), last.clone(), mu)),
            false => reference::token_shift(h, last, mus),
        };
    }
    let [r, w, k, v, a, g] = mus.map(Tensor::into_dispatch);
    let outputs = Dispatch::six_token_shifts(SixTokenShiftTensors {
        h: h.into_dispatch(),
        last: last.into_dispatch(),
        r,
        w,
        k,
        v,
        a,
        g,
    });
    outputs.into_array().map(Tensor::from_dispatch)
}

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

/// Decay and keys of the recurrence; heads of `head_size` channels.
pub(crate) fn key_preparation(input: KeyPreparation, head_size: usize) -> Keys {
    let KeyPreparation {
        k,
        w,
        a,
        w0,
        a0,
        k_k,
        k_a,
    } = &input;
    let types = [w, a, w0, a0, k_k, k_a].map(Tensor::dtype);
    if !takes_kernel(k, types, 15) || !takes_heads(&k.device(), head_size) {
        return reference::key_preparation(input, head_size);
    }
    let inputs = KeyPreparationTensors {
        k: input.k.into_dispatch(),
        w: input.w.into_dispatch(),
        a: input.a.into_dispatch(),
        w0: input.w0.into_dispatch(),
        a0: input.a0.into_dispatch(),
        k_k: input.k_k.into_dispatch(),
        k_a: input.k_a.into_dispatch(),
    };
    let keys = Dispatch::key_preparation(inputs, head_size);
    Keys {
        log_w: Tensor::from_dispatch(keys.log_w),
        k: Tensor::from_dispatch(keys.k),
        a: Tensor::from_dispatch(keys.a),
        b: Tensor::from_dispatch(keys.b),
    }
}

/// `(-ẑ, ẑ ⊙ σ(rate + bias))` with ẑ = z/|z| per head, for `z [batch, time, heads, n]`, `rate [batch, time, C]` and
/// `bias [1, 1, C]`; of the rate, the first n channels of each head.
pub(crate) fn removal_key(
    z: Tensor<4>,
    rate: Tensor<3>,
    bias: Tensor<3>,
) -> (Tensor<4>, Tensor<4>) {
    let [_, _, heads, size] = z.dims();
    let is_whole = heads * size == rate.dims()[2];
    let types = [rate.dtype(), bias.dtype()];
    if !takes_kernel(&z, types, 8) || !takes_heads(&z.device(), size) || !is_whole {
        return reference::removal_key(z, rate, bias);
    }
    let key = Dispatch::removal_key(RemovalKeyTensors {
        z: z.into_dispatch(),
        rate: rate.into_dispatch(),
        bias: bias.into_dispatch(),
    });
    (Tensor::from_dispatch(key.a), Tensor::from_dispatch(key.b))
}

/// `v + (first - v) ⊙ σ(s + v0)`, all `[batch, time, C]` but v0 `[1, 1, C]`.
pub(crate) fn value_residual(
    v: Tensor<3>,
    first: Tensor<3>,
    s: Tensor<3>,
    v0: Tensor<3>,
) -> Tensor<3> {
    if !takes_kernel(&v, [&first, &s, &v0].map(Tensor::dtype), 9) {
        return reference::value_residual(v, first, s, v0);
    }
    Tensor::from_dispatch(Dispatch::value_residual(ValueResidualTensors {
        v: v.into_dispatch(),
        first: first.into_dispatch(),
        s: s.into_dispatch(),
        v0: v0.into_dispatch(),
    }))
}

/// Inputs of [`read_out`].
pub(crate) struct ReadOut {
    /// What the recurrence read, `[batch, time, heads, head_size]`.
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

/// `(groupnorm(y) + (Σ r ⊙ k ⊙ r_k) v) ⊙ gate`, `[batch, time, C]`; norm and sum are over each head.
pub(crate) fn read_out(input: ReadOut) -> Tensor<3> {
    let types = [
        input.r.dtype(),
        input.k.dtype(),
        input.v.dtype(),
        input.gate.dtype(),
        input.r_k.dtype(),
        input.gamma.dtype(),
        input.beta.dtype(),
    ];
    let size = input.y.dims()[3];
    if input.prefix.is_some()
        || !takes_kernel(&input.y, types, 15)
        || !takes_heads(&input.y.device(), size)
    {
        return reference::read_out(input);
    }
    let inputs = ReadOutTensors {
        y: input.y.into_dispatch(),
        r: input.r.into_dispatch(),
        k: input.k.into_dispatch(),
        v: input.v.into_dispatch(),
        gate: input.gate.into_dispatch(),
        r_k: input.r_k.into_dispatch(),
        gamma: input.gamma.into_dispatch(),
        beta: input.beta.into_dispatch(),
    };
    Tensor::from_dispatch(Dispatch::read_out(inputs, input.epsilon as f32))
}

/// Layer norm over the last axis of `x [batch, time, C]`, scale γ and shift β `[C]`.
pub(crate) fn layer_norm(
    x: Tensor<3>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<3> {
    if !takes_kernel(&x, [gamma.dtype(), beta.dtype()], 5) {
        return reference::layer_norm(x, gamma, beta, epsilon);
    }
    let inputs = LayerNormTensors {
        x: x.into_dispatch(),
        gamma: gamma.into_dispatch(),
        beta: beta.into_dispatch(),
    };
    Tensor::from_dispatch(Dispatch::layer_norm(inputs, epsilon as f32))
}

/// relu(x)².
pub(crate) fn relu_squared<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation(x, Activation::ReluSquared)
}

/// The sigmoid.
pub(crate) fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation(x, Activation::Sigmoid)
}

/// The hyperbolic tangent.
pub(crate) fn tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation(x, Activation::Tanh)
}

fn activation<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    if !takes_kernel(&x, [], 3) {
        return reference::activation(x, activation);
    }
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), activation))
}

/// Softmax cross-entropy in nats of every row, `[rows]`, for `logits [rows, V]` and `targets [rows]`; half precision is widened.
pub(crate) fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    if !takes_loss_kernel(&logits) {
        return reference::cross_entropy(widen(logits), targets);
    }
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy(logits, targets))
}

/// Whether [`cross_entropy`] has a kernel for these logits.
fn takes_loss_kernel(logits: &Tensor<2>) -> bool {
    takes_kernel(logits, [], 6)
}

/// Whether [`head_loss`] runs on a GPU's kernels for a head `weight [C, V]`. On the CPU the logits are computed at once.
pub(crate) fn has_head_loss(weight: &Tensor<2>) -> bool {
    takes_loss_kernel(weight) && !is_cpu(&weight.device())
}

/// `x w` for `x [rows, in]` and `w [in, out]`, both rounded to bf16; sums are f32.
pub(crate) fn matmul_bf16(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    if !takes_cpu_kernel(&x) || !takes_cpu_kernel(&weight) || !has_bf16_matmul(&x.device()) {
        return reference::matmul_bf16(x, weight);
    }
    Tensor::from_dispatch(Dispatch::matmul_bf16(MatmulTensors {
        x: x.into_dispatch(),
        weight: weight.into_dispatch(),
    }))
}

/// Whether the device multiplies in bf16.
pub(crate) fn has_bf16_matmul(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    if is_cpu(device) {
        return backends::flex::has_bf16_matmul();
    }
    device.supports_dtype(DType::BF16)
}

/// Whether there is an [`adamw`] for these tensors.
pub(crate) fn has_adamw<const D: usize>(
    parameter: &Tensor<D>,
    gradient: &Tensor<D>,
    state: &AdaptiveMomentumState<D>,
) -> bool {
    let tensors = [parameter, gradient, &state.moment_1, &state.moment_2];
    #[cfg(feature = "gpu")]
    if tensors.into_iter().all(parameters::takes_kernel) {
        return true;
    }
    tensors.into_iter().all(takes_cpu_kernel)
}

/// One step of AdamW in one pass over memory, for tensors that [`has_adamw`] says yes to.
#[cfg_attr(not(any(feature = "flex", feature = "gpu")), allow(unused_variables))]
pub(crate) fn adamw<const D: usize>(
    config: &OptimizerConfig,
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: AdaptiveMomentumState<D>,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    #[cfg(feature = "gpu")]
    if parameters::takes_kernel(&parameter) {
        return parameters::adamw(config, rate, parameter, gradient, state);
    }
    #[cfg(feature = "flex")]
    return backends::flex::adamw(config, rate, parameter, gradient, state);
    #[cfg(not(feature = "flex"))]
    unreachable!("no device of this build has an AdamW in one pass")
}

/// Sum of the squares of a tensor's values, `[1]`.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if takes_cpu_kernel(&x) && !x.is_autodiff() {
        return backends::flex::sum_of_squares(x);
    }
    x.square().sum()
}
