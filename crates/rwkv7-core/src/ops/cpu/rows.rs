//! Blocks of rows shared out over threads, and per-channel sums over all rows.
//!
//! The cut into blocks depends on the shape alone. Every block leaves its own per-channel sums in `f32`;
//! they are added up block after block in `f64`. So a result is the same whatever the number of threads.

use core::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Shapes up to this many elements stay on the calling thread.
const SERIAL_ELEMENTS: usize = 16_384;

/// What one block of rows computes.
pub(crate) trait Kernel<const O: usize>: Sync {
    /// Writes the part of the outputs that belongs to `rows`, and adds to `sums`, which starts at 0.
    fn run<S: Simd>(&self, simd: S, rows: Range<usize>, outputs: [&mut [f32]; O], sums: &mut [f32]);
}

/// How `rows` rows of `width` elements are cut.
#[derive(Clone, Copy)]
struct Cut {
    block: usize,
    width: usize,
    sums: usize,
    parallel: bool,
}

impl Cut {
    /// Of rows that cost `work` elements each and whose outputs have `width`.
    fn new(rows: usize, work: usize, width: usize) -> Self {
        let shortest = (4096 / work.max(1)).max(1);
        let longest = (32_768 / work.max(1)).max(1);
        Self {
            block: (rows / 32).clamp(shortest, longest),
            width,
            sums: 0,
            parallel: rows * work > SERIAL_ELEMENTS,
        }
    }
}

/// Runs a kernel that has no per-channel sums; returns its outputs, each `[rows, width]`.
pub(crate) fn run<const O: usize>(
    kernel: &impl Kernel<O>,
    rows: usize,
    width: usize,
) -> [Vec<f32>; O] {
    run_wide(kernel, rows, width, width)
}

/// As [`run`], where a row costs `work` elements but its outputs have only `width`.
pub(crate) fn run_wide<const O: usize>(
    kernel: &impl Kernel<O>,
    rows: usize,
    work: usize,
    width: usize,
) -> [Vec<f32>; O] {
    let mut outputs = zeros(rows * width);
    let cut = Cut::new(rows, work, width);
    run_cut(kernel, cut, 0..rows, views(&mut outputs), &mut []);
    outputs
}

/// As [`run`], on elements of arrays that exist.
pub(crate) fn run_in_place<const O: usize>(kernel: &impl Kernel<O>, arrays: [&mut [f32]; O]) {
    let elements = arrays.first().map_or(0, |array| array.len());
    run_cut(
        kernel,
        Cut::new(elements, 1, 1),
        0..elements,
        arrays,
        &mut [],
    );
}

/// Runs a kernel that leaves `T` sums over the rows, which lie one after another in the kernel's `sums`; returns its outputs,
/// each `[rows, width]`, and the sums, each `[width]`.
pub(crate) fn run_with_sums<const O: usize, const T: usize>(
    kernel: &impl Kernel<O>,
    rows: usize,
    width: usize,
) -> ([Vec<f32>; O], [Vec<f32>; T]) {
    let shortest = (4096 / width.max(1)).clamp(8, 128);
    let longest = (32_768 / width.max(1)).clamp(16, 128);
    let sums = T * width;
    let cut = Cut {
        block: (rows / 32).clamp(shortest, longest),
        width,
        sums,
        parallel: rows * width > SERIAL_ELEMENTS,
    };
    let mut outputs = zeros(rows * width);
    let mut partial = vec![0.0; rows.div_ceil(cut.block) * sums];
    run_cut(kernel, cut, 0..rows, views(&mut outputs), &mut partial);
    let total = if partial.len() == sums {
        partial
    } else {
        total_of(&partial, sums)
    };
    let part = |t: usize| total[t * width..][..width].to_vec();
    (outputs, core::array::from_fn(part))
}

/// The sum of all blocks' sums.
fn total_of(partial: &[f32], sums: usize) -> Vec<f32> {
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
    total.into_iter().map(|sum: f64| sum as f32).collect()
}

fn zeros<const O: usize>(len: usize) -> [Vec<f32>; O] {
    core::array::from_fn(|_| vec![0.0; len])
}

fn views<const O: usize>(arrays: &mut [Vec<f32>; O]) -> [&mut [f32]; O] {
    arrays.each_mut().map(Vec::as_mut_slice)
}

/// Both parts of arrays that are cut at the same element.
fn split_at<const O: usize>(
    arrays: [&mut [f32]; O],
    element: usize,
) -> ([&mut [f32]; O], [&mut [f32]; O]) {
    let mut tails: [&mut [f32]; O] = core::array::from_fn(|_| Default::default());
    let mut tail = tails.iter_mut();
    let heads = arrays.map(|array| {
        let (head, rest) = array.split_at_mut(element);
        if let Some(tail) = tail.next() {
            *tail = rest;
        }
        head
    });
    (heads, tails)
}

/// Halves the rows at a block boundary until one block is left.
fn run_cut<const O: usize, K: Kernel<O>>(
    kernel: &K,
    cut: Cut,
    rows: Range<usize>,
    outputs: [&mut [f32]; O],
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
    let (head, tail) = split_at(outputs, (middle - rows.start) * cut.width);
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

struct Block<'a, K, const O: usize> {
    kernel: &'a K,
    rows: Range<usize>,
    outputs: [&'a mut [f32]; O],
    sums: &'a mut [f32],
}

impl<K: Kernel<O>, const O: usize> WithSimd for Block<'_, K, O> {
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
