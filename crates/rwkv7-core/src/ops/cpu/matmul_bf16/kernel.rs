//! The product of two panels with AVX-512's bf16 instructions.

// The instructions, and the vectors in memory that they are given.
#![allow(unsafe_code)]

/// Rows of a panel of the left factor.
pub const ROWS: usize = 12;
/// Columns of a panel of the right factor.
pub const COLUMNS: usize = 32;

#[cfg(target_arch = "x86_64")]
pub use x86::{is_available, multiply};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{super::Tile, COLUMNS, ROWS};

    /// Floats in a vector.
    const LANES: usize = 16;

    /// Whether this processor multiplies in bf16.
    pub fn is_available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    /// Products of the rows of `left` with the columns of `right`, which have the same depth; added to `out`, or else
    /// instead of what is there.
    pub fn multiply(left: &[[u32; ROWS]], right: &[[u32; COLUMNS]], out: Tile, add: bool) {
        debug_assert!(is_available());
        // SAFETY: nothing calls this where it is not available.
        unsafe { tile(left, right, out, add) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tile(left: &[[u32; ROWS]], right: &[[u32; COLUMNS]], mut out: Tile, add: bool) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (left, right) in left.iter().zip(right) {
            let right = halves(right);
            for (sums, word) in sums.iter_mut().zip(left) {
                let word = bf16(_mm512_set1_epi32(word.cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], word, right[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], word, right[1]);
            }
        }
        for (row, sums) in out.rows().zip(sums) {
            if let Ok(row) = row.try_into() {
                store(row, sums, add);
            } else {
                let mut whole = [0.0; COLUMNS];
                store(&mut whole, sums, false);
                for (value, sum) in row.iter_mut().zip(whole) {
                    *value = if add { *value + sum } else { sum };
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn halves(words: &[u32; COLUMNS]) -> [__m512bh; 2] {
        // SAFETY: both halves of the 32 words.
        unsafe {
            [
                bf16(_mm512_loadu_si512(words.as_ptr().cast())),
                bf16(_mm512_loadu_si512(words.as_ptr().add(LANES).cast())),
            ]
        }
    }

    #[target_feature(enable = "avx512f")]
    fn store(row: &mut [f32; COLUMNS], sums: [__m512; 2], add: bool) {
        for (values, sum) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            let at = values.as_mut_ptr();
            // SAFETY: as many floats as a vector has.
            unsafe {
                let sum = if add {
                    _mm512_add_ps(_mm512_loadu_ps(at), sum)
                } else {
                    sum
                };
                _mm512_storeu_ps(at, sum);
            }
        }
    }

    /// The same bits.
    fn bf16(vector: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits of which any are valid.
        unsafe { core::mem::transmute(vector) }
    }
}

/// Whether this processor multiplies in bf16.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_available() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub fn multiply(_: &[[u32; ROWS]], _: &[[u32; COLUMNS]], _: super::Tile, _: bool) {
    unreachable!("this processor has no bf16 products");
}
