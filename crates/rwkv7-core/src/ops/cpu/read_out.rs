//! Read-out of the recurrence: group norm of each head, the bonus of the current token, the gate.
//!
//! ```text
//! yhat  = (y - mean(y)) / sqrt(var(y) + eps)        over the N channels of each head, biased variance
//! bonus = sum over the head of r k r_k
//! out   = (yhat gamma + beta + bonus v) gate
//! ```

use core::ops::Range;

use pulp::Simd;

use super::removal_key::assert_heads;
use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::vector::{for_lanes, sum_lanes};

/// The output, `[rows, C]`, of `[y, r, k, v, gate, r_k, gamma, beta]`; `eps` is added to the variance.
pub fn forward(inputs: [&[f32]; 8], head_size: usize, eps: f32) -> Vec<f32> {
    let inputs = Inputs::new(inputs, head_size, eps);
    let channels = inputs.gamma.len();
    let [output] = run(&Forward(inputs), inputs.y.len() / channels.max(1), channels);
    output
}

/// The gradients of the inputs.
pub fn backward(
    inputs: [&[f32]; 8],
    output_grad: &[f32],
    head_size: usize,
    eps: f32,
) -> [Vec<f32>; 8] {
    let inputs = Inputs::new(inputs, head_size, eps);
    let channels = inputs.gamma.len();
    assert_len(
        inputs.y.len(),
        &[("gradient of the output", output_grad.len())],
    );
    let kernel = Backward {
        inputs,
        output_grad,
    };
    let ([y, r, k, v, gate], [r_k, gamma, beta]) =
        run_with_sums(&kernel, inputs.y.len() / channels.max(1), channels);
    [y, r, k, v, gate, r_k, gamma, beta]
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// Output of the recurrence, `[rows, C]`.
    y: &'a [f32],
    /// Receptance, `[rows, C]`.
    r: &'a [f32],
    /// Key, `[rows, C]`.
    k: &'a [f32],
    /// Value, `[rows, C]`.
    v: &'a [f32],
    /// `[rows, C]`.
    gate: &'a [f32],
    /// Weight of the bonus, `[C]`.
    r_k: &'a [f32],
    /// Scale of the norm, `[C]`.
    gamma: &'a [f32],
    /// Bias of the norm, `[C]`.
    beta: &'a [f32],
    head_size: usize,
    eps: f32,
}

impl<'a> Inputs<'a> {
    fn new(
        [y, r, k, v, gate, r_k, gamma, beta]: [&'a [f32]; 8],
        head_size: usize,
        eps: f32,
    ) -> Self {
        let channels = gamma.len();
        assert_heads(channels, head_size);
        assert_len(channels, &[("r_k", r_k.len()), ("beta", beta.len())]);
        let all = y.len() / channels.max(1) * channels;
        let lens = [("y", y.len()), ("r", r.len()), ("k", k.len())];
        assert_len(all, &lens);
        assert_len(all, &[("v", v.len()), ("gate", gate.len())]);
        Self {
            y,
            r,
            k,
            v,
            gate,
            r_k,
            gamma,
            beta,
            head_size,
            eps,
        }
    }

    /// The part of head `head` of row `at`; `r_k`, `gamma` and `beta` of the head come with it.
    #[inline(always)]
    fn head(&self, at: usize, head: usize) -> Inputs<'a> {
        let size = self.head_size;
        let at = at * (self.gamma.len() / size) + head;
        Inputs {
            y: row(self.y, at, size),
            r: row(self.r, at, size),
            k: row(self.k, at, size),
            v: row(self.v, at, size),
            gate: row(self.gate, at, size),
            r_k: row(self.r_k, head, size),
            gamma: row(self.gamma, head, size),
            beta: row(self.beta, head, size),
            eps: self.eps,
            head_size: size,
        }
    }

    /// Of one head: the mean of `y` and the bonus.
    #[inline(always)]
    fn mean_and_bonus<S: Simd>(&self, simd: S) -> [f32; 2] {
        let [sum, bonus] = sum_lanes(
            simd,
            self.head_size,
            #[inline(always)]
            |lane| {
                let rk = lane.load(self.r) * lane.load(self.k);
                [lane.load(self.y), rk * lane.load(self.r_k)]
            },
        );
        [sum / self.head_size as f32, bonus]
    }
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [output]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let size = self.0.head_size;
        let heads = self.0.gamma.len() / size;
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.0.head(at, head);
                let output = row_mut(output, (at - rows.start) * heads + head, size);
                let [mean, bonus] = x.mean_and_bonus(simd);
                let [square] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let centred = lane.load(x.y) - lane.splat(mean);
                        [lane.or_past_end(centred * centred, 0.0)]
                    },
                );
                let inverse = 1.0 / (square / size as f32 + x.eps).sqrt();
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let yhat = (lane.load(x.y) - lane.splat(mean)) * lane.splat(inverse);
                        let normed = yhat.mul_add(lane.load(x.gamma), lane.load(x.beta));
                        let sum = lane.load(x.v).mul_add(lane.splat(bonus), normed);
                        lane.store(output, sum * lane.load(x.gate));
                    },
                );
            }
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grad: &'a [f32],
}

