//! One head's view of the arrays, and the loop over batch rows and heads.

// All heads write into the same output arrays at once, each its own rows.
#![allow(unsafe_code)]

use core::marker::PhantomData;

use pulp::Simd;
use rayon::prelude::*;

use super::dims::Dims;
use super::scratch::{Scratch, copy, prefetch};

/// Batch row and head of one task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// `batch_row * heads + head`.
    pub(crate) index: usize,
    batch: usize,
    head: usize,
}

/// One head's rows of a `[batch, time, heads, width]` array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a> {
    data: &'a [f32],
    start: usize,
    stride: usize,
    time: usize,
    pub(crate) width: usize,
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(dims: &Dims, head: Head, data: &'a [f32], width: usize) -> Self {
        let stride = dims.heads * width;
        let start = head.batch * dims.time * stride + head.head * width;
        Self {
            data,
            start,
            stride,
            time: dims.time,
            width,
        }
    }

    #[inline(always)]
    pub(crate) fn row(&self, t: usize) -> &'a [f32] {
        &self.data[self.start + t * self.stride..][..self.width]
    }

    /// Asks for the row of token `t`, if there is one. The rows of a head lie a whole row of
    /// heads apart, which the processor does not foresee.
    #[inline(always)]
    pub(crate) fn prefetch(&self, t: usize) {
        if t < self.time {
            prefetch(self.row(t));
        }
    }

    /// Copies the tokens `[from, from + count)` into the first rows of `target`, whose rows are
    /// `padded` wide, and clears the other rows.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(
        &self,
        simd: S,
        from: usize,
        count: usize,
        target: &mut [f32],
        padded: usize,
    ) {
        for (n, row) in target.chunks_exact_mut(padded).enumerate() {
            if n < count {
                copy(simd, self.row(from + n), row);
            } else {
                row.fill(0.0);
            }
        }
    }
}

/// An output array that the tasks of all heads write at once, each its own rows.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    data: *mut f32,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` is an exclusive borrow of plain floats; `OutputTokens::row` and
// `Output::state` only hand out ranges that belong to one head, and a head is one task.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            life: PhantomData,
        }
    }

    /// This head's `size` elements of a `[batch, heads, size]` array.
    ///
    /// # Safety
    /// Only the task of `head` may call this, once, for a given array.
    pub(crate) unsafe fn state(self, head: Head, size: usize) -> &'a mut [f32] {
        let start = head.index * size;
        assert!(
            start + size <= self.len,
            "a head's state lies inside its array"
        );
        // SAFETY: in bounds, and the ranges of two heads do not overlap.
        unsafe { core::slice::from_raw_parts_mut(self.data.add(start), size) }
    }

    /// This head's rows of a `[batch, time, heads, width]` array.
    ///
    /// # Safety
    /// Only the task of `head` may call this, once, for a given array.
    pub(crate) unsafe fn tokens(self, dims: &Dims, head: Head, width: usize) -> OutputTokens<'a> {
        let stride = dims.heads * width;
        let start = head.batch * dims.time * stride + head.head * width;
        OutputTokens {
            output: self,
            start,
            stride,
            time: dims.time,
            width,
        }
    }
}

/// One head's rows of an output array.
pub(crate) struct OutputTokens<'a> {
    output: Output<'a>,
    start: usize,
    stride: usize,
    time: usize,
    width: usize,
}

impl OutputTokens<'_> {
    #[inline(always)]
    pub(crate) fn row(&mut self, t: usize) -> &mut [f32] {
        let start = self.start + t * self.stride;
        assert!(
            start + self.width <= self.output.len,
            "a token lies inside its array"
        );
        // SAFETY: in bounds; rows of two heads or two tokens do not overlap, and `&mut self`
        // lends one row at a time.
        unsafe { core::slice::from_raw_parts_mut(self.output.data.add(start), self.width) }
    }

    /// Asks for the row of token `t`, if there is one.
    #[inline(always)]
    pub(crate) fn prefetch(&mut self, t: usize) {
        if t < self.time {
            prefetch(self.row(t));
        }
    }

    /// Copies the first `count` rows of `source`, `padded` wide, to the tokens from `from`.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(
        &mut self,
        simd: S,
        from: usize,
        count: usize,
        source: &[f32],
        padded: usize,
    ) {
        for (n, row) in source.chunks_exact(padded).take(count).enumerate() {
            let width = self.width;
            copy(simd, &row[..width], self.row(from + n));
        }
    }
}

/// Below this number of state elements times tokens a call stays on its thread.
const PARALLEL_WORK: usize = 1 << 18;

/// Runs `task` for every batch row and head, in parallel when there is enough work.
pub(crate) fn for_each_head(dims: &Dims, task: impl Fn(&mut Scratch, Head) + Sync + Send) {
    let count = dims.batch * dims.heads;
    let head = |index| Head {
        index,
        batch: index / dims.heads,
        head: index % dims.heads,
    };
    if count < 2 || count * dims.time * dims.state() < PARALLEL_WORK {
        let mut scratch = Scratch::default();
        (0..count).for_each(|index| task(&mut scratch, head(index)));
    } else {
        (0..count)
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, index| {
                task(scratch, head(index))
            });
    }
}
