//! Horizontal sums of four vectors at a time.

use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::bytemuck::Pod;

/// `[sum(x[0]), sum(x[1]), sum(x[2]), sum(x[3])]`.
#[inline(always)]
pub(crate) fn sum4<S: Simd>(simd: S, x: [S::f32s; 4]) -> [f32; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use core::any::Any;
        use pulp::x86::{V3, V4};
        // The downcasts are resolved at compile time: `S` is a type parameter.
        if let Some(simd) = (&simd as &dyn Any).downcast_ref::<V4>() {
            return x86::sum4_v4(*simd, cast4(x));
        }
        if let Some(simd) = (&simd as &dyn Any).downcast_ref::<V3>() {
            return x86::sum4_v3(*simd, cast4(x));
        }
    }
    let mut sums = [0.0; 4];
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum = simd.reduce_sum_f32s(x);
    }
    sums
}

/// Reinterprets vectors of a generic type as those of the instruction set it stands for.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn cast4<T: Pod, U: Pod>(x: [T; 4]) -> [U; 4] {
    use pulp::bytemuck::cast;
    [cast(x[0]), cast(x[1]), cast(x[2]), cast(x[3])]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{__m128, __m256, __m512};
    use pulp::x86::{V3, V4};

    #[inline(always)]
    pub(super) fn sum4_v4(simd: V4, x: [__m512; 4]) -> [f32; 4] {
        let f = simd.avx512f;
        // A 4x4 transpose-and-add inside each 128-bit lane.
        let x01 = f._mm512_add_ps(
            f._mm512_unpacklo_ps(x[0], x[1]),
            f._mm512_unpackhi_ps(x[0], x[1]),
        );
        let x23 = f._mm512_add_ps(
            f._mm512_unpacklo_ps(x[2], x[3]),
            f._mm512_unpackhi_ps(x[2], x[3]),
        );
        let sum = f._mm512_add_ps(
            f._mm512_shuffle_ps::<0b01_00_01_00>(x01, x23),
            f._mm512_shuffle_ps::<0b11_10_11_10>(x01, x23),
        );
        let halves: [__m256; 2] = pulp::cast(sum);
        add_lanes(*simd, simd.avx._mm256_add_ps(halves[0], halves[1]))
    }

    #[inline(always)]
    pub(super) fn sum4_v3(simd: V3, x: [__m256; 4]) -> [f32; 4] {
        let f = simd.avx;
        let x01 = f._mm256_add_ps(
            f._mm256_unpacklo_ps(x[0], x[1]),
            f._mm256_unpackhi_ps(x[0], x[1]),
        );
        let x23 = f._mm256_add_ps(
            f._mm256_unpacklo_ps(x[2], x[3]),
            f._mm256_unpackhi_ps(x[2], x[3]),
        );
        let sum = f._mm256_add_ps(
            f._mm256_shuffle_ps::<0b01_00_01_00>(x01, x23),
            f._mm256_shuffle_ps::<0b11_10_11_10>(x01, x23),
        );
        add_lanes(simd, sum)
    }

    #[inline(always)]
    fn add_lanes(simd: V3, x: __m256) -> [f32; 4] {
        let halves: [__m128; 2] = pulp::cast(x);
        pulp::cast(simd.sse._mm_add_ps(halves[0], halves[1]))
    }
}
