//! Layer norm: `y = (x - mean(x)) / sqrt(var(x) + eps) gamma + beta` over the channels, biased variance.

use core::ops::Range;

use pulp::Simd;

use super::blocks::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use crate::simd::lanes::{for_lanes, sum_lanes};

/// Inputs of the layer norm.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[rows, C]`.
    pub x: &'a [f32],
    /// `[C]`.
    pub gamma: &'a [f32],
    /// `[C]`.
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Gradients that the backward pass writes, in the shapes of the inputs.
pub struct Gradients<'a> {
    pub x: &'a mut [f32],
    pub gamma: &'a mut [f32],
    pub beta: &'a mut [f32],
}

impl Inputs<'_> {
    /// Checks the lengths; returns the number of rows.
    fn rows(&self) -> usize {
        let channels = self.gamma.len();
        let rows = self.x.len() / channels.max(1);
        assert_len(channels, &[("beta", self.beta.len())]);
        assert_len(rows * channels, &[("x", self.x.len())]);
        rows
    }
}

/// Writes `y`, `[rows, C]`.
pub fn forward(inputs: Inputs<'_>, output: &mut [f32]) {
    let rows = inputs.rows();
    assert_len(inputs.x.len(), &[("output", output.len())]);
    run(&Forward(inputs), rows, inputs.gamma.len(), [output]);
}

/// Writes the gradients, from that of the output, `[rows, C]`.
pub fn backward(inputs: Inputs<'_>, output_grad: &[f32], gradients: Gradients<'_>) {
    let rows = inputs.rows();
    let lens = [
        ("output gradient", output_grad.len()),
        ("gradient of x", gradients.x.len()),
    ];
    assert_len(inputs.x.len(), &lens);
    let lens = [
        ("gradient of gamma", gradients.gamma.len()),
        ("gradient of beta", gradients.beta.len()),
    ];
    assert_len(inputs.gamma.len(), &lens);
    run_with_sums(
        &Backward {
            inputs,
            output_grad,
        },
        rows,
        inputs.gamma.len(),
        [gradients.x],
        &mut [gradients.gamma, gradients.beta],
    );
}

#[inline(always)]
fn mean<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let [sum] = sum_lanes(
        simd,
        x.len(),
        #[inline(always)]
        |lane| [lane.load(x)],
    );
    sum / x.len() as f32
}

struct Forward<'a>(Inputs<'a>);

impl Kernel<[&mut [f32]; 1]> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [output]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let Inputs {
            x,
            gamma,
            beta,
            eps,
        } = self.0;
        let channels = gamma.len();
        for at in rows.clone() {
            let x = row(x, at, channels);
            let output = row_mut(output, at - rows.start, channels);
            let mean = mean(simd, x);
            let [square] = sum_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let centred = lane.load(x) - lane.splat(mean);
                    [lane.or_past_end(centred * centred, 0.0)]
                },
            );
            let inverse = 1.0 / (square / channels as f32 + eps).sqrt();
            for_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let xhat = (lane.load(x) - lane.splat(mean)) * lane.splat(inverse);
                    lane.store(output, xhat.mul_add(lane.load(gamma), lane.load(beta)));
                },
            );
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grad: &'a [f32],
}

impl Kernel<[&mut [f32]; 1]> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [x_grad]: [&mut [f32]; 1],
        sums: &mut [f32],
    ) {
        let Inputs { x, gamma, eps, .. } = self.inputs;
        let channels = gamma.len();
        let (gamma_grad, beta_grad) = sums.split_at_mut(channels);
        for at in rows.clone() {
            let x = row(x, at, channels);
            let grad = row(self.output_grad, at, channels);
            let x_grad = row_mut(x_grad, at - rows.start, channels);
            let mean = mean(simd, x);
            let [square, sum, dot] = sum_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let centred = lane.load(x) - lane.splat(mean);
                    let xhat_grad = lane.load(grad) * lane.load(gamma);
                    [
                        lane.or_past_end(centred * centred, 0.0),
                        xhat_grad,
                        xhat_grad * centred,
                    ]
                },
            );
            let count = channels as f32;
            let inverse = 1.0 / (square / count + eps).sqrt();
            let (mean_grad, along) = (sum / count, dot * inverse / count);
            for_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let (grad, inverse) = (lane.load(grad), lane.splat(inverse));
                    let xhat = (lane.load(x) - lane.splat(mean)) * inverse;
                    lane.add(gamma_grad, grad * xhat);
                    lane.add(beta_grad, grad);
                    let xhat_grad = grad * lane.load(gamma) - lane.splat(mean_grad);
                    lane.store(x_grad, (xhat_grad - xhat * lane.splat(along)) * inverse);
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data, with_threads};
    use super::*;

    const EPS: f32 = 1e-5;

    fn naive(inputs: &[Vec<f64>]) -> Vec<f64> {
        let [x, gamma, beta] = inputs else { panic!() };
        let count = gamma.len() as f64;
        let mut output = Vec::new();
        for x in x.chunks(gamma.len()) {
            let mean = x.iter().sum::<f64>() / count;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let deviation = (variance + f64::from(EPS)).sqrt();
            let normed = x.iter().map(|x| (x - mean) / deviation);
            output.extend(normed.zip(gamma).zip(beta).map(|((x, g), b)| x * g + b));
        }
        output
    }

    fn compute(x: &[Vec<f32>], grad: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let inputs = Inputs {
            x: &x[0],
            gamma: &x[1],
            beta: &x[2],
            eps: EPS,
        };
        let mut output = vec![f32::NAN; x[0].len()];
        forward(inputs, &mut output);
        let mut gradients: Vec<Vec<f32>> = x.iter().map(|x| vec![f32::NAN; x.len()]).collect();
        let [x, gamma, beta] = &mut gradients[..] else {
            panic!()
        };
        backward(inputs, grad, Gradients { x, gamma, beta });
        (output, gradients)
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for rows in [1, 2, 33, 500] {
            for channels in [7, 48, 512] {
                let all = rows * channels;
                let x = [data(all, 1), data(channels, 2), data(channels, 3)];
                let grad = data(all, 4);
                let (output, gradients) = compute(&x, &grad);
                assert_case(Case {
                    name: &format!("layer norm {rows} {channels}"),
                    naive: &naive,
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
    fn large_mean_does_not_spoil_the_variance() {
        let mut x = data(48, 1);
        x.iter_mut()
            .for_each(|x| *x = (*x + 100.0).round_ties_even() + x.signum());
        let x = [x, vec![1.0; 48], vec![0.0; 48]];
        let (output, _) = compute(&x, &[1.0; 48]);
        let doubles: Vec<Vec<f64>> = x
            .iter()
            .map(|x| x.iter().map(|x| f64::from(*x)).collect())
            .collect();
        for (expected, found) in naive(&doubles).iter().zip(output) {
            assert!(
                (expected - f64::from(found)).abs() < 1e-4,
                "{expected} {found}"
            );
        }
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let x = [500 * 512, 512, 512].map(|len| data(len, len as u32));
        let grad = data(500 * 512, 5);
        let one = with_threads(1, || compute(&x, &grad));
        assert!(one == with_threads(3, || compute(&x, &grad)));
    }
}
