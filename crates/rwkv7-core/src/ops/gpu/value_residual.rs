//! Value residual: `out = v + (first - v) σ(s + v0)`, with the first layer's values `first`.

use cubecl::prelude::*;

use super::rows::{column, sigmoid, sum_place};

/// The output of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float, N: Size>(
    v: &[Vector<F, N>],          // [rows, C]
    first: &[Vector<F, N>],      // [rows, C]
    s: &[Vector<F, N>],          // [rows, C]
    v0: &[Vector<F, N>],         // [C]
    output: &mut [Vector<F, N>], // [rows, C]
    rows: usize,
    across: usize,
    block: usize,
    #[define(F)] _dtype: ElemType,
) {
    let column = column();
    let from = CUBE_POS_Y as usize * block;
    let to = (from + block).min(rows);
    if column < across {
        let v0 = Vector::<f32, N>::cast_from(v0[column]);
        for row in from..to {
            let at = row * across + column;
            let value = Vector::<f32, N>::cast_from(v[at]);
            let (share, _) = sigmoid(Vector::<f32, N>::cast_from(s[at]) + v0);
            let step = Vector::<f32, N>::cast_from(first[at]) - value;
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
    rows: usize,
    across: usize,
    block: usize,
    #[define(F)] _dtype: ElemType,
) {
    let column = column();
    let from = CUBE_POS_Y as usize * block;
    let to = (from + block).min(rows);
    if column < across {
        let v0 = Vector::<f32, N>::cast_from(v0[column]);
        let mut d_v0 = Vector::<f32, N>::new(0.0);
        for row in from..to {
            let at = row * across + column;
            let value = Vector::<f32, N>::cast_from(v[at]);
            let (share, rest) = sigmoid(Vector::<f32, N>::cast_from(s[at]) + v0);
            let step = Vector::<f32, N>::cast_from(first[at]) - value;
            let d = Vector::<f32, N>::cast_from(gradient[at]);
            let d_share = d * step * share * rest;
            d_v0 += d_share;
            d_v[at] = Vector::cast_from(d * rest);
            d_first[at] = Vector::cast_from(d * share);
            d_s[at] = Vector::cast_from(d_share);
        }
        sums[sum_place(0usize, 1usize, across, column)] = d_v0;
    }
}
