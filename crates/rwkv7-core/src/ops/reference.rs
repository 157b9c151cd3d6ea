//! The formulas of the operations, in tensor operations: slow, simple, differentiable by autodiff, and what every other path is
//! compared with. The functions are those of the [module](super), where shapes and equations are.

use burn::tensor::{DType, Int, Tensor, activation};

use super::{
    KeyPreparation, Keys, ReadOut, Side, Wkv7Input,
    backends::Activation,
    dtype::{narrow, widen},
    head_loss::LossRows,
};

/// e^(-1/2): the largest decay rate per token, `w ≥ exp(-DECAY_SCALE) = 0.545`.
pub(super) const DECAY_SCALE: f64 = 0.606_530_659_712_633_4;

/// Below this length a key is not normalised but scaled by its inverse, as in the official code.
pub(super) const MIN_KEY_NORM: f64 = 1e-12;

/// [`wkv7`](super::wkv7()), one token at a time.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let (y, state, _) = run_wkv7(input, s0, false);
    (y, state)
}

/// [`wkv7`] and the states after each token, `[batch, time, heads, value, key]`.
pub fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, Tensor<5>) {
    let (y, state, states) = run_wkv7(input, s0, true);
    (y, state, Tensor::cat(states, 1))
}

/// `z_t = x_t S_t` or `z_t = S_t x_t` for the states of [`wkv7_traced`].
pub fn read_states(x: Tensor<4>, states: &Tensor<5>, side: Side) -> Tensor<4> {
    let states = match side {
        Side::Value => states.clone(),
        Side::Key => states.clone().transpose(),
    };
    x.unsqueeze_dim::<5>(3).matmul(states).squeeze_dim(3)
}

fn run_wkv7(input: Wkv7Input, s0: Tensor<4>, keep: bool) -> (Tensor<4>, Tensor<4>, Vec<Tensor<5>>) {
    let time = input.r.dims()[1];
    // One token as rows [batch, heads, 1, size]; transposed, as columns.
    let row = |x: &Tensor<4>, t: usize| x.clone().narrow(1, t, 1).swap_dims(1, 2);
    let mut state = s0; // [batch, heads, value, key]
    let mut states = Vec::new();
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let [r, log_w, k, v, a, b] = input.named().map(|(_, x)| row(x, t));
        let sa = state.clone().matmul(a.transpose()); // [batch, heads, value, 1]
        state = state * log_w.exp() + sa * b + v.transpose() * k;
        outputs.push(state.clone().matmul(r.transpose()).permute([0, 3, 1, 2]));
        if keep {
            states.push(state.clone().unsqueeze_dim::<5>(1));
        }
    }
    (Tensor::cat(outputs, 1), state, states)
}

pub(super) fn token_shift<const M: usize>(
    h: Tensor<3>,
    last: Tensor<2>,
    mus: [Tensor<3>; M],
) -> [Tensor<3>; M] {
    let time = h.dims()[1];
    let last = narrow(last, h.dtype()).unsqueeze_dim::<3>(1);
    let previous = if time == 1 {
        last
    } else {
        Tensor::cat(vec![last, h.clone().narrow(1, 0, time - 1)], 1)
    };
    let delta = previous - h.clone();
    mus.map(|mu| h.clone() + delta.clone() * mu)
}

pub(super) fn key_preparation(input: KeyPreparation, head_size: usize) -> Keys {
    let [batch, time, width] = input.k.dims();
    let split = |x: Tensor<3>| x.reshape([batch, time, width / head_size, head_size]);
    let log_w = activation::sigmoid(widen(input.w + input.w0)) * -DECAY_SCALE;
    let a = activation::sigmoid(input.a + input.a0);
    let removal_key = unit(split(widen(input.k.clone() * input.k_k)));
    let k = input.k.clone() + input.k * (a.clone() - 1.0) * input.k_a;
    Keys {
        log_w: split(log_w),
        k: split(k),
        a: -removal_key.clone(),
        b: removal_key * split(widen(a)),
    }
}

