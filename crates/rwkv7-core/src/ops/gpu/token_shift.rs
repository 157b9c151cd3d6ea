//! Token shift with mixes: `out_m = h + (prev - h) μ_m`, where `prev` is `h` one token earlier.
//!
//! ```text
//! dh_t  = Σ_m dout_{m,t} (1 - μ_m) + dout_{m,t+1} μ_m
//! dlast = Σ_m dout_{m,0} μ_m
//! dμ_m  = Σ_{b,t} dout_{m,t} (prev_t - h_t)
//! ```
//!
//! A unit reads every token of its block once, and the one beside the block.

use cubecl::prelude::*;

use super::rows::{Work, load};

/// All outputs of a block of tokens.
#[cube(launch)]
pub fn forward_kernel<F: Float, N: Size>(
    h: &[Vector<F, N>],                         // [batch, time, C]
    last: &[Vector<F, N>],                      // [batch, C]
    mus: Sequence<Box<[Vector<F, N>]>>,         // C each
    mut outputs: Sequence<Box<[Vector<F, N>]>>, // [batch, time, C] each
    time: usize,
    work: Work,
    #[comptime] mixes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        let mut mu = Array::<Vector<f32, N>>::new(mixes);
        #[unroll]
        for m in 0..mixes {
            mu[m] = Vector::cast_from(mus[m][column]);
        }
        // Of a block that begins a sequence this is not the token before, and is not used.
        let mut previous = load(h, (place.from.max(1) - 1) * work.across + column);
        for row in place.from..place.to {
            let at = row * work.across + column;
            if row.is_multiple_of(time) {
                previous = load(last, row / time * work.across + column);
            }
            let now = load(h, at);
            let step = previous - now;
            #[unroll]
            for m in 0..mixes {
                let output = outputs.index_mut(m);
                output[at] = Vector::cast_from(fma(step, mu[m], now));
            }
            previous = now;
        }
    }
}

/// The gradients of h and last, and the sums for those of the mixes; from the last token of a block to the first.
#[cube(launch)]
pub fn backward_kernel<F: Float, N: Size>(
    h: &[Vector<F, N>],                       // [batch, time, C]
    last: &[Vector<F, N>],                    // [batch, C]
    mus: Sequence<Box<[Vector<F, N>]>>,       // C each
    gradients: Sequence<Box<[Vector<F, N>]>>, // [batch, time, C] each
    d_h: &mut [Vector<F, N>],                 // [batch, time, C]
    d_last: &mut [Vector<F, N>],              // [batch, C]
    sums: &mut [Vector<f32, N>],              // [blocks, mixes, C]
    time: usize,
    work: Work,
    #[comptime] mixes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = work.place();
    let column = place.column;
    if place.is_inside {
        let mut mu = Array::<Vector<f32, N>>::new(mixes);
        let mut d_mu = Array::<Vector<f32, N>>::new(mixes);
        #[unroll]
        for m in 0..mixes {
            mu[m] = Vector::cast_from(mus[m][column]);
            d_mu[m] = Vector::new(0.0);
        }
        // What the token after the present one says of the present one.
        let mut carried = Vector::<f32, N>::new(0.0);
        if place.to < work.rows && !place.to.is_multiple_of(time) {
            #[unroll]
            for m in 0..mixes {
                let d = Vector::<f32, N>::cast_from(gradients[m][place.to * work.across + column]);
                carried = fma(d, mu[m], carried);
            }
        }
        let mut now = load(h, (place.to - 1) * work.across + column);
        for n in 0..place.to - place.from {
            let row = place.to - 1 - n;
            let at = row * work.across + column;
            let is_first = row.is_multiple_of(time);
            // In memory, which may be the last token of another sequence.
            let before = load(h, (row.max(1) - 1) * work.across + column);
            let previous = if is_first {
                load(last, row / time * work.across + column)
            } else {
                before
            };
            let step = previous - now;
            let mut all = carried;
            let mut back = Vector::<f32, N>::new(0.0);
            #[unroll]
            for m in 0..mixes {
                let d = Vector::<f32, N>::cast_from(gradients[m][at]);
                d_mu[m] = fma(d, step, d_mu[m]);
                back = fma(d, mu[m], back);
                all += d;
            }
            d_h[at] = Vector::cast_from(all - back);
            carried = back;
            if is_first {
                d_last[row / time * work.across + column] = Vector::cast_from(back);
                carried = Vector::new(0.0);
            }
            now = before;
        }
        #[unroll]
        for m in 0..mixes {
            sums[work.sum_place(m, mixes, column)] = d_mu[m];
        }
    }
}
