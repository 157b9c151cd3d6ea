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
//!
//! a and b are those of [`removal_key`](super::removal_key) for z = k k_k.

use core::ops::Range;

use pulp::Simd;

use super::removal_key::{Normalised, Rate, assert_heads, inverse_norm};
use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::math::sigmoid;
use super::simd::vector::{for_lanes, sum_lanes};
use crate::ops::reference::DECAY_SCALE;

/// `[log_w, k2, a, b]`, each `[rows, C]`, of `[k, w_pre, a_pre, w0, a0, k_k, k_a]`.
pub fn forward(inputs: [&[f32]; 7], head_size: usize) -> [Vec<f32>; 4] {
    let inputs = Inputs::new(inputs, head_size);
    let channels = inputs.w0.len();
    run(&Forward(inputs), inputs.k.len() / channels.max(1), channels)
}

/// The gradients of the inputs.
pub fn backward(inputs: [&[f32]; 7], output_grads: [&[f32]; 4], head_size: usize) -> [Vec<f32>; 7] {
    let inputs = Inputs::new(inputs, head_size);
    let channels = inputs.w0.len();
    let lens = output_grads.map(|grad| ("gradient of an output", grad.len()));
    assert_len(inputs.k.len(), &lens);
    let kernel = Backward {
        inputs,
        output_grads,
    };
    let ([k, w_pre, a_pre], [w0, a0, k_k, k_a]) =
        run_with_sums(&kernel, inputs.k.len() / channels.max(1), channels);
    [k, w_pre, a_pre, w0, a0, k_k, k_a]
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// `[rows, C]`.
    k: &'a [f32],
    /// Decay before its bias, `[rows, C]`.
    w_pre: &'a [f32],
    /// In-context learning rate.
    rate: Rate<'a>,
    /// `[C]`.
    w0: &'a [f32],
    /// `[C]`.
    k_k: &'a [f32],
    /// `[C]`.
    k_a: &'a [f32],
    head_size: usize,
}

impl<'a> Inputs<'a> {
    fn new([k, w_pre, a_pre, w0, a0, k_k, k_a]: [&'a [f32]; 7], head_size: usize) -> Self {
        let channels = w0.len();
        assert_heads(channels, head_size);
        let lens = [("a0", a0.len()), ("k_k", k_k.len()), ("k_a", k_a.len())];
        assert_len(channels, &lens);
        let all = k.len() / channels.max(1) * channels;
        let lens = [("k", k.len()), ("w", w_pre.len()), ("a", a_pre.len())];
        assert_len(all, &lens);
        Self {
            k,
            w_pre,
            rate: Rate {
                pre: a_pre,
                bias: a0,
            },
            w0,
            k_k,
            k_a,
            head_size,
        }
    }

    /// The part of head `head` of row `at`.
    #[inline(always)]
    fn head(&self, at: usize, head: usize) -> Inputs<'a> {
        let size = self.head_size;
        let index = at * (self.w0.len() / size) + head;
        Inputs {
            k: row(self.k, index, size),
            w_pre: row(self.w_pre, index, size),
            rate: self.rate.head(index, head, size),
            w0: row(self.w0, head, size),
            k_k: row(self.k_k, head, size),
            k_a: row(self.k_a, head, size),
            head_size: size,
        }
    }
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<4> for Forward<'_> {
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
                let (a, b) = (row_mut(a, to, size), row_mut(b, to, size));

                let [square] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let kk = lane.load(x.k) * lane.load(x.k_k);
                        [kk * kk]
                    },
                );
                let inverse_norm = inverse_norm(square);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let k = lane.load(x.k);
                        let kk = k * lane.load(x.k_k);
                        let outputs = [&mut *a, &mut *b];
                        let [_, rest] = x.rate.remove(lane, kk, inverse_norm, outputs);
                        let [w, _] = sigmoid(lane.load(x.w_pre) + lane.load(x.w0));
                        lane.store(log_w, w * lane.splat(-DECAY_SCALE as f32));
                        lane.store(k2, k - k * rest * lane.load(x.k_a));
                    },
                );
            }
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grads: [&'a [f32]; 4],
}

