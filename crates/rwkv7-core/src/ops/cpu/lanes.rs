//! Horizontal sums, four vectors at a time, and aligned scratch memory.

use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::bytemuck::Pod;

// Arrays of vectors are filled by loops: `core::array::from_fn` and `map` are not always inlined,
// and then are compiled without the vector instructions of the caller.

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
    for n in 0..4 {
        sums[n] = simd.reduce_sum_f32s(x[n]);
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

/// Scratch memory of one thread, reused by all its heads.
#[derive(Default)]
pub(crate) struct Scratch(Vec<f32>);

impl Scratch {
    const LINE: usize = 16;

    /// `len` zeros, aligned to a cache line.
    pub(crate) fn zeros(&mut self, len: usize) -> &mut [f32] {
        self.0.clear();
        self.0.resize(len + Self::LINE, 0.0);
        let start = self.0.as_ptr().align_offset(4 * Self::LINE).min(Self::LINE);
        &mut self.0[start..start + len]
    }
}

/// Takes the first `len` elements off `rest`.
pub(crate) fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (head, tail) = core::mem::take(rest).split_at_mut(len);
    *rest = tail;
    head
}

/// `N` consecutive rows of `width` elements, from row `at`.
#[inline(always)]
pub(crate) fn rows<const N: usize>(array: &[f32], at: usize, width: usize) -> [&[f32]; N] {
    let array = &array[at * width..][..N * width];
    let mut rows: [&[f32]; N] = [&[]; N];
    for n in 0..N {
        rows[n] = &array[n * width..][..width];
    }
    rows
}

/// [`rows`] as vectors; `width` is a multiple of the lane count.
#[inline(always)]
pub(crate) fn vector_rows<S: Simd, const N: usize>(
    array: &[f32],
    at: usize,
    width: usize,
) -> [&[S::f32s]; N] {
    let rows = rows::<N>(array, at, width);
    let mut vectors: [&[S::f32s]; N] = [&[]; N];
    for n in 0..N {
        vectors[n] = &S::as_simd_f32s(rows[n]).0[..width / S::F32_LANES];
    }
    vectors
}

/// `target = source`, without the call that `copy_from_slice` makes.
#[inline(always)]
pub(crate) fn copy<S: Simd>(simd: S, source: &[f32], target: &mut [f32]) {
    let target = &mut target[..source.len()];
    let (source, source_tail) = S::as_simd_f32s(source);
    let (target, target_tail) = S::as_mut_simd_f32s(target);
    for (from, to) in source.iter().zip(target) {
        *to = *from;
    }
    if !source_tail.is_empty() {
        simd.partial_store_f32s(target_tail, simd.partial_load_f32s(source_tail));
    }
}

/// Starts loading `row` into the cache.
#[inline(always)]
pub(crate) fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = row.as_ptr();
        for n in (0..row.len()).step_by(Scratch::LINE) {
            // SAFETY: a prefetch reads and writes nothing, and every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(n).cast()) };
        }
        // The row need not begin with a cache line.
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(row.len()).wrapping_sub(1).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}
