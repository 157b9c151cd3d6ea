//! The functions of the [module](super) in plain tensor operations.

use burn::tensor::{DType, Int, Tensor, activation};

use super::{KeyPreparation, Keys, ReadOut};
use crate::ops::{narrow, widen};

/// e^(-1/2): the largest decay rate per token, `w ≥ exp(-DECAY_SCALE) = 0.545`.
const DECAY_SCALE: f64 = 0.606_530_659_712_633_4;

/// Below this length a key is not normalised but scaled by its inverse, as in the official code.
const MIN_KEY_NORM: f64 = 1e-12;

pub fn token_shift(h: Tensor<3>, last: Tensor<2>, mus: Vec<Tensor<3>>) -> Vec<Tensor<3>> {
    let time = h.dims()[1];
    let last = narrow(last, h.dtype()).unsqueeze_dim::<3>(1);
    let previous = if time == 1 {
        last
    } else {
        Tensor::cat(vec![last, h.clone().narrow(1, 0, time - 1)], 1)
    };
    let delta = previous - h.clone();
    mus.into_iter()
        .map(|mu| h.clone() + delta.clone() * mu)
        .collect()
}

pub fn key_preparation(input: KeyPreparation, head_size: usize) -> Keys {
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

pub fn removal_key(z: Tensor<4>, rate: Tensor<3>, bias: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
    let [batch, time, heads, size] = z.dims();
    let head_size = rate.dims()[2] / heads;
    let rate = activation::sigmoid(widen(rate + bias));
    let rate = rate.reshape([batch, time, heads, head_size]);
    let key = unit(widen(z));
    (-key.clone(), key * rate.narrow(3, 0, size))
}

/// `x / max(|x|, 1e-12)` over the last axis; the maximum is taken of the squares, so that a zero has a finite gradient.
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x
        .clone()
        .square()
        .sum_dim(3)
        .clamp_min(MIN_KEY_NORM * MIN_KEY_NORM)
        .sqrt();
    x / length
}

pub fn value_residual(v: Tensor<3>, first: Tensor<3>, s: Tensor<3>, v0: Tensor<3>) -> Tensor<3> {
    let mixed = activation::sigmoid(s + v0);
    v.clone() + (first - v) * mixed
}

pub fn read_out(input: ReadOut) -> Tensor<3> {
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
pub fn prefix_norm(x: Tensor<4>, prefix: usize, epsilon: f64) -> Tensor<4> {
    let first = x.clone().narrow(3, 0, prefix);
    let mean = first.clone().mean_dim(3);
    let variance = (first - mean.clone()).square().mean_dim(3);
    (x - mean) / (variance + epsilon).sqrt()
}

pub fn layer_norm(x: Tensor<3>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let dtype = x.dtype();
    let y = burn::tensor::module::layer_norm(widen(x), widen(gamma), Some(widen(beta)), epsilon);
    narrow(y, dtype)
}

pub fn bf16_product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let round = |x: Tensor<2>| x.cast(DType::BF16);
    round(x).matmul(round(weight)).cast(dtype)
}

pub fn relu_squared(x: Tensor<3>) -> Tensor<3> {
    activation::relu(x).square()
}

pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let rows = logits.dims()[0];
    let picked = activation::log_softmax(logits, 1).gather(1, targets.reshape([rows, 1]));
    -picked.reshape([rows])
}
