//! Value residual: `out = v + (first - v) sigmoid(s_pre + v0)`, with the first layer's values `first`.

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, row, row_mut, run, run_with_sums};
use super::simd::math::sigmoid;
use super::simd::vector::for_lanes;

/// The output, `[rows, C]`, of `[v, first, s_pre, v0]`.
pub fn forward(inputs: [&[f32]; 4]) -> Vec<f32> {
    let inputs = Inputs::new(inputs);
    let channels = inputs.v0.len();
    let [output] = run(&Forward(inputs), inputs.v.len() / channels.max(1), channels);
    output
}

/// The gradients of the inputs.
pub fn backward(inputs: [&[f32]; 4], output_grad: &[f32]) -> [Vec<f32>; 4] {
    let inputs = Inputs::new(inputs);
    let channels = inputs.v0.len();
    assert_len(
        inputs.v.len(),
        &[("gradient of the output", output_grad.len())],
    );
    let kernel = Backward {
        inputs,
        output_grad,
    };
    let ([v, first, s_pre], [v0]) =
        run_with_sums(&kernel, inputs.v.len() / channels.max(1), channels);
    [v, first, s_pre, v0]
}

#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// Values of this layer, `[rows, C]`.
    v: &'a [f32],
    /// Values of the first layer, `[rows, C]`.
    first: &'a [f32],
    /// Share of the first layer before its bias and the sigmoid, `[rows, C]`.
    s_pre: &'a [f32],
    /// Bias of the share, `[C]`.
    v0: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn new([v, first, s_pre, v0]: [&'a [f32]; 4]) -> Self {
        let all = v.len() / v0.len().max(1) * v0.len();
        let lens = [("v", v.len()), ("first", first.len()), ("s", s_pre.len())];
        assert_len(all, &lens);
        Self {
            v,
            first,
            s_pre,
            v0,
        }
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
        let v0 = self.0.v0;
        let channels = v0.len();
        for at in rows.clone() {
            let v = row(self.0.v, at, channels);
            let first = row(self.0.first, at, channels);
            let s_pre = row(self.0.s_pre, at, channels);
            let output = row_mut(output, at - rows.start, channels);
            for_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let v = lane.load(v);
                    let [share, _] = sigmoid(lane.load(s_pre) + lane.load(v0));
                    lane.store(output, (lane.load(first) - v).mul_add(share, v));
                },
            );
        }
    }
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    output_grad: &'a [f32],
}

impl Kernel<3> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [v_grad, first_grad, s_grad]: [&mut [f32]; 3],
        v0_grad: &mut [f32],
    ) {
        let v0 = self.inputs.v0;
        let channels = v0.len();
        for at in rows.clone() {
            let v = row(self.inputs.v, at, channels);
            let first = row(self.inputs.first, at, channels);
            let s_pre = row(self.inputs.s_pre, at, channels);
            let grad = row(self.output_grad, at, channels);
            let v_grad = row_mut(v_grad, at - rows.start, channels);
            let first_grad = row_mut(first_grad, at - rows.start, channels);
            let s_grad = row_mut(s_grad, at - rows.start, channels);
            for_lanes(
                simd,
                channels,
                #[inline(always)]
                |lane| {
                    let grad = lane.load(grad);
                    let [share, rest] = sigmoid(lane.load(s_pre) + lane.load(v0));
                    let slope = grad * (lane.load(first) - lane.load(v)) * (share * rest);
                    lane.store(v_grad, grad * rest);
                    lane.store(first_grad, grad * share);
                    lane.store(s_grad, slope);
                    lane.add(v0_grad, slope);
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data, slices, with_threads};
    use super::*;

    fn naive(x: &[Vec<f64>]) -> Vec<f64> {
        let [v, first, s_pre, v0] = x else { panic!() };
        let share = |at: usize| 1.0 / (1.0 + (-s_pre[at] - v0[at % v0.len()]).exp());
        (0..v.len())
            .map(|at| v[at] + (first[at] - v[at]) * share(at))
            .collect()
    }

    fn compute(x: &[Vec<f32>; 4], grad: &[f32]) -> (Vec<f32>, [Vec<f32>; 4]) {
        (forward(slices(x)), backward(slices(x), grad))
    }

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for rows in [1, 2, 33, 500] {
            for channels in [7, 48, 512] {
                let all = rows * channels;
                let x = [data(all, 1), data(all, 2), data(all, 3), data(channels, 4)];
                let grad = data(all, 5);
                let (output, gradients) = compute(&x, &grad);
                assert_case(Case {
                    name: &format!("value residual {rows} {channels}"),
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
    fn result_does_not_depend_on_the_number_of_threads() {
        let x = [500 * 512, 500 * 512, 500 * 512, 512].map(|len| data(len, len as u32));
        let grad = data(500 * 512, 5);
        let one = with_threads(1, || compute(&x, &grad));
        assert!(one == with_threads(3, || compute(&x, &grad)));
    }
}
