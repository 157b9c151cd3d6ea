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

use super::blocks::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::key_preparation::SMALLEST_NORM;
use crate::simd::lanes::{for_lanes, sum_lanes};
use crate::simd::math::sigmoid;

/// Inputs of the removal key.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[rows, C]`.
    pub z: &'a [f32],
    /// In-context learning rate before its bias, `[rows, C]`.
    pub rate_pre: &'a [f32],
    /// `[C]`.
    pub bias: &'a [f32],
    /// Channels of one head, `N`.
    pub head_size: usize,
}

/// What the forward pass writes, each `[rows, C]`.
pub struct Outputs<'a> {
    pub a: &'a mut [f32],
    pub b: &'a mut [f32],
}

/// Gradients of the outputs, each `[rows, C]`.
#[derive(Clone, Copy)]
pub struct OutputGrads<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
}

/// Gradients that the backward pass writes, in the shapes of the inputs.
pub struct Gradients<'a> {
    pub z: &'a mut [f32],
    pub rate_pre: &'a mut [f32],
    pub bias: &'a mut [f32],
}

impl<'a> Inputs<'a> {
    /// Checks the lengths; returns the number of rows.
    fn rows(&self) -> usize {
        let channels = self.bias.len();
        assert!(
            self.head_size > 0 && channels.is_multiple_of(self.head_size),
            "{channels} channels must be whole heads of {}",
            self.head_size
        );
        let rows = self.z.len() / channels.max(1);
        assert_len(
            rows * channels,
            &[("z", self.z.len()), ("rate_pre", self.rate_pre.len())],
        );
        rows
    }

    /// The part of head `head` of row `at`, with the head's bias.
    #[inline(always)]
    fn head(&self, at: usize, head: usize) -> Inputs<'a> {
        let size = self.head_size;
        let at = at * (self.bias.len() / size) + head;
        Inputs {
            z: row(self.z, at, size),
            rate_pre: row(self.rate_pre, at, size),
            bias: row(self.bias, head, size),
            head_size: size,
        }
    }
}

/// Writes the outputs.
pub fn forward(inputs: Inputs<'_>, outputs: Outputs<'_>) {
    let rows = inputs.rows();
    assert_len(
        inputs.z.len(),
        &[("output a", outputs.a.len()), ("output b", outputs.b.len())],
    );
    let outputs = [outputs.a, outputs.b];
    run(&Forward(inputs), rows, inputs.bias.len(), outputs);
}

/// Writes the gradients of the inputs, from those of the outputs.
pub fn backward(inputs: Inputs<'_>, output_grads: OutputGrads<'_>, gradients: Gradients<'_>) {
    let rows = inputs.rows();
    assert_len(
        inputs.z.len(),
        &[
            ("gradient of output a", output_grads.a.len()),
            ("gradient of output b", output_grads.b.len()),
            ("gradient of z", gradients.z.len()),
            ("gradient of rate_pre", gradients.rate_pre.len()),
        ],
    );
    assert_len(
        inputs.bias.len(),
        &[("gradient of bias", gradients.bias.len())],
    );
    run_with_sums(
        &Backward {
            inputs,
            output_grads,
        },
        rows,
        inputs.bias.len(),
        [gradients.z, gradients.rate_pre],
        &mut [gradients.bias],
    );
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<[&mut [f32]; 2]> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [a, b]: [&mut [f32]; 2],
        _sums: &mut [f32],
    ) {
        let size = self.0.head_size;
        let heads = self.0.bias.len() / size;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.0.head(at, head);
                let to = (at - rows.start) * heads + head;
                let a = row_mut(a, to, size);
                let b = row_mut(b, to, size);

                let [square] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let z = lane.load(x.z);
                        [z * z]
                    },
                );
                let inverse_norm = 1.0 / square.sqrt().max(SMALLEST_NORM);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let [rate, _] = sigmoid(lane.load(x.rate_pre) + lane.load(x.bias));
                        let zhat = lane.load(x.z) * lane.splat(inverse_norm);
                        lane.store(a, -zhat);
                        lane.store(b, zhat * rate);
                    },
                );
            }
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grads: OutputGrads<'a>,
}

impl Kernel<[&mut [f32]; 2]> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [z_grad, rate_grad]: [&mut [f32]; 2],
        bias_grad: &mut [f32],
    ) {
        let size = self.inputs.head_size;
        let heads = self.inputs.bias.len() / size;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.inputs.head(at, head);
                let from = at * heads + head;
                let a_out = row(self.output_grads.a, from, size);
                let b_out = row(self.output_grads.b, from, size);
                let to = (at - rows.start) * heads + head;
                let z_grad = row_mut(z_grad, to, size);
                let rate_grad = row_mut(rate_grad, to, size);
                let bias_grad = row_mut(bias_grad, head, size);

                // Until the second loop, `z_grad` keeps the gradient of zhat and `rate_grad` the slope of the rate.
                let [square, dot] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let z = lane.load(x.z);
                        let [rate, rest] = sigmoid(lane.load(x.rate_pre) + lane.load(x.bias));
                        let zhat_grad = lane.load(b_out) * rate - lane.load(a_out);
                        lane.store(z_grad, zhat_grad);
                        lane.store(rate_grad, rate * rest);
                        [z * z, z * zhat_grad]
                    },
                );
                let norm = square.sqrt();
                let inverse_norm = 1.0 / norm.max(SMALLEST_NORM);
                // z_grad = (zhat_grad - zhat (zhat . zhat_grad)) / norm; the divisor may be constant.
                let along = if norm < SMALLEST_NORM {
                    0.0
                } else {
                    dot * inverse_norm * inverse_norm
                };
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let z = lane.load(x.z);
                        let inverse_norm = lane.splat(inverse_norm);
                        let zhat_grad = lane.load(z_grad);
                        lane.store(z_grad, (zhat_grad - z * lane.splat(along)) * inverse_norm);
                        let slope = lane.load(rate_grad);
                        let grad = lane.load(b_out) * z * inverse_norm * slope;
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
    use super::super::check::{Case, assert_case, data, with_threads};
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

    fn compute(
        x: &[Vec<f32>],
        grads: &[Vec<f32>],
        head_size: usize,
    ) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let inputs = Inputs {
            z: &x[0],
            rate_pre: &x[1],
            bias: &x[2],
            head_size,
        };
        let mut outputs = vec![vec![f32::NAN; x[0].len()]; 2];
        let [a, b] = &mut outputs[..] else { panic!() };
        forward(inputs, Outputs { a, b });
        let mut gradients: Vec<Vec<f32>> = x.iter().map(|x| vec![f32::NAN; x.len()]).collect();
        let [z, rate_pre, bias] = &mut gradients[..] else {
            panic!()
        };
        let targets = Gradients { z, rate_pre, bias };
        let grads = OutputGrads {
            a: &grads[0],
            b: &grads[1],
        };
        backward(inputs, grads, targets);
        (outputs, gradients)
    }

    fn case_data(rows: usize, channels: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let all = rows * channels;
        let x = vec![data(all, 1), data(all, 2), data(channels, 3)];
        (x, (0..2).map(|i| data(all, 20 + i)).collect())
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
