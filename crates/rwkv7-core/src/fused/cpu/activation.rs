//! Elementwise functions: squared ReLU, sigmoid, tanh.

use core::ops::Range;

use pulp::Simd;

use super::blocks::{Kernel, assert_len, run};
use crate::simd::lanes::{Vector, for_lanes};
use crate::simd::math;

/// `output = max(x, 0)^2`, any shape; NaN stays NaN.
pub fn relu_squared(x: &[f32], output: &mut [f32]) {
    map1(ReluSquared, x, output);
}

/// `x_grad = 2 max(x, 0) output_grad`, from the input.
pub fn relu_squared_backward(x: &[f32], output_grad: &[f32], x_grad: &mut [f32]) {
    map2(ReluSquared, x, output_grad, x_grad);
}

/// `output = 1 / (1 + exp(-x))`, any shape.
pub fn sigmoid(x: &[f32], output: &mut [f32]) {
    map1(Sigmoid, x, output);
}

/// `x_grad = y (1 - y) output_grad`, from the output `y`.
pub fn sigmoid_backward(y: &[f32], output_grad: &[f32], x_grad: &mut [f32]) {
    map2(Sigmoid, y, output_grad, x_grad);
}

/// `output = tanh(x)`, any shape.
pub fn tanh(x: &[f32], output: &mut [f32]) {
    map1(Tanh, x, output);
}

/// `x_grad = (1 - y^2) output_grad`, from the output `y`.
pub fn tanh_backward(y: &[f32], output_grad: &[f32], x_grad: &mut [f32]) {
    map2(Tanh, y, output_grad, x_grad);
}

/// A function of one element and its gradient.
trait Activation: Copy + Sync {
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S>;
    /// From what the backward pass keeps (the input or the output) and the gradient of the output.
    fn backward<S: Simd>(self, kept: Vector<S>, grad: Vector<S>) -> Vector<S>;
}

#[derive(Clone, Copy)]
struct ReluSquared;

impl Activation for ReluSquared {
    #[inline(always)]
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S> {
        let zero = x.like(0.0);
        let positive = x.if_less(zero, zero, x);
        positive * positive
    }

    #[inline(always)]
    fn backward<S: Simd>(self, x: Vector<S>, grad: Vector<S>) -> Vector<S> {
        let zero = x.like(0.0);
        let positive = x.if_less(zero, zero, x);
        (positive + positive) * grad
    }
}

#[derive(Clone, Copy)]
struct Sigmoid;

impl Activation for Sigmoid {
    #[inline(always)]
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S> {
        let [y, _] = math::sigmoid(x);
        y
    }

    #[inline(always)]
    fn backward<S: Simd>(self, y: Vector<S>, grad: Vector<S>) -> Vector<S> {
        y * (y.like(1.0) - y) * grad
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Activation for Tanh {
    #[inline(always)]
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S> {
        math::tanh(x)
    }

    #[inline(always)]
    fn backward<S: Simd>(self, y: Vector<S>, grad: Vector<S>) -> Vector<S> {
        let one = y.like(1.0);
        (one - y) * (one + y) * grad
    }
}

fn map1(activation: impl Activation, x: &[f32], output: &mut [f32]) {
    assert_len(x.len(), &[("output", output.len())]);
    run(&Forward { activation, x }, x.len(), 1, [output]);
}

fn map2(activation: impl Activation, kept: &[f32], grad: &[f32], output: &mut [f32]) {
    let lens = [("output gradient", grad.len()), ("gradient", output.len())];
    assert_len(kept.len(), &lens);
    let kernel = Backward {
        activation,
        kept,
        grad,
    };
    run(&kernel, kept.len(), 1, [output]);
}

struct Forward<'a, A> {
    activation: A,
    x: &'a [f32],
}

impl<A: Activation> Kernel<[&mut [f32]; 1]> for Forward<'_, A> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        elements: Range<usize>,
        [output]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let x = &self.x[elements];
        let output = &mut output[..x.len()];
        for_lanes(
            simd,
            x.len(),
            #[inline(always)]
            |lane| lane.store(output, self.activation.forward(lane.load(x))),
        );
    }
}

struct Backward<'a, A> {
    activation: A,
    kept: &'a [f32],
    grad: &'a [f32],
}

