//! From the key and two low-rank outputs to the decay, the key and the removal vectors of the recurrence.
//!
//! ```text
//! log_w = -e^(-1/2) σ(w_pre + w0)
//! rate  = σ(a_pre + a0)                            in-context learning rate
//! κ̂     = k k_k / max(|k k_k|, 1e-12)              over the channels of each head
//! k̃     = k (1 + (rate - 1) k_a)
//! a     = -κ̂
//! b     = κ̂ rate
//! ```

use cubecl::prelude::*;

use super::{
    removal_key::{Normalised, backward, inverse_norm},
    rows::{Quad, Work, load, one_sum, shared_sums, sigmoid, total, two_sums},
};
use crate::ops::reference::DECAY_SCALE;

const SCALE: f32 = -DECAY_SCALE as f32;

/// Decay and keys of a block of rows.
#[cube(launch)]
pub fn forward_kernel<F: Float>(
    k: &[Quad<F>],           // [rows, C]
    w_pre: &[Quad<F>],       // [rows, C]
    a_pre: &[Quad<F>],       // [rows, C]
    w0: &[Quad<F>],          // [C]
    a0: &[Quad<F>],          // [C]
    k_k: &[Quad<F>],         // [C]
    k_a: &[Quad<F>],         // [C]
    log_w: &mut [Quad<f32>], // [rows, C]
    k_tilde: &mut [Quad<F>], // [rows, C]
    a: &mut [Quad<f32>],     // [rows, C]
    b: &mut [Quad<f32>],     // [rows, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let w0 = load(w0, column);
    let a0 = load(a0, column);
    let k_k = load(k_k, column);
    let k_a = load(k_a, column);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let key = load(k, at);
        let removal = key * k_k;
        let square = total(&mut tile, row % 2, one_sum(removal * removal), &work);
        let removal = removal * Quad::new(inverse_norm(square.extract(0usize)));
        let (rate, rest) = sigmoid(load(a_pre, at) + a0);
        let (decay, _) = sigmoid(load(w_pre, at) + w0);
        if place.is_inside {
            log_w[at] = decay * Quad::new(SCALE);
            k_tilde[at] = Quad::cast_from(key - key * rest * k_a);
            a[at] = -removal;
            b[at] = removal * rate;
        }
    }
}

/// The gradients of k, w and a, and the sums for those of w0, a0, k_k and k_a.
#[cube(launch)]
pub fn backward_kernel<F: Float>(
    k: &[Quad<F>],           // [rows, C]
    w_pre: &[Quad<F>],       // [rows, C]
    a_pre: &[Quad<F>],       // [rows, C]
    w0: &[Quad<F>],          // [C]
    a0: &[Quad<F>],          // [C]
    k_k: &[Quad<F>],         // [C]
    k_a: &[Quad<F>],         // [C]
    d_log_w: &[Quad<f32>],   // [rows, C]
    d_k_tilde: &[Quad<F>],   // [rows, C]
    d_a: &[Quad<f32>],       // [rows, C]
    d_b: &[Quad<f32>],       // [rows, C]
    d_k: &mut [Quad<F>],     // [rows, C]
    d_w_pre: &mut [Quad<F>], // [rows, C]
    d_a_pre: &mut [Quad<F>], // [rows, C]
    sums: &mut [Quad<f32>],  // [blocks, 4, C]
    work: Work,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = shared_sums(&work);
    let place = work.place();
    let column = place.column;
    let w0 = load(w0, column);
    let a0 = load(a0, column);
    let k_k = load(k_k, column);
    let k_a = load(k_a, column);
    let mut d_w0 = Quad::<f32>::new(0.0);
    let mut d_a0 = Quad::<f32>::new(0.0);
    let mut d_k_k = Quad::<f32>::new(0.0);
    let mut d_k_a = Quad::<f32>::new(0.0);
    for row in place.from..place.to {
        let at = row * work.across + column;
        let key = load(k, at);
        let removal = key * k_k;
        let (rate, rest) = sigmoid(load(a_pre, at) + a0);
        let (decay, still) = sigmoid(load(w_pre, at) + w0);
        let d_removed = d_b[at];
        let d_unit = d_removed * rate - d_a[at];
        let both = two_sums(removal * removal, removal * d_unit);
        let both = total(&mut tile, row % 2, both, &work);
        let normalised = Normalised::new(both.extract(0usize), both.extract(1usize));
        let d_removal = backward(&normalised, removal, d_unit);
        let d_tilde = load(d_k_tilde, at);
        let unit = removal * Quad::new(normalised.inverse);
        let d_rate = d_removed * unit + d_tilde * key * k_a;
        let d_rate = d_rate * rate * rest;
        let d_decay = d_log_w[at] * decay * still * Quad::new(SCALE);
        let one = Quad::<f32>::new(1.0);
        let d_key = d_removal * k_k + d_tilde * (one - rest * k_a);
        d_w0 += d_decay;
        d_a0 += d_rate;
        d_k_k = fma(d_removal, key, d_k_k);
        d_k_a -= d_tilde * key * rest;
        if place.is_inside {
            d_k[at] = Quad::cast_from(d_key);
            d_w_pre[at] = Quad::cast_from(d_decay);
            d_a_pre[at] = Quad::cast_from(d_rate);
        }
    }
    if place.is_inside {
        sums[work.sum_place(0usize, 4usize, column)] = d_w0;
        sums[work.sum_place(1usize, 4usize, column)] = d_a0;
        sums[work.sum_place(2usize, 4usize, column)] = d_k_k;
        sums[work.sum_place(3usize, 4usize, column)] = d_k_a;
    }
}
