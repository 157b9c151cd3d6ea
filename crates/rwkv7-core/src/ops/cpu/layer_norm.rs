//! Layer norm: `y = (x - mean(x)) / sqrt(var(x) + eps) gamma + beta` over the channels, biased variance.

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::vector::{for_lanes, sum_lanes};

/// The output, `[rows, C]`, of `[x, gamma, beta]`; `eps` is added to the variance.
pub fn forward(inputs: [&[f32]; 3], eps: f32) -> Vec<f32> {
    let inputs = Inputs::new(inputs, eps);
    let channels = inputs.gamma.len();
    let [output] = run(&Forward(inputs), inputs.x.len() / channels.max(1), channels);
    output
}

/// The gradients of the inputs.
pub fn backward(inputs: [&[f32]; 3], output_grad: &[f32], eps: f32) -> [Vec<f32>; 3] {
    let inputs = Inputs::new(inputs, eps);
    let channels = inputs.gamma.len();
    assert_len(
        inputs.x.len(),
        &[("gradient of the output", output_grad.len())],
    );
    let kernel = Backward {
        inputs,
        output_grad,
    };
    let ([x], [gamma, beta]) = run_with_sums(&kernel, inputs.x.len() / channels.max(1), channels);
    [x, gamma, beta]
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// `[rows, C]`.
    x: &'a [f32],
    /// `[C]`.
    gamma: &'a [f32],
    /// `[C]`.
    beta: &'a [f32],
    eps: f32,
}

impl<'a> Inputs<'a> {
    fn new([x, gamma, beta]: [&'a [f32]; 3], eps: f32) -> Self {
        let channels = gamma.len();
        assert_len(channels, &[("beta", beta.len())]);
        assert_len(x.len() / channels.max(1) * channels, &[("x", x.len())]);
        Self {
            x,
            gamma,
            beta,
            eps,
        }
    }
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

impl Kernel<1> for Forward<'_> {
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

impl Kernel<1> for Backward<'_> {
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
    use super::super::check::{Case, assert_case, data, slices, with_threads};
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

    fn compute(x: &[Vec<f32>; 3], grad: &[f32]) -> (Vec<f32>, [Vec<f32>; 3]) {
        (forward(slices(x), EPS), backward(slices(x), grad, EPS))
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
        let output = forward(slices(&x), EPS);
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