pub(super) fn removal_key(
    z: Tensor<4>,
    rate: Tensor<3>,
    bias: Tensor<3>,
) -> (Tensor<4>, Tensor<4>) {
    let [batch, time, heads, size] = z.dims();
    let head_size = rate.dims()[2] / heads;
    let rate = activation::sigmoid(widen(rate + bias));
    let rate = rate.reshape([batch, time, heads, head_size]);
    let key = unit(widen(z));
    (-key.clone(), key * rate.narrow(3, 0, size))
}

/// `x / max(|x|, 1e-12)` over the last axis; the maximum is taken of the squares, so that a zero has a finite gradient.
pub fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x
        .clone()
        .square()
        .sum_dim(3)
        .clamp_min(MIN_KEY_NORM * MIN_KEY_NORM)
        .sqrt();
    x / length
}

pub(super) fn value_residual(
    v: Tensor<3>,
    first: Tensor<3>,
    s: Tensor<3>,
    v0: Tensor<3>,
) -> Tensor<3> {
    let mixed = activation::sigmoid(s + v0);
    v.clone() + (first - v) * mixed
}

pub(super) fn read_out(input: ReadOut) -> Tensor<3> {
    let [batch, time, heads, head_size] = input.y.dims();
    let dtype = input.y.dtype();
    let width = heads * head_size;
    let y = widen(input.y);
    let channels = |x: Tensor<1>| widen(x).reshape([1, 1, heads, head_size]);
    let prefix = input.prefix.unwrap_or(head_size);
    let y = prefix_norm(y, prefix, input.epsilon) * channels(input.gamma) + channels(input.beta);
    let weight = widen(input.r_k).reshape([1, 1, heads, head_size]);
    let bonus = (widen(input.r * input.k) * weight).sum_dim(3);
    let y = narrow(y, dtype) + narrow(bonus, dtype) * input.v;
    y.reshape([batch, time, width]) * input.gate
}

/// `(x - mean) / √(variance + ε)` over the last axis, mean and variance of its first `prefix` entries.
pub(crate) fn prefix_norm(x: Tensor<4>, prefix: usize, epsilon: f64) -> Tensor<4> {
    let first = x.clone().narrow(3, 0, prefix);
    let mean = first.clone().mean_dim(3);
    let variance = (first - mean.clone()).square().mean_dim(3);
    (x - mean) / (variance + epsilon).sqrt()
}

pub(super) fn layer_norm(
    x: Tensor<3>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<3> {
    let dtype = x.dtype();
    let y = burn::tensor::module::layer_norm(widen(x), widen(gamma), Some(widen(beta)), epsilon);
    narrow(y, dtype)
}

pub(super) fn matmul_bf16(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let round = |x: Tensor<2>| x.cast(DType::BF16);
    round(x).matmul(round(weight)).cast(dtype)
}

pub(super) fn activation<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::ReluSquared => activation::relu(x).square(),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

pub(super) fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let rows = logits.dims()[0];
    let picked = activation::log_softmax(logits, 1).gather(1, targets.reshape([rows, 1]));
    -picked.reshape([rows])
}

pub(super) fn loss_rows(
    logits: Tensor<2>,
    weights: Tensor<1>,
    targets: Tensor<1, Int>,
    pull: f64,
    with_gradient: bool,
) -> LossRows {
    let (dims, dtype) = (logits.dims(), logits.dtype());
    let logits = widen(logits);
    let (largest, place) = logits.clone().max_dim_with_indices(1);
    let targets = targets.reshape([dims[0], 1]);
    let hits = place.clone().equal(targets.clone()).float();
    let losses = super::cross_entropy(logits.clone(), targets.clone().reshape([dims[0]]));
    let gradient = with_gradient.then(|| {
        let classes = Tensor::<1, Int>::arange(0..dims[1] as i64, &logits.device());
        let classes: Tensor<2, Int> = classes.unsqueeze();
        let at = |class: Tensor<2, Int>, values: Tensor<2>| {
            let elsewhere = classes.clone().not_equal(class);
            values.expand(dims).mask_fill(elsewhere, 0.0)
        };
        let weights: Tensor<2> = weights.unsqueeze_dim(1);
        let slopes = activation::softmax(logits, 1) * weights.clone();
        narrow(
            slopes - at(targets, weights) + at(place, largest * pull),
            dtype,
        )
    });
    LossRows {
        losses,
        hits: hits.reshape([dims[0]]),
        gradient,
    }
}