impl Kernel<5> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [y_grad, r_grad, k_grad, v_grad, gate_grad]: [&mut [f32]; 5],
        sums: &mut [f32],
    ) {
        let size = self.inputs.head_size;
        let channels = self.inputs.gamma.len();
        let heads = channels / size;
        let (r_k_grad, sums) = sums.split_at_mut(channels);
        let (gamma_grad, beta_grad) = sums.split_at_mut(channels);
        for at in rows.clone() {
            for head in 0..heads {
                let x = self.inputs.head(at, head);
                let grad = row(self.output_grad, at * heads + head, size);
                let to = (at - rows.start) * heads + head;
                let y_grad = row_mut(y_grad, to, size);
                let r_grad = row_mut(r_grad, to, size);
                let k_grad = row_mut(k_grad, to, size);
                let v_grad = row_mut(v_grad, to, size);
                let gate_grad = row_mut(gate_grad, to, size);
                let r_k_grad = row_mut(r_k_grad, head, size);
                let gamma_grad = row_mut(gamma_grad, head, size);
                let beta_grad = row_mut(beta_grad, head, size);

                let [mean, bonus] = x.mean_and_bonus(simd);
                let [square, bonus_grad, sum, dot] = sum_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let centred = lane.load(x.y) - lane.splat(mean);
                        let inner = lane.load(grad) * lane.load(x.gate);
                        let yhat_grad = inner * lane.load(x.gamma);
                        [
                            lane.or_past_end(centred * centred, 0.0),
                            inner * lane.load(x.v),
                            yhat_grad,
                            yhat_grad * centred,
                        ]
                    },
                );
                let count = size as f32;
                let inverse = 1.0 / (square / count + x.eps).sqrt();
                let (mean_grad, along) = (sum / count, dot * inverse / count);
                for_lanes(
                    simd,
                    size,
                    #[inline(always)]
                    |lane| {
                        let grad = lane.load(grad);
                        let inverse = lane.splat(inverse);
                        let bonus_grad = lane.splat(bonus_grad);
                        let (r, k, v) = (lane.load(x.r), lane.load(x.k), lane.load(x.v));
                        let (r_k, gamma) = (lane.load(x.r_k), lane.load(x.gamma));

                        let yhat = (lane.load(x.y) - lane.splat(mean)) * inverse;
                        let normed = yhat.mul_add(gamma, lane.load(x.beta));
                        let sum = v.mul_add(lane.splat(bonus), normed);
                        lane.store(gate_grad, grad * sum);

                        let inner = grad * lane.load(x.gate);
                        lane.store(v_grad, inner * lane.splat(bonus));
                        lane.store(r_grad, bonus_grad * k * r_k);
                        lane.store(k_grad, bonus_grad * r * r_k);
                        lane.add(r_k_grad, bonus_grad * r * k);

                        lane.add(gamma_grad, inner * yhat);
                        lane.add(beta_grad, inner);
                        let yhat_grad = inner * gamma - lane.splat(mean_grad);
                        lane.store(y_grad, (yhat_grad - yhat * lane.splat(along)) * inverse);
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

    const EPS: f32 = 1e-3;

    fn naive(x: &[Vec<f64>], size: usize) -> Vec<f64> {
        let [y, r, k, v, gate, r_k, gamma, beta] = x else {
            panic!()
        };
        let mut output = Vec::new();
        for begin in (0..y.len()).step_by(size) {
            let channel = begin % gamma.len();
            let all = 0..size;
            let mean = all.clone().map(|i| y[begin + i]).sum::<f64>() / size as f64;
            let square = all
                .clone()
                .map(|i| (y[begin + i] - mean).powi(2))
                .sum::<f64>();
            let deviation = (square / size as f64 + f64::from(EPS)).sqrt();
            let bonus: f64 = all
                .clone()
                .map(|i| r[begin + i] * k[begin + i] * r_k[channel + i])
                .sum();
            output.extend(all.map(|i| {
                let yhat = (y[begin + i] - mean) / deviation;
                let sum = yhat * gamma[channel + i] + beta[channel + i] + bonus * v[begin + i];
                sum * gate[begin + i]
            }));
        }
        output
    }

    fn compute(x: &[Vec<f32>; 8], grad: &[f32], size: usize) -> (Vec<f32>, [Vec<f32>; 8]) {
        let gradients = backward(slices(x), grad, size, EPS);
        (forward(slices(x), size, EPS), gradients)
    }

    fn case_data(rows: usize, channels: usize) -> ([Vec<f32>; 8], Vec<f32>) {
        let len = |i| channels * if i < 5 { rows } else { 1 };
        let x = core::array::from_fn(|i| data(len(i), 1 + i as u32));
        (x, data(rows * channels, 20))
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for rows in [1, 2, 33, 500] {
            for (channels, head_size) in [(21, 7), (48, 16), (512, 64)] {
                let (x, grad) = case_data(rows, channels);
                let (output, gradients) = compute(&x, &grad, head_size);
                assert_case(Case {
                    name: &format!("read-out {rows} {channels}"),
                    naive: &|x| naive(x, head_size),
                    inputs: &x,
                    outputs: &[output],
                    output_grads: &[grad],
                    gradients: &gradients,
                    step: 1e-5,
                });
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (x, grad) = case_data(500, 512);
        let one = with_threads(1, || compute(&x, &grad, 64));
        assert!(one == with_threads(3, || compute(&x, &grad, 64)));
    }
}
