//! From a key of any length to the removal vectors of a recurrence that writes along it.
//!
//! ```text
//! rate = σ(rate_pre + bias)                        in-context learning rate
//! ẑ    = z / max(|z|, 1e-12)                       over the channels of each head
//! a    = -ẑ
//! b    = ẑ rate
//! dz   = (dẑ - z (z · dẑ) / |z|²) / |z|            with dẑ = db rate - da
//! ```

use cubecl::prelude::*;

use super::rows::{Quad, Work, load, one_sum, shared_sums, sigmoid, total, two_sums};
use crate::ops::reference::MIN_KEY_NORM;

/// Below the square root of this the divisor is constant.
const SMALLEST_SQUARE: f32 = (MIN_KEY_NORM * MIN_KEY_NORM) as f32;

/// The divisor of a head, from the sum of its squares.
#[cube]
pub fn inverse_norm(square: f32) -> f32 {
    f32::recip(f32::sqrt(square.max(SMALLEST_SQUARE)))
}

/// How the gradient of ẑ becomes that of z: `dz = (dẑ - z along) inverse`.
#[derive(CubeType)]
pub struct Normalised {
    pub inverse: f32,
    along: f32,
}

#[cube]
impl Normalised {
    /// From |z|² and z · dẑ.
    pub fn new(square: f32, dot: f32) -> Normalised {
        let inverse = inverse_norm(square);
        let mut along = 0.0f32;
        if square >= SMALLEST_SQUARE {
            along = dot * inverse * inverse;
        }
        Normalised { inverse, along }
    }
}

/// The gradient of z.
#[cube]
pub fn backward(normalised: &Normalised, z: Quad<f32>, d_unit: Quad<f32>) -> Quad<f32> {
    (d_unit - z * Quad::new(normalised.along)) * Quad::new(normalised.inverse)
}

/// Both vectors of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float>(
    z: &[Quad<F>],       // [rows, C]
    rate: &[Quad<F>],    // [rows, C]
    bias: &[Quad<F>],    // [C]
    a: &mut [Quad<f32>], // [rows, C]
    b: &mut [Quad<f32>], // [rows, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let bias = load(bias, column);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let z = load(z, at);
        let square = total(&mut tile, row % 2, one_sum(z * z), &work);
        let unit = z * Quad::new(inverse_norm(square.extract(0usize)));
        let (rate, _) = sigmoid(load(rate, at) + bias);
        if place.is_inside {
            a[at] = -unit;
            b[at] = unit * rate;
        }
    }
}

/// The gradients of z and the rate, and the sums for that of the bias.
#[cube(launch)]
pub fn backward_kernel<F: Float>(
    z: &[Quad<F>],          // [rows, C]
    rate: &[Quad<F>],       // [rows, C]
    bias: &[Quad<F>],       // [C]
    d_a: &[Quad<f32>],      // [rows, C]
    d_b: &[Quad<f32>],      // [rows, C]
    d_z: &mut [Quad<F>],    // [rows, C]
    d_rate: &mut [Quad<F>], // [rows, C]
    sums: &mut [Quad<f32>], // [blocks, 1, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let bias = load(bias, column);
    let mut d_bias = Quad::<f32>::new(0.0);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let z = load(z, at);
        let (rate, rest) = sigmoid(load(rate, at) + bias);
        let d_removed = d_b[at];
        let d_unit = d_removed * rate - d_a[at];
        let both = total(&mut tile, row % 2, two_sums(z * z, z * d_unit), &work);
        let normalised = Normalised::new(both.extract(0usize), both.extract(1usize));
        let d_z_now = backward(&normalised, z, d_unit);
        let d_rate_now = d_removed * z * Quad::new(normalised.inverse) * rate * rest;
        d_bias += d_rate_now;
        if place.is_inside {
            d_z[at] = Quad::cast_from(d_z_now);
            d_rate[at] = Quad::cast_from(d_rate_now);
        }
    }
    if place.is_inside {
        sums[work.sum_place(0usize, 1usize, column)] = d_bias;
    }
}
