//! Elementwise functions: squared ReLU, sigmoid, tanh.

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, run};
use super::simd::vector::{Vector, for_lanes};
use crate::ops::{backends::Activation, cpu::simd::math};

/// `y = f(x)`, any shape; NaN stays NaN.
pub fn forward(x: &[f32], activation: Activation) -> Vec<f32> {
    match activation {
        Activation::ReluSquared => map1(ReluSquared, x),
        Activation::Sigmoid => map1(Sigmoid, x),
        Activation::Tanh => map1(Tanh, x),
    }
}

/// The gradient of x, from y and its gradient.
pub fn backward(y: &[f32], output_grad: &[f32], activation: Activation) -> Vec<f32> {
    match activation {
        Activation::ReluSquared => map2(ReluSquared, y, output_grad),
        Activation::Sigmoid => map2(Sigmoid, y, output_grad),
        Activation::Tanh => map2(Tanh, y, output_grad),
    }
}

/// A function of one element and its gradient.
trait Function: Copy + Sync {
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S>;
    /// From the output and its gradient.
    fn backward<S: Simd>(self, y: Vector<S>, grad: Vector<S>) -> Vector<S>;
}

#[derive(Clone, Copy)]
struct ReluSquared;

impl Function for ReluSquared {
    #[inline(always)]
    fn forward<S: Simd>(self, x: Vector<S>) -> Vector<S> {
        let zero = x.like(0.0);
        let positive = x.if_less(zero, zero, x);
        positive * positive
    }

    #[inline(always)]
    fn backward<S: Simd>(self, y: Vector<S>, grad: Vector<S>) -> Vector<S> {
        let positive = y.sqrt();
        (positive + positive) * grad
    }
}

#[derive(Clone, Copy)]
struct Sigmoid;

impl Function for Sigmoid {
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

impl Function for Tanh {
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

fn map1(function: impl Function, x: &[f32]) -> Vec<f32> {
    let [y] = run(&Forward { function, x }, x.len(), 1);
    y
}

fn map2(function: impl Function, y: &[f32], grad: &[f32]) -> Vec<f32> {
    assert_len(y.len(), &[("gradient of the output", grad.len())]);
    let kernel = Backward { function, y, grad };
    let [x_grad] = run(&kernel, y.len(), 1);
    x_grad
}

struct Forward<'a, F> {
    function: F,
    x: &'a [f32],
}

impl<F: Function> Kernel<1> for Forward<'_, F> {
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
            |lane| lane.store(output, self.function.forward(lane.load(x))),
        );
    }
}

struct Backward<'a, F> {
    function: F,
    y: &'a [f32],
    grad: &'a [f32],
}

impl<F: Function> Kernel<1> for Backward<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        elements: Range<usize>,
        [output]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        let y = &self.y[elements.clone()];
        let grad = &self.grad[elements];
        let output = &mut output[..y.len()];
        for_lanes(
            simd,
            y.len(),
            #[inline(always)]
            |lane| {
                let value = self.function.backward(lane.load(y), lane.load(grad));
                lane.store(output, value);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data};
    use super::*;

    type Naive = fn(f64) -> f64;

    const FUNCTIONS: [(Activation, Naive); 3] = [
        (Activation::ReluSquared, |x| x.max(0.0).powi(2)),
        (Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Activation::Tanh, f64::tanh),
    ];

    #[test]
    fn outputs_and_gradients_agree_with_the_formula() {
        for (activation, naive) in FUNCTIONS {
            for len in [1, 7, 48, 500, 33 * 512, 500 * 512] {
                let x: Vec<f32> = data(len, 1).iter().map(|x| 3.0 * x).collect();
                let grad = data(len, 2);
                let y = forward(&x, activation);
                let x_grad = backward(&y, &grad, activation);
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
        for (activation, naive) in &FUNCTIONS[1..] {
            let mut x: Vec<f32> = (-870_000..=870_000).map(|i| i as f32 * 1e-4).collect();
            x.extend((0..2000).map(|i| (-0.04 * i as f32).exp()));
            let mut worst: f64 = 0.0;
            for (x, y) in x.iter().zip(forward(&x, *activation)) {
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
        let y = forward(&x, Activation::Sigmoid);
        for y in y.chunks(10) {
            assert_eq!([y[0], y[1], y[3], y[4]], [1.0, 0.0, 1.0, 0.0]);
            assert_eq!([y[5], y[6], y[7], y[8], y[9]], [0.5, 0.5, 1.0, 0.0, 0.5]);
            assert!(y[2].is_nan());
        }
        let y = forward(&x, Activation::Tanh);
        for y in y.chunks(10) {
            assert_eq!([y[0], y[1], y[3], y[4]], [1.0, -1.0, 1.0, -1.0]);
            assert_eq!([y[5], y[6], y[7], y[8]], [0.0, 0.0, 1.0, -1.0]);
            assert_eq!(y[9], f32::MIN_POSITIVE);
            assert!(y[2].is_nan());
        }
        let y = forward(&x, Activation::ReluSquared);
        for y in y.chunks(10) {
            assert_eq!(
                [y[0], y[1], y[4], y[7]],
                [f32::INFINITY, 0.0, 0.0, 10_000.0]
            );
            assert!(y[2].is_nan());
        }
    }
}
