//! From the key and two low-rank outputs to the decay, the key and the removal vectors of the recurrence.
//!
//! ```text
//! log_w = -exp(-1/2) sigmoid(w_pre + w0)
//! rate  = sigmoid(a_pre + a0)                      in-context learning rate
//! khat  = k k_k / max(|k k_k|, 1e-12)              over the N channels of each head
//! k2    = k (1 + (rate - 1) k_a)
//! a     = -khat
//! b     = khat rate
//! ```

use core::ops::Range;

use pulp::Simd;

use super::blocks::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use crate::simd::lanes::{for_lanes, sum_lanes};
use crate::simd::math::sigmoid;

/// `-exp(-1/2)`, the lowest logarithm of the decay.
const LOWEST_LOG_DECAY: f32 = -0.606_530_67;
/// Below this norm of a head's removal key, the divisor is constant.
pub(super) const SMALLEST_NORM: f32 = 1e-12;

/// Inputs of the key preparation.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[rows, C]`.
    pub k: &'a [f32],
    /// Decay before its bias, `[rows, C]`.
    pub w_pre: &'a [f32],
    /// In-context learning rate before its bias, `[rows, C]`.
    pub a_pre: &'a [f32],
    /// `[C]`.
    pub w0: &'a [f32],
    /// `[C]`.
    pub a0: &'a [f32],
    /// `[C]`.
    pub k_k: &'a [f32],
    /// `[C]`.
    pub k_a: &'a [f32],
    /// Channels of one head, `N`.
    pub head_size: usize,
}

/// What the forward pass writes, each `[rows, C]`.
pub struct Outputs<'a> {
    pub log_w: &'a mut [f32],
    pub k: &'a mut [f32],
    pub a: &'a mut [f32],
    pub b: &'a mut [f32],
}

/// Gradients of the outputs, each `[rows, C]`.
#[derive(Clone, Copy)]
pub struct OutputGrads<'a> {
    pub log_w: &'a [f32],
    pub k: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
}

/// Gradients that the backward pass writes, in the shapes of the inputs.
pub struct Gradients<'a> {
    pub k: &'a mut [f32],
    pub w_pre: &'a mut [f32],
    pub a_pre: &'a mut [f32],
    pub w0: &'a mut [f32],
    pub a0: &'a mut [f32],
    pub k_k: &'a mut [f32],
    pub k_a: &'a mut [f32],
}

impl<'a> Inputs<'a> {
    /// Checks the lengths; returns the number of rows.
    fn rows(&self) -> usize {
        let channels = self.w0.len();
        assert!(
            self.head_size > 0 && channels.is_multiple_of(self.head_size),
            "{channels} channels must be whole heads of {}",
            self.head_size
        );
        assert_len(
            channels,
            &[
                ("a0", self.a0.len()),
                ("k_k", self.k_k.len()),
                ("k_a", self.k_a.len()),
            ],
        );
        let rows = self.k.len() / channels.max(1);
        assert_len(
            rows * channels,
            &[
                ("k", self.k.len()),
                ("w_pre", self.w_pre.len()),
                ("a_pre", self.a_pre.len()),
            ],
        );
        rows
    }

    /// The part of head `head` of row `at`; `w0`, `a0`, `k_k` and `k_a` of the head come with it.
    #[inline(always)]
    fn head(&self, at: usize, head: usize) -> Inputs<'a> {
        let size = self.head_size;
        let at = at * (self.w0.len() / size) + head;
        Inputs {
            k: row(self.k, at, size),
            w_pre: row(self.w_pre, at, size),
            a_pre: row(self.a_pre, at, size),
            w0: row(self.w0, head, size),
            a0: row(self.a0, head, size),
            k_k: row(self.k_k, head, size),
            k_a: row(self.k_a, head, size),
            head_size: size,
        }
    }
}

/// Writes the outputs.
pub fn forward(inputs: Inputs<'_>, outputs: Outputs<'_>) {
    let rows = inputs.rows();
    assert_len(
        inputs.k.len(),
        &[
            ("output log_w", outputs.log_w.len()),
            ("output k", outputs.k.len()),
            ("output a", outputs.a.len()),
            ("output b", outputs.b.len()),
        ],
    );
    let outputs = [outputs.log_w, outputs.k, outputs.a, outputs.b];
    run(&Forward(inputs), rows, inputs.w0.len(), outputs);
}

