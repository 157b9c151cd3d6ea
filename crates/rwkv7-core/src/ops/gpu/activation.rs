//! Elementwise functions: squared ReLU, sigmoid, tanh.

use cubecl::prelude::*;

use super::rows::{Work, load, sigmoid};
use crate::ops::backends::Activation;

/// `y = f(x)` of a block of rows. NaN stays NaN.
#[cube(launch)]
pub fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],     // [rows, C]
    y: &mut [Vector<F, N>], // [rows, C]
    work: Work,
    #[comptime] function: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        for row in place.from..place.to {
            let at = row * work.across + column;
            let x = load(x, at);
            let value = match comptime![function] {
                Activation::ReluSquared => {
                    let zero = Vector::<f32, N>::new(0.0);
                    let positive = select_many(x.less_than(&zero), zero, x);
                    positive * positive
                }
                Activation::Sigmoid => {
                    let (value, _) = sigmoid(x);
                    value
                }
                Activation::Tanh => Vector::tanh(x),
            };
            y[at] = Vector::cast_from(value);
        }
    }
}

/// The gradient of x, from y and its gradient.
#[cube(launch)]
pub fn backward_kernel<F: Float, N: Size>(
    y: &[Vector<F, N>],        // [rows, C]
    gradient: &[Vector<F, N>], // [rows, C]
    d_x: &mut [Vector<F, N>],  // [rows, C]
    work: Work,
    #[comptime] function: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        let one = Vector::<f32, N>::new(1.0);
        for row in place.from..place.to {
            let at = row * work.across + column;
            let y = load(y, at);
            let d = load(gradient, at);
            let slope = match comptime![function] {
                Activation::ReluSquared => {
                    let positive = Vector::sqrt(y);
                    positive + positive
                }
                Activation::Sigmoid => y * (one - y),
                Activation::Tanh => (one - y) * (one + y),
            };
            d_x[at] = Vector::cast_from(d * slope);
        }
    }
}
