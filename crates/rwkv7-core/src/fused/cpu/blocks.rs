//! Blocks of rows shared out over threads, and per-channel sums over all rows.
//!
//! The cut into blocks depends on the shape alone. Every block leaves its own per-channel sums in `f32`;
//! they are added up block after block in `f64`. So a result is the same whatever the number of threads.

use core::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Shapes up to this many elements stay on the calling thread.
const SERIAL_ELEMENTS: usize = 16_384;

/// Output arrays that are cut at the same element.
pub(crate) trait Outputs: Send + Sized {
    fn split_at(self, element: usize) -> (Self, Self);
}

impl<const O: usize> Outputs for [&mut [f32]; O] {
    fn split_at(self, element: usize) -> (Self, Self) {
        let mut tails: [&mut [f32]; O] = core::array::from_fn(|_| Default::default());
        let mut tail = tails.iter_mut();
        let heads = self.map(|array| {
            let (head, rest) = array.split_at_mut(element);
            if let Some(tail) = tail.next() {
                *tail = rest;
            }
            head
        });
        (heads, tails)
    }
}

impl Outputs for Vec<&mut [f32]> {
    fn split_at(self, element: usize) -> (Self, Self) {
        self.into_iter()
            .map(|array| array.split_at_mut(element))
            .unzip()
    }
}

/// What one block of rows computes.
pub(crate) trait Kernel<O>: Sync {
    /// Writes the part of the outputs that belongs to `rows`, and adds to `sums`, which starts at 0.
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>, outputs: O, sums: &mut [f32]);
}

/// How `rows` rows of `width` elements are cut.
#[derive(Clone, Copy)]
struct Cut {
    block: usize,
    width: usize,
    sums: usize,
    parallel: bool,
}

/// Runs a kernel that has no per-channel sums. The outputs are `[rows, width]`.
pub(crate) fn run<O: Outputs>(kernel: &impl Kernel<O>, rows: usize, width: usize, outputs: O) {
    run_wide(kernel, rows, width, width, outputs);
}

/// As [`run`], where a row costs `work` elements but its outputs have only `width`.
pub(crate) fn run_wide<O: Outputs>(
    kernel: &impl Kernel<O>,
    rows: usize,
    work: usize,
    width: usize,
    outputs: O,
) {
    let shortest = (4096 / work.max(1)).max(1);
    let longest = (32_768 / work.max(1)).max(1);
    let cut = Cut {
        block: (rows / 32).clamp(shortest, longest),
        width,
        sums: 0,
        parallel: rows * work > SERIAL_ELEMENTS,
    };
    run_cut(kernel, cut, 0..rows, outputs, &mut []);
}

/// Runs a kernel that leaves sums over the rows; `totals` are consecutive parts of the kernel's `sums`.
pub(crate) fn run_with_sums<O: Outputs>(
    kernel: &impl Kernel<O>,
    rows: usize,
    width: usize,
    outputs: O,
    totals: &mut [&mut [f32]],
) {
    let shortest = (4096 / width.max(1)).clamp(8, 128);
    let longest = (32_768 / width.max(1)).clamp(16, 128);
    let sums: usize = totals.iter().map(|total| total.len()).sum();
    let cut = Cut {
        block: (rows / 32).clamp(shortest, longest),
        width,
        sums,
        parallel: rows * width > SERIAL_ELEMENTS,
    };
    let mut partial = vec![0.0; rows.div_ceil(cut.block) * sums];
    run_cut(kernel, cut, 0..rows, outputs, &mut partial);

    if partial.len() == sums {
        split_into(&partial, totals, |value| *value);
        return;
    }
    let mut total = vec![0.0; sums];
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for block in partial.chunks_exact(sums.max(1)) {
                for (total, value) in total.iter_mut().zip(block) {
                    *total += f64::from(*value);
                }
            }
        },
    );
    split_into(&total, totals, |value| *value as f32);
}

/// Fills the targets one after another.
fn split_into<T>(mut source: &[T], targets: &mut [&mut [f32]], convert: impl Fn(&T) -> f32) {
    for target in targets {
        let (values, rest) = source.split_at(target.len());
        source = rest;
        for (target, value) in target.iter_mut().zip(values) {
            *target = convert(value);
        }
    }
}

/// Halves the rows at a block boundary until one block is left.
fn run_cut<O: Outputs, K: Kernel<O>>(
    kernel: &K,
    cut: Cut,
    rows: Range<usize>,
    outputs: O,
    sums: &mut [f32],
) {
    let blocks = rows.len().div_ceil(cut.block);
    if blocks <= 1 {
        if blocks == 1 {
            Arch::new().dispatch(Block {
                kernel,
                rows,
                outputs,
                sums,
            });
        }
        return;
    }
    let middle = rows.start + blocks / 2 * cut.block;
    let (head, tail) = outputs.split_at((middle - rows.start) * cut.width);
    let (head_sums, tail_sums) = sums.split_at_mut(blocks / 2 * cut.sums);
    let first = || run_cut(kernel, cut, rows.start..middle, head, head_sums);
    let second = || run_cut(kernel, cut, middle..rows.end, tail, tail_sums);
    if cut.parallel {
        rayon::join(first, second);
    } else {
        first();
        second();
    }
}

struct Block<'a, O, K> {
    kernel: &'a K,
    rows: Range<usize>,
    outputs: O,
    sums: &'a mut [f32],
}

impl<O, K: Kernel<O>> WithSimd for Block<'_, O, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.kernel.run(simd, self.rows, self.outputs, self.sums);
    }
}

/// Row `row` of an array of rows of `width` elements.
#[inline(always)]
pub(crate) fn row(array: &[f32], row: usize, width: usize) -> &[f32] {
    &array[row * width..][..width]
}

/// As [`row`], mutable.
#[inline(always)]
pub(crate) fn row_mut(array: &mut [f32], row: usize, width: usize) -> &mut [f32] {
    &mut array[row * width..][..width]
}

/// Panics unless every named array has `expected` elements.
pub(crate) fn assert_len(expected: usize, arrays: &[(&str, usize)]) {
    for (name, found) in arrays {
        assert!(
            *found == expected,
            "array `{name}` must have {expected} elements, found {found}"
        );
    }
}
