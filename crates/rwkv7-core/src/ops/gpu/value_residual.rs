//! Value residual: `out = v + (first - v) σ(s + v0)`, with the first layer's values `first`.

use cubecl::prelude::*;

use super::rows::{Work, load, sigmoid};

/// The output of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float, N: Size>(
    v: &[Vector<F, N>],          // [rows, C]
    first: &[Vector<F, N>],      // [rows, C]
    s: &[Vector<F, N>],          // [rows, C]
    v0: &[Vector<F, N>],         // [C]
    output: &mut [Vector<F, N>], // [rows, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        let v0 = load(v0, column);
        for row in place.from..place.to {
            let at = row * work.across + column;
            let value = load(v, at);
            let (share, _) = sigmoid(load(s, at) + v0);
            let step = load(first, at) - value;
            output[at] = Vector::cast_from(fma(step, share, value));
        }
    }
}

/// The gradients of v, first and s, and the sums for that of v0.
#[cube(launch)]
pub fn backward_kernel<F: Float, N: Size>(
    v: &[Vector<F, N>],           // [rows, C]
    first: &[Vector<F, N>],       // [rows, C]
    s: &[Vector<F, N>],           // [rows, C]
    v0: &[Vector<F, N>],          // [C]
    gradient: &[Vector<F, N>],    // [rows, C]
    d_v: &mut [Vector<F, N>],     // [rows, C]
    d_first: &mut [Vector<F, N>], // [rows, C]
    d_s: &mut [Vector<F, N>],     // [rows, C]
    sums: &mut [Vector<f32, N>],  // [blocks, 1, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        let v0 = load(v0, column);
        let mut d_v0 = Vector::<f32, N>::new(0.0);
        for row in place.from..place.to {
            let at = row * work.across + column;
            let value = load(v, at);
            let (share, rest) = sigmoid(load(s, at) + v0);
            let step = load(first, at) - value;
            let d = load(gradient, at);
            let d_share = d * step * share * rest;
            d_v0 += d_share;
            d_v[at] = Vector::cast_from(d * rest);
            d_first[at] = Vector::cast_from(d * share);
            d_s[at] = Vector::cast_from(d_share);
        }
        sums[work.sum_place(0usize, 1usize, column)] = d_v0;
    }
}