impl<A: Activation> Kernel<[&mut [f32]; 1]> for Backward<'_, A> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        elements: Range<usize>,
        [output]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let kept = &self.kept[elements.clone()];
        let grad = &self.grad[elements];
        let output = &mut output[..kept.len()];
        for_lanes(
            simd,
            kept.len(),
            #[inline(always)]
            |lane| {
                let value = self.activation.backward(lane.load(kept), lane.load(grad));
                lane.store(output, value);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data};
    use super::*;

    type Function = fn(&[f32], &mut [f32]);
    type Naive = fn(f64) -> f64;
    type Gradient = fn(&[f32], &[f32], &mut [f32]);

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        let functions: [(Function, Gradient, bool, Naive); 3] = [
            (relu_squared, relu_squared_backward, false, |x| {
                x.max(0.0).powi(2)
            }),
            (sigmoid, sigmoid_backward, true, |x| {
                1.0 / (1.0 + (-x).exp())
            }),
            (tanh, tanh_backward, true, f64::tanh),
        ];
        for (forward, backward, from_output, naive) in functions {
            for len in [1, 7, 48, 500, 33 * 512, 500 * 512] {
                let x: Vec<f32> = data(len, 1).iter().map(|x| 3.0 * x).collect();
                let grad = data(len, 2);
                let (mut y, mut x_grad) = (vec![f32::NAN; len], vec![f32::NAN; len]);
                forward(&x, &mut y);
                backward(if from_output { &y } else { &x }, &grad, &mut x_grad);
                assert_case(Case {
                    name: &format!("activation {len}"),
                    naive: &|x| x[0].iter().map(|x| naive(*x)).collect(),
                    inputs: &[x],
                    outputs: &[y],
                    output_grads: &[grad],
                    gradients: &[x_grad],
                    step: 1e-5,
                });
            }
        }
    }

    #[test]
    fn sigmoid_and_tanh_are_accurate_everywhere() {
        let functions: [(Function, Naive); 2] =
            [(sigmoid, |x| 1.0 / (1.0 + (-x).exp())), (tanh, f64::tanh)];
        for (function, naive) in functions {
            let mut x: Vec<f32> = (-870_000..=870_000).map(|i| i as f32 * 1e-4).collect();
            x.extend((0..2000).map(|i| (-0.04 * i as f32).exp()));
            let mut y = vec![f32::NAN; x.len()];
            function(&x, &mut y);
            let mut worst: f64 = 0.0;
            for (x, y) in x.iter().zip(y) {
                let expected = naive(f64::from(*x));
                let error = (f64::from(y) - expected).abs();
                worst = worst.max(error / expected.abs().max(1e-37));
            }
            assert!(worst <= 3e-7, "relative error {worst}");
        }
    }

    #[test]
    fn limits_and_nan() {
        let x = [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN,
            0.0,
            -0.0,
            100.0,
            -100.0,
            f32::MIN_POSITIVE,
        ];
        // Also at the place of a whole vector.
        let x = [x, x, x, x].concat();
        let mut y = vec![5.0; x.len()];
        sigmoid(&x, &mut y);
        for y in y.chunks(10) {
            assert_eq!([y[0], y[1], y[3], y[4]], [1.0, 0.0, 1.0, 0.0]);
            assert_eq!([y[5], y[6], y[7], y[8], y[9]], [0.5, 0.5, 1.0, 0.0, 0.5]);
            assert!(y[2].is_nan());
        }
        tanh(&x, &mut y);
        for y in y.chunks(10) {
            assert_eq!([y[0], y[1], y[3], y[4]], [1.0, -1.0, 1.0, -1.0]);
            assert_eq!([y[5], y[6], y[7], y[8]], [0.0, 0.0, 1.0, -1.0]);
            assert_eq!(y[9], f32::MIN_POSITIVE);
            assert!(y[2].is_nan());
        }
        relu_squared(&x, &mut y);
        for y in y.chunks(10) {
            assert_eq!(
                [y[0], y[1], y[4], y[7]],
                [f32::INFINITY, 0.0, 0.0, 10_000.0]
            );
            assert!(y[2].is_nan());
        }
    }
}
