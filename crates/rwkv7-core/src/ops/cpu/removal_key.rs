//! From a key of any length to the removal vectors of a recurrence that writes along it.
//!
//! ```text
//! rate = sigmoid(rate_pre + bias)                  in-context learning rate
//! zhat = z / max(|z|, 1e-12)                       over the N channels of each head
//! a    = -zhat
//! b    = zhat rate
//! ```

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::math::sigmoid;
use super::simd::vector::{Lane, Vector, for_lanes, sum_lanes};
use crate::ops::reference::MIN_KEY_NORM;

/// Below this norm of a head's key, the divisor is constant.
const SMALLEST_NORM: f32 = MIN_KEY_NORM as f32;

/// `[a, b]` of z and the rate before its bias, all `[rows, C]`, and the bias, `[C]`.
pub fn forward(inputs: [&[f32]; 3], head_size: usize) -> [Vec<f32>; 2] {
    let inputs = Inputs::new(inputs, head_size);
    let channels = inputs.rate.bias.len();
    run(&Forward(inputs), inputs.z.len() / channels.max(1), channels)
}

/// The gradients of z, rate and bias.
pub fn backward(inputs: [&[f32]; 3], output_grads: [&[f32]; 2], head_size: usize) -> [Vec<f32>; 3] {
    let inputs = Inputs::new(inputs, head_size);
    let channels = inputs.rate.bias.len();
    let lens = output_grads.map(|grad| ("gradient of an output", grad.len()));
    assert_len(inputs.z.len(), &lens);
    let kernel = Backward {
        inputs,
        output_grads,
    };
    let ([z, rate], [bias]) = run_with_sums(&kernel, inputs.z.len() / channels.max(1), channels);
    [z, rate, bias]
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// `[rows, C]`.
    z: &'a [f32],
    rate: Rate<'a>,
    head_size: usize,
}

impl<'a> Inputs<'a> {
    fn new([z, pre, bias]: [&'a [f32]; 3], head_size: usize) -> Self {
        assert_heads(bias.len(), head_size);
        let all = z.len() / bias.len().max(1) * bias.len();
        assert_len(all, &[("z", z.len()), ("rate", pre.len())]);
        Self {
            z,
            rate: Rate { pre, bias },
            head_size,
        }
    }

    /// The part of head `head` of row `at`.
    #[inline(always)]
    fn head(&self, at: usize, head: usize) -> Inputs<'a> {
        let size = self.head_size;
        let index = at * (self.rate.bias.len() / size) + head;
        Inputs {
            z: row(self.z, index, size),
            rate: self.rate.head(index, head, size),
            head_size: size,
        }
    }
}

/// Panics unless the channels are whole heads.
pub(super) fn assert_heads(channels: usize, head_size: usize) {
    assert!(
        head_size > 0 && channels.is_multiple_of(head_size),
        "{channels} channels must be whole heads of {head_size}"
    );
}

/// The in-context learning rate before its sigmoid.
#[derive(Clone, Copy)]
pub(super) struct Rate<'a> {
    /// Before its bias, `[rows, C]`.
    pub(super) pre: &'a [f32],
    /// `[C]`.
    pub(super) bias: &'a [f32],
}

impl<'a> Rate<'a> {
    /// The part of head `head`, which is number `index` of all rows' heads.
    #[inline(always)]
    pub(super) fn head(&self, index: usize, head: usize, size: usize) -> Self {
        Self {
            pre: row(self.pre, index, size),
            bias: row(self.bias, head, size),
        }
    }

    /// The rate and 1 less the rate.
    #[inline(always)]
    fn load<S: Simd>(&self, lane: Lane<S>) -> [Vector<S>; 2] {
        sigmoid(lane.load(self.pre) + lane.load(self.bias))
    }

    /// Stores a and b of one vector of a head; returns the rate and 1 less the rate.
    #[inline(always)]
    pub(super) fn remove<S: Simd>(
        &self,
        lane: Lane<S>,
        z: Vector<S>,
        inverse_norm: f32,
        [a, b]: [&mut [f32]; 2],
    ) -> [Vector<S>; 2] {
        let [rate, rest] = self.load(lane);
        let zhat = z * lane.splat(inverse_norm);
        lane.store(a, -zhat);
        lane.store(b, zhat * rate);
        [rate, rest]
    }

    /// Stores the rate and 1 less the rate; returns the terms of |z|² and of z · dzhat.
    #[inline(always)]
    pub(super) fn backward_sums<S: Simd>(
        &self,
        lane: Lane<S>,
        z: Vector<S>,
        [a_out, b_out]: [&[f32]; 2],
        [rates, rests]: [&mut [f32]; 2],
    ) -> [Vector<S>; 2] {
        let [rate, rest] = self.load(lane);
        lane.store(rates, rate);
        lane.store(rests, rest);
        let zhat_grad = lane.load(b_out) * rate - lane.load(a_out);
        [z * z, z * zhat_grad]
    }
}

/// The divisor of a head.
pub(super) fn inverse_norm(square: f32) -> f32 {
    1.0 / square.sqrt().max(SMALLEST_NORM)
}

/// How the gradient of zhat becomes that of z: `dz = (dzhat - z along) inverse`.
#[derive(Clone, Copy)]
pub(super) struct Normalised {
    pub(super) inverse: f32,
    /// 0 where the divisor is constant.
    along: f32,
}