/// Writes the gradients of the inputs, from those of the outputs.
pub fn backward(inputs: Inputs<'_>, output_grads: OutputGrads<'_>, gradients: Gradients<'_>) {
    let rows = inputs.rows();
    assert_len(
        inputs.k.len(),
        &[
            ("gradient of output log_w", output_grads.log_w.len()),
            ("gradient of output k", output_grads.k.len()),
            ("gradient of output a", output_grads.a.len()),
            ("gradient of output b", output_grads.b.len()),
            ("gradient of k", gradients.k.len()),
            ("gradient of w_pre", gradients.w_pre.len()),
            ("gradient of a_pre", gradients.a_pre.len()),
        ],
    );
    assert_len(
        inputs.w0.len(),
        &[
            ("gradient of w0", gradients.w0.len()),
            ("gradient of a0", gradients.a0.len()),
            ("gradient of k_k", gradients.k_k.len()),
            ("gradient of k_a", gradients.k_a.len()),
        ],
    );
    run_with_sums(
        &Backward {
            inputs,
            output_grads,
        },
        rows,
        inputs.w0.len(),
        [gradients.k, gradients.w_pre, gradients.a_pre],
        &mut [gradients.w0, gradients.a0, gradients.k_k, gradients.k_a],
    );
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<[&mut [f32]; 4]> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [log_w, k2, a, b]: [&mut [f32]; 4],
        _sums: &mut [f32],
    ) {
        let size = self.0.head_size;
        let heads = self.0.w0.len() / size;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.0.head(at, head);
                let to = (at - rows.start) * heads + head;
                let log_w = row_mut(log_w, to, size);
                let k2 = row_mut(k2, to, size);
                let a = row_mut(a, to, size);
                let b = row_mut(b, to, size);

                let [square] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let kk = lane.load(x.k) * lane.load(x.k_k);
                        [kk * kk]
                    },
                );
                let inverse_norm = 1.0 / square.sqrt().max(SMALLEST_NORM);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let k = lane.load(x.k);
                        let [w, _] = sigmoid(lane.load(x.w_pre) + lane.load(x.w0));
                        let [rate, rest] = sigmoid(lane.load(x.a_pre) + lane.load(x.a0));
                        let khat = k * lane.load(x.k_k) * lane.splat(inverse_norm);
                        lane.store(log_w, w * lane.splat(LOWEST_LOG_DECAY));
                        lane.store(k2, k - k * rest * lane.load(x.k_a));
                        lane.store(a, -khat);
                        lane.store(b, khat * rate);
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

