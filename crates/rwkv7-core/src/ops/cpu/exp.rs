//! The decay `w = exp(log_w)`, vectorised.

use pulp::Simd;

use crate::simd::{lanes::Vector, math::exp};

/// `target = exp(source)`, as [`exp`].
#[inline(always)]
pub(crate) fn exp_row<S: Simd>(simd: S, source: &[f32], target: &mut [f32]) {
    let (source, source_tail) = S::as_simd_f32s(source);
    let (target, target_tail) = S::as_mut_simd_f32s(target);
    for (&value, y) in source.iter().zip(target) {
        *y = exp(Vector { simd, value }).value;
    }
    if !source_tail.is_empty() {
        let value = simd.partial_load_f32s(source_tail);
        simd.partial_store_f32s(target_tail, exp(Vector { simd, value }).value);
    }
}
