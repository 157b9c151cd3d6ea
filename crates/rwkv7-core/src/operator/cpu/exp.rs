//! The decay `w = exp(log_w)`, vectorised.

use pulp::Simd;

/// `target = exp(source)`, relative error below 2e-7; below `-87.3` the result is 0.
#[inline(always)]
pub(crate) fn exp_row<S: Simd>(simd: S, source: &[f32], target: &mut [f32]) {
    let (source, source_tail) = S::as_simd_f32s(source);
    let (target, target_tail) = S::as_mut_simd_f32s(target);
    for (x, y) in source.iter().zip(target) {
        *y = exp(simd, *x);
    }
    if !source_tail.is_empty() {
        let y = exp(simd, simd.partial_load_f32s(source_tail));
        simd.partial_store_f32s(target_tail, y);
    }
}

/// `exp(x) = 2^n exp(x - n ln 2)` with a degree 6 polynomial (Cephes `expf`).
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding ROUND leaves the integer `n + 127` in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.000_000_1e-1,
    ];

    let zero = simd.less_than_f32s(x, simd.splat_f32s(-87.3));
    let x = simd.min_f32s(
        simd.max_f32s(x, simd.splat_f32s(-87.3)),
        simd.splat_f32s(88.0),
    );
    let rounded = simd.mul_add_e_f32s(
        x,
        simd.splat_f32s(core::f32::consts::LOG2_E),
        simd.splat_f32s(ROUND),
    );
    let n = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    let f = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_HIGH), x);
    let f = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_LOW), f);

    let mut p = simd.splat_f32s(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = simd.mul_add_e_f32s(p, f, simd.splat_f32s(*coefficient));
    }
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(f, f), f);
    let p = simd.add_f32s(p, simd.splat_f32s(1.0));

    let bits = simd.transmute_u32s_f32s(rounded);
    let scale = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23)));
    simd.select_f32s(zero, simd.splat_f32s(0.0), simd.mul_f32s(p, scale))
}