impl Kernel<[&mut [f32]; 3]> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [k_grad, w_grad, a_grad]: [&mut [f32]; 3],
        sums: &mut [f32],
    ) {
        let size = self.inputs.head_size;
        let channels = self.inputs.w0.len();
        let heads = channels / size;
        let (w0_grad, sums) = sums.split_at_mut(channels);
        let (a0_grad, sums) = sums.split_at_mut(channels);
        let (k_k_grad, k_a_grad) = sums.split_at_mut(channels);
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.inputs.head(at, head);
                let from = at * heads + head;
                let log_w_out = row(self.output_grads.log_w, from, size);
                let k_out = row(self.output_grads.k, from, size);
                let a_out = row(self.output_grads.a, from, size);
                let b_out = row(self.output_grads.b, from, size);
                let to = (at - rows.start) * heads + head;
                let k_grad = row_mut(k_grad, to, size);
                let w_grad = row_mut(w_grad, to, size);
                let a_grad = row_mut(a_grad, to, size);
                let w0_grad = row_mut(w0_grad, head, size);
                let a0_grad = row_mut(a0_grad, head, size);
                let k_k_grad = row_mut(k_k_grad, head, size);
                let k_a_grad = row_mut(k_a_grad, head, size);

                // Until the second loop, `a_grad` keeps the rate and `w_grad` the rest up to 1.
                let [square, dot] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let kk = lane.load(x.k) * lane.load(x.k_k);
                        let [rate, rest] = sigmoid(lane.load(x.a_pre) + lane.load(x.a0));
                        lane.store(a_grad, rate);
                        lane.store(w_grad, rest);
                        let khat_grad = lane.load(b_out) * rate - lane.load(a_out);
                        [kk * kk, kk * khat_grad]
                    },
                );
                let norm = square.sqrt();
                let inverse_norm = 1.0 / norm.max(SMALLEST_NORM);
                // kk_grad = (khat_grad - khat (khat . khat_grad)) / norm; the divisor may be constant.
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
                        let (k, k_k, k_a) = (lane.load(x.k), lane.load(x.k_k), lane.load(x.k_a));
                        let (rate, rest) = (lane.load(a_grad), lane.load(w_grad));
                        let (k_out, b_out) = (lane.load(k_out), lane.load(b_out));
                        let inverse_norm = lane.splat(inverse_norm);

                        let kk = k * k_k;
                        let khat_grad = b_out * rate - lane.load(a_out);
                        let kk_grad = (khat_grad - kk * lane.splat(along)) * inverse_norm;
                        lane.store(k_grad, kk_grad * k_k + k_out - k_out * rest * k_a);
                        lane.add(k_k_grad, kk_grad * k);
                        lane.store(k_a_grad, lane.load(k_a_grad) - k_out * k * rest);

                        let rate_grad = k_out * k * k_a + b_out * kk * inverse_norm;
                        let a_pre_grad = rate_grad * (rate * rest);
                        lane.store(a_grad, a_pre_grad);
                        lane.add(a0_grad, a_pre_grad);

                        let [w, rest] = sigmoid(lane.load(x.w_pre) + lane.load(x.w0));
                        let lowest = lane.splat(LOWEST_LOG_DECAY);
                        let w_pre_grad = lane.load(log_w_out) * lowest * (w * rest);
                        lane.store(w_grad, w_pre_grad);
                        lane.add(w0_grad, w_pre_grad);
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
        let [k, w_pre, a_pre, w0, a0, k_k, k_a] = x else {
            panic!()
        };
        let channels = w0.len();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let kk: Vec<f64> = (0..k.len()).map(|at| k[at] * k_k[at % channels]).collect();
        let norms: Vec<f64> = kk
            .chunks(head_size)
            .map(|kk| kk.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12))
            .collect();
        let khat = |at: usize| kk[at] / norms[at / head_size];
        let rate = |at: usize| sigmoid(a_pre[at] + a0[at % channels]);
        let log_w = |at| -0.6065306597126334 * sigmoid(w_pre[at] + w0[at % channels]);
        let k2 = |at: usize| k[at] * (1.0 + (rate(at) - 1.0) * k_a[at % channels]);
        let all = 0..k.len();
        let mut outputs: Vec<f64> = all.clone().map(log_w).collect();
        outputs.extend(all.clone().map(k2));
        outputs.extend(all.clone().map(|at| -khat(at)));
        outputs.extend(all.map(|at| khat(at) * rate(at)));
        outputs
    }

    fn compute(
        x: &[Vec<f32>],
        grads: &[Vec<f32>],
        head_size: usize,
    ) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let inputs = Inputs {
            k: &x[0],
            w_pre: &x[1],
            a_pre: &x[2],
            w0: &x[3],
            a0: &x[4],
            k_k: &x[5],
            k_a: &x[6],
            head_size,
        };
        let mut outputs = vec![vec![f32::NAN; x[0].len()]; 4];
        let [log_w, k, a, b] = &mut outputs[..] else {
            panic!()
        };
        forward(inputs, Outputs { log_w, k, a, b });
        let mut gradients: Vec<Vec<f32>> = x.iter().map(|x| vec![f32::NAN; x.len()]).collect();
        let [k, w_pre, a_pre, w0, a0, k_k, k_a] = &mut gradients[..] else {
            panic!()
        };
        let targets = Gradients {
            k,
            w_pre,
            a_pre,
            w0,
            a0,
            k_k,
            k_a,
        };
        let grads = OutputGrads {
            log_w: &grads[0],
            k: &grads[1],
            a: &grads[2],
            b: &grads[3],
        };
        backward(inputs, grads, targets);
        (outputs, gradients)
    }

    fn case_data(rows: usize, channels: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let all = rows * channels;
        let lens = [all, all, all, channels, channels, channels, channels];
        let x = lens.iter().zip(1..).map(|(len, seed)| data(*len, seed));
        (x.collect(), (0..4).map(|i| data(all, 20 + i)).collect())
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for rows in [1, 2, 33, 500] {
            for (channels, head_size) in [(21, 7), (48, 16), (512, 64)] {
                let (x, grads) = case_data(rows, channels);
                let (outputs, gradients) = compute(&x, &grads, head_size);
                assert_case(Case {
                    name: &format!("key preparation {rows} {channels}"),
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

    #[test]
    fn divisor_of_a_vanishing_key_is_constant() {
        let (mut x, grads) = case_data(1, 7);
        x[0].iter_mut().for_each(|k| *k *= 1e-14);
        let (outputs, gradients) = compute(&x, &grads, 7);
        assert_case(Case {
            name: "vanishing key",
            naive: &|x| naive(x, 7),
            inputs: &x,
            outputs: &outputs,
            output_grads: &grads,
            gradients: &gradients[..1],
            step: 1e-14,
        });
    }

    #[test]
    fn key_of_zeros_gives_finite_gradients() {
        let (mut x, grads) = case_data(2, 48);
        x[0].fill(0.0);
        let (outputs, gradients) = compute(&x, &grads, 16);
        assert!(outputs.concat().iter().all(|x| x.is_finite()));
        assert!(gradients.concat().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (x, grads) = case_data(500, 512);
        let one = with_threads(1, || compute(&x, &grads, 64));
        assert!(one == with_threads(3, || compute(&x, &grads, 64)));
    }
}
