//! Layer norm: `y = (x - mean(x)) / √(var(x) + ε) γ + β` over the channels, biased variance.
//!
//! ```text
//! dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / √(var(x) + ε)     with dx̂ = dy γ
//! dγ = Σ dy x̂        dβ = Σ dy
//! ```
//!
//! A cube takes whole rows, and a unit holds its part of a row in registers. So x is read once for both moments.

use cubecl::prelude::*;

use super::rows::{Quad, Work, load, shared_sums, total};

/// The output of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],     // [rows, C]
    gamma: &[Vector<F, N>], // [C]
    beta: &[Vector<F, N>],  // [C]
    y: &mut [Vector<F, N>], // [rows, C]
    epsilon: f32,
    channels: usize,
    work: Work,
    #[comptime] turns: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let mut held = Array::<Vector<f32, N>>::new(turns);
    let unit = UNIT_POS_X as usize;
    let count = f32::cast_from(channels);
    let place = work.place();
    let units = comptime![work.units];
    for row in place.from..place.to {
        let inverse = moments::<F, N>(x, &mut held, &mut tile, epsilon, count, row, &work, turns);
        #[unroll]
        for n in 0..turns {
            let column = n * units + unit;
            if column < work.across {
                let scale = load(gamma, column) * Vector::new(inverse);
                let shift = load(beta, column);
                y[row * work.across + column] = Vector::cast_from(fma(held[n], scale, shift));
            }
        }
    }
}

/// Reads a row into `held`, less its mean; returns the inverse of its deviation.
#[cube]
fn moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    held: &mut Array<Vector<f32, N>>,
    tile: &mut Shared<[Quad<f32>]>,
    epsilon: f32,
    count: f32,
    row: usize,
    work: &Work,
    #[comptime] turns: usize,
) -> f32 {
    let units = comptime![work.units];
    let unit = UNIT_POS_X as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    #[unroll]
    for n in 0..turns {
        let column = n * units + unit;
        held[n] = Vector::new(0.0);
        if column < work.across {
            held[n] = load(x, row * work.across + column);
        }
        sum += held[n];
    }
    let mut sums = Quad::<f32>::new(0.0);
    sums.insert(0usize, Vector::vector_sum(sum));
    let mean = total(tile, 0usize, sums, work).extract(0usize) / count;
    let mut square = Vector::<f32, N>::new(0.0);
    #[unroll]
    for n in 0..turns {
        if n * units + unit < work.across {
            held[n] -= Vector::new(mean);
        }
        square = fma(held[n], held[n], square);
    }
    sums.insert(0usize, Vector::vector_sum(square));
    let variance = total(tile, 1usize, sums, work).extract(0usize) / count;
    f32::recip(f32::sqrt(variance + epsilon))
}

/// The gradient of x, and the sums for those of γ and β.
#[cube(launch)]
pub fn backward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],          // [rows, C]
    gamma: &[Vector<F, N>],      // [C]
    gradient: &[Vector<F, N>],   // [rows, C]
    d_x: &mut [Vector<F, N>],    // [rows, C]
    sums: &mut [Vector<f32, N>], // [blocks, 2, C]: dγ, dβ
    epsilon: f32,
    channels: usize,
    work: Work,
    #[comptime] turns: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let mut held = Array::<Vector<f32, N>>::new(turns);
    let mut d_y = Array::<Vector<f32, N>>::new(turns);
    let mut scale = Array::<Vector<f32, N>>::new(turns);
    let mut d_gamma = Array::<Vector<f32, N>>::new(turns);
    let mut d_beta = Array::<Vector<f32, N>>::new(turns);
    let unit = UNIT_POS_X as usize;
    let count = f32::cast_from(channels);
    let place = work.place();
    let units = comptime![work.units];
    #[unroll]
    for n in 0..turns {
        let column = n * units + unit;
        scale[n] = Vector::new(0.0);
        if column < work.across {
            scale[n] = load(gamma, column);
        }
        d_gamma[n] = Vector::new(0.0);
        d_beta[n] = Vector::new(0.0);
    }
    for row in place.from..place.to {
        let inverse = moments::<F, N>(x, &mut held, &mut tile, epsilon, count, row, &work, turns);
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut dot = Vector::<f32, N>::new(0.0);
        #[unroll]
        for n in 0..turns {
            let column = n * units + unit;
            d_y[n] = Vector::new(0.0);
            if column < work.across {
                d_y[n] = load(gradient, row * work.across + column);
            }
            let d = d_y[n] * scale[n];
            sum += d;
            dot = fma(d, held[n], dot);
        }
        let mut both = Quad::<f32>::new(0.0);
        both.insert(0usize, Vector::vector_sum(sum));
        both.insert(1usize, Vector::vector_sum(dot));
        let both = total(&mut tile, 2usize, both, &work);
        let mean = Vector::<f32, N>::new(both.extract(0usize) / count);
        let along = Vector::<f32, N>::new(both.extract(1usize) * inverse / count);
        #[unroll]
        for n in 0..turns {
            let column = n * units + unit;
            let normed = held[n] * Vector::new(inverse);
            d_gamma[n] = fma(d_y[n], normed, d_gamma[n]);
            d_beta[n] += d_y[n];
            if column < work.across {
                let d = d_y[n] * scale[n] - mean - normed * along;
                d_x[row * work.across + column] = Vector::cast_from(d * Vector::new(inverse));
            }
        }
    }
    #[unroll]
    for n in 0..turns {
        let column = n * units + unit;
        if column < work.across {
            sums[work.sum_place(0usize, 2usize, column)] = d_gamma[n];
            sums[work.sum_place(1usize, 2usize, column)] = d_beta[n];
        }
    }
}