impl Normalised {
    /// From |z|² and z · dzhat.
    pub(super) fn new([square, dot]: [f32; 2]) -> Self {
        let inverse = inverse_norm(square);
        let along = if square.sqrt() < SMALLEST_NORM {
            0.0
        } else {
            dot * inverse * inverse
        };
        Self { inverse, along }
    }

    #[inline(always)]
    pub(super) fn backward<S: Simd>(self, z: Vector<S>, zhat_grad: Vector<S>) -> Vector<S> {
        (zhat_grad - z * z.like(self.along)) * z.like(self.inverse)
    }
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<2> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [a, b]: [&mut [f32]; 2],
        _sums: &mut [f32],
    ) {
        let size = self.0.head_size;
        let heads = self.0.rate.bias.len() / size;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.0.head(at, head);
                let to = (at - rows.start) * heads + head;
                let (a, b) = (row_mut(a, to, size), row_mut(b, to, size));
                let [square] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let z = lane.load(x.z);
                        [z * z]
                    },
                );
                let inverse_norm = inverse_norm(square);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        x.rate
                            .remove(lane, lane.load(x.z), inverse_norm, [&mut *a, &mut *b]);
                    },
                );
            }
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grads: [&'a [f32]; 2],
}

impl Kernel<2> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [z_grad, rate_grad]: [&mut [f32]; 2],
        bias_grad: &mut [f32],
    ) {
        let size = self.inputs.head_size;
        let heads = self.inputs.rate.bias.len() / size;
        let [a_out, b_out] = self.output_grads;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.inputs.head(at, head);
                let from = at * heads + head;
                let (a_out, b_out) = (row(a_out, from, size), row(b_out, from, size));
                let to = (at - rows.start) * heads + head;
                let z_grad = row_mut(z_grad, to, size);
                let rate_grad = row_mut(rate_grad, to, size);
                let bias_grad = row_mut(bias_grad, head, size);

                // Until the second loop, `rate_grad` keeps the rate and `z_grad` the rest up to 1.
                let sums = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let kept = [&mut *rate_grad, &mut *z_grad];
                        let z = lane.load(x.z);
                        x.rate.backward_sums(lane, z, [a_out, b_out], kept)
                    },
                );
                let normalised = Normalised::new(sums);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let (z, b_out) = (lane.load(x.z), lane.load(b_out));
                        let (rate, rest) = (lane.load(rate_grad), lane.load(z_grad));
                        let zhat_grad = b_out * rate - lane.load(a_out);
                        lane.store(z_grad, normalised.backward(z, zhat_grad));
                        let grad = b_out * z * lane.splat(normalised.inverse) * (rate * rest);
                        lane.store(rate_grad, grad);
                        lane.add(bias_grad, grad);
                    },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data, slices, with_threads};
    use super::*;

    fn naive(x: &[Vec<f64>], head_size: usize) -> Vec<f64> {
        let [z, rate_pre, bias] = x else { panic!() };
        let norms: Vec<f64> = z
            .chunks(head_size)
            .map(|z| z.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12))
            .collect();
        let zhat = |at: usize| z[at] / norms[at / head_size];
        let rate = |at: usize| 1.0 / (1.0 + (-rate_pre[at] - bias[at % bias.len()]).exp());
        let all = 0..z.len();
        let mut outputs: Vec<f64> = all.clone().map(|at| -zhat(at)).collect();
        outputs.extend(all.map(|at| zhat(at) * rate(at)));
        outputs
    }

    type Arrays<const N: usize> = [Vec<f32>; N];

    fn compute(x: &Arrays<3>, grads: &Arrays<2>, head_size: usize) -> (Arrays<2>, Arrays<3>) {
        let gradients = backward(slices(x), slices(grads), head_size);
        (forward(slices(x), head_size), gradients)
    }

    fn case_data(rows: usize, channels: usize) -> (Arrays<3>, Arrays<2>) {
        let all = rows * channels;
        let x = [data(all, 1), data(all, 2), data(channels, 3)];
        (x, [data(all, 20), data(all, 21)])
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for rows in [1, 2, 33, 500] {
            for (channels, head_size) in [(21, 7), (48, 16), (512, 64)] {
                let (x, grads) = case_data(rows, channels);
                let (outputs, gradients) = compute(&x, &grads, head_size);
                assert_case(Case {
                    name: &format!("removal key {rows} {channels}"),
                    naive: &|x| naive(x, head_size),
                    inputs: &x,
                    outputs: &outputs,
                    output_grads: &grads,
                    gradients: &gradients,
                    step: 1e-5,
                });
            }
        }
    }

    /// As a ReLU makes them.
    #[test]
    fn keys_of_zeros_give_finite_numbers() {
        let (mut x, grads) = case_data(2, 14);
        x[0][..7].fill(0.0);
        let (outputs, gradients) = compute(&x, &grads, 7);
        let all = outputs.concat().into_iter().chain(gradients.concat());
        assert!(all.into_iter().all(f32::is_finite));
        assert!(outputs.iter().all(|y| y[..7].iter().all(|y| *y == 0.0)));
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (x, grads) = case_data(500, 512);
        let one = with_threads(1, || compute(&x, &grads, 64));
        assert!(one == with_threads(3, || compute(&x, &grads, 64)));
    }
}