impl Kernel<3> for Backward<'_> {
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
        let [log_w_out, k_out, a_out, b_out] = self.output_grads;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.inputs.head(at, head);
                let from = at * heads + head;
                let (log_w_out, k_out) = (row(log_w_out, from, size), row(k_out, from, size));
                let (a_out, b_out) = (row(a_out, from, size), row(b_out, from, size));
                let to = (at - rows.start) * heads + head;
                let k_grad = row_mut(k_grad, to, size);
                let w_grad = row_mut(w_grad, to, size);
                let a_grad = row_mut(a_grad, to, size);
                let w0_grad = row_mut(w0_grad, head, size);
                let a0_grad = row_mut(a0_grad, head, size);
                let k_k_grad = row_mut(k_k_grad, head, size);
                let k_a_grad = row_mut(k_a_grad, head, size);

                // Until the second loop, `a_grad` keeps the rate and `w_grad` the rest up to 1.
                let sums = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let kk = lane.load(x.k) * lane.load(x.k_k);
                        let kept = [&mut *a_grad, &mut *w_grad];
                        x.rate.backward_sums(lane, kk, [a_out, b_out], kept)
                    },
                );
                let normalised = Normalised::new(sums);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let (k, k_k, k_a) = (lane.load(x.k), lane.load(x.k_k), lane.load(x.k_a));
                        let (rate, rest) = (lane.load(a_grad), lane.load(w_grad));
                        let (k_out, b_out) = (lane.load(k_out), lane.load(b_out));

                        let kk = k * k_k;
                        let kk_grad = normalised.backward(kk, b_out * rate - lane.load(a_out));
                        lane.store(k_grad, kk_grad * k_k + k_out - k_out * rest * k_a);
                        lane.add(k_k_grad, kk_grad * k);
                        lane.store(k_a_grad, lane.load(k_a_grad) - k_out * k * rest);

                        let inverse_norm = lane.splat(normalised.inverse);
                        let rate_grad = k_out * k * k_a + b_out * kk * inverse_norm;
                        let a_pre_grad = rate_grad * (rate * rest);
                        lane.store(a_grad, a_pre_grad);
                        lane.add(a0_grad, a_pre_grad);

                        let [w, rest] = sigmoid(lane.load(x.w_pre) + lane.load(x.w0));
                        let lowest = lane.splat(-DECAY_SCALE as f32);
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
    use super::super::check::{Case, assert_case, data, slices, with_threads};
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
        let log_w = |at| -DECAY_SCALE * sigmoid(w_pre[at] + w0[at % channels]);
        let k2 = |at: usize| k[at] * (1.0 + (rate(at) - 1.0) * k_a[at % channels]);
        let all = 0..k.len();
        let mut outputs: Vec<f64> = all.clone().map(log_w).collect();
        outputs.extend(all.clone().map(k2));
        outputs.extend(all.clone().map(|at| -khat(at)));
        outputs.extend(all.map(|at| khat(at) * rate(at)));
        outputs
    }

    type Arrays<const N: usize> = [Vec<f32>; N];

    fn compute(x: &Arrays<7>, grads: &Arrays<4>, head_size: usize) -> (Arrays<4>, Arrays<7>) {
        let gradients = backward(slices(x), slices(grads), head_size);
        (forward(slices(x), head_size), gradients)
    }

    fn case_data(rows: usize, channels: usize) -> (Arrays<7>, Arrays<4>) {
        let all = rows * channels;
        let lens = [all, all, all, channels, channels, channels, channels];
        let x = core::array::from_fn(|i| data(lens[i], 1 + i as u32));
        (x, core::array::from_fn(|i| data(all, 20 + i as u32)))
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
