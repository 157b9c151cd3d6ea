//! Read-out of the recurrence: group norm of each head, the bonus of the current token, the gate.
//!
//! ```text
//! ŷ     = (y - mean(y)) / √(var(y) + ε)            over the channels of each head, biased variance
//! bonus = Σ r k r_k                                over the channels of each head
//! out   = (ŷ γ + β + bonus v) gate
//! ```

use cubecl::prelude::*;

use super::rows::{Quad, Work, load, one_sum, shared_sums, total, two_sums};

/// The mean and the inverse deviation of each head of y, and the bonus. Takes slots 0 and 1 of the tile.
#[cube]
fn moments(
    tile: &mut Shared<[Quad<f32>]>,
    y: Quad<f32>,
    bonus: Quad<f32>,
    epsilon: f32,
    work: &Work,
) -> (Quad<f32>, f32, f32) {
    let count = comptime![4.0 * work.lanes as f32];
    let sums = total(tile, 0usize, two_sums(y, bonus), work);
    let centred = y - Quad::new(sums.extract(0usize) / count);
    let square = total(tile, 1usize, one_sum(centred * centred), work);
    let variance = square.extract(0usize) / count;
    let inverse = f32::recip(f32::sqrt(variance + epsilon));
    (centred, inverse, sums.extract(1usize))
}

/// The output of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float>(
    y: &[Quad<F>],          // [rows, C]
    r: &[Quad<F>],          // [rows, C]
    k: &[Quad<F>],          // [rows, C]
    v: &[Quad<F>],          // [rows, C]
    gate: &[Quad<F>],       // [rows, C]
    r_k: &[Quad<F>],        // [C]
    gamma: &[Quad<F>],      // [C]
    beta: &[Quad<F>],       // [C]
    output: &mut [Quad<F>], // [rows, C]
    epsilon: f32,
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let r_k = load(r_k, column);
    let gamma = load(gamma, column);
    let beta = load(beta, column);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let bonus = load(r, at) * load(k, at) * r_k;
        let y = load(y, at);
        let (centred, inverse, bonus) = moments(&mut tile, y, bonus, epsilon, &work);
        let normed = fma(centred * Quad::new(inverse), gamma, beta);
        let sum = fma(load(v, at), Quad::new(bonus), normed);
        if place.is_inside {
            output[at] = Quad::cast_from(sum * load(gate, at));
        }
    }
}

/// The gradients of y, r, k, v and the gate, and the sums for those of r_k, γ and β.
#[cube(launch)]
pub fn backward_kernel<F: Float>(
    y: &[Quad<F>],          // [rows, C]
    r: &[Quad<F>],          // [rows, C]
    k: &[Quad<F>],          // [rows, C]
    v: &[Quad<F>],          // [rows, C]
    gate: &[Quad<F>],       // [rows, C]
    r_k: &[Quad<F>],        // [C]
    gamma: &[Quad<F>],      // [C]
    beta: &[Quad<F>],       // [C]
    gradient: &[Quad<F>],   // [rows, C]
    d_y: &mut [Quad<F>],    // [rows, C]
    d_r: &mut [Quad<F>],    // [rows, C]
    d_k: &mut [Quad<F>],    // [rows, C]
    d_v: &mut [Quad<F>],    // [rows, C]
    d_gate: &mut [Quad<F>], // [rows, C]
    sums: &mut [Quad<f32>], // [blocks, 3, C]
    epsilon: f32,
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let count = comptime![4.0 * work.lanes as f32];
    let r_k = load(r_k, column);
    let gamma = load(gamma, column);
    let beta = load(beta, column);
    let mut d_r_k = Quad::<f32>::new(0.0);
    let mut d_gamma = Quad::<f32>::new(0.0);
    let mut d_beta = Quad::<f32>::new(0.0);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let r = load(r, at);
        let k = load(k, at);
        let v = load(v, at);
        let y = load(y, at);
        let (centred, inverse, bonus) = moments(&mut tile, y, r * k * r_k, epsilon, &work);
        let normed = centred * Quad::new(inverse);
        let out = load(gradient, at);
        let inner = out * load(gate, at);
        let scaled = inner * gamma;
        let mut three = two_sums(scaled, scaled * normed);
        three.insert(2usize, Vector::vector_sum(inner * v));
        let three = total(&mut tile, 2usize, three, &work);
        let mean = Quad::<f32>::new(three.extract(0usize) / count);
        let along = Quad::<f32>::new(three.extract(1usize) / count);
        let d_bonus = Quad::<f32>::new(three.extract(2usize));
        d_r_k = fma(d_bonus, r * k, d_r_k);
        d_gamma = fma(inner, normed, d_gamma);
        d_beta += inner;
        if place.is_inside {
            d_y[at] = Quad::cast_from((scaled - mean - normed * along) * Quad::new(inverse));
            d_r[at] = Quad::cast_from(d_bonus * k * r_k);
            d_k[at] = Quad::cast_from(d_bonus * r * r_k);
            d_v[at] = Quad::cast_from(inner * Quad::new(bonus));
            let sum = fma(normed, gamma, beta) + v * Quad::new(bonus);
            d_gate[at] = Quad::cast_from(out * sum);
        }
    }
    if place.is_inside {
        sums[work.sum_place(0usize, 3usize, column)] = d_r_k;
        sums[work.sum_place(1usize, 3usize, column)] = d_gamma;
        sums[work.sum_place(2usize, 3usize, column)] = d_beta;
    }
}
