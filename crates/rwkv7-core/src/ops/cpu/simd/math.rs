//! Vectorised exponential, sigmoid and hyperbolic tangent.

use pulp::Simd;

use super::vector::Vector;

/// `exp(x)` for `x <= 88`, relative error below 2e-7; 0 below -87.3; NaN stays NaN.
///
/// `exp(x) = 2^n exp(x - n ln 2)` with a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: Vector<S>) -> Vector<S> {
    // Adding ROUND leaves the integer `n + 127` in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.3;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];

    let lowest = x.like(LOWEST);
    let clamped = x.max(lowest);
    let rounded = clamped.mul_add(x.like(core::f32::consts::LOG2_E), x.like(ROUND));
    let n = rounded - x.like(ROUND);
    let f = n.mul_add(x.like(-LN2_HIGH), clamped);
    let f = n.mul_add(x.like(-LN2_LOW), f);

    let mut p = x.like(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = p.mul_add(f, x.like(*coefficient));
    }
    let p = p.mul_add(f * f, f) + x.like(1.0);

    let simd = x.simd;
    let bits = simd.transmute_u32s_f32s(rounded.value);
    let bits = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let scale = x.with(simd.transmute_f32s_u32s(bits));
    x.if_less(lowest, x.like(0.0), p * scale).or_nan_of(x)
}

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

/// `sigmoid(x)` and `1 - sigmoid(x)`, each with a relative error below 3e-7 (0 below 1e-38).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: Vector<S>) -> [Vector<S>; 2] {
    let one = x.like(1.0);
    let e = exp(-x.abs());
    let large = one / (one + e);
    let small = e * large;
    let zero = x.like(0.0);
    [x.if_less(zero, small, large), x.if_less(zero, large, small)]
}

/// `tanh(x)`, relative error below 3e-7 (Cephes `tanhf`).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: Vector<S>) -> Vector<S> {
    const POLYNOMIAL: [f32; 5] = [
        -5.704_988_7e-3,
        2.063_908_8e-2,
        -5.373_971_6e-2,
        1.333_144_2e-1,
        -3.333_328e-1,
    ];
    let size = x.abs();
    let one = x.like(1.0);

    let e = exp(-(size + size));
    let far = (one - e) / (one + e);
    let far = x.if_less(x.like(0.0), -far, far);

    let square = x * x;
    let mut p = x.like(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = p.mul_add(square, x.like(*coefficient));
    }
    let near = (p * square).mul_add(x, x);
    size.if_less(x.like(0.625), near, far)
}
