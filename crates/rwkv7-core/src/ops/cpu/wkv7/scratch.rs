//! Scratch memory of one thread, rows in it, and how rows get there and back.

// Arrays of rows are filled by loops: `core::array::from_fn` and `map` are not always inlined, and then are compiled without
// the vector instructions of the caller.

use pulp::Simd;

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
#[allow(unsafe_code)]
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
