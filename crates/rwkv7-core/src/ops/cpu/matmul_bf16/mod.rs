//! Matrix products whose factors are rounded to bf16, with sums in f32, by the processor's own instructions.
//!
//! As in every fast product the factors are first copied into panels, here rounded on the way: of the left factor
//! [`ROWS`] rows each, of the right one [`COLUMNS`] columns, with two neighbours in depth in one word. The [`kernel`]
//! multiplies two panels. What a result depends on is its shape alone, not the number of threads.

mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use core::ops::Range;

use pulp::Arch;
use rayon::{current_num_threads, prelude::*};

pub use kernel::is_available;
use kernel::{COLUMNS, ROWS, multiply};
use pack::Pack;

/// Depth whose products are summed before they are added to the result; even.
const DEPTH: usize = 1024;
/// Columns of the right factor that are packed at a time: with all of [`DEPTH`] 4 MiB, shared by all threads.
const WIDTH: usize = 2048;
/// Most rows of the left factor that a thread packs at a time: 384 KiB, for its level-2 cache.
const HEIGHT: usize = 16 * ROWS;

/// A matrix in row-major order, or the transpose of one.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [f32], [rows, columns]: [usize; 2]) -> Self {
        debug_assert_eq!(data.len(), rows * columns);
        Self {
            data,
            rows,
            columns,
            transposed: false,
        }
    }

    pub fn rows(self) -> usize {
        self.rows
    }

    pub fn columns(self) -> usize {
        self.columns
    }

    pub fn transpose(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }
}

/// `left right` in row-major order; only where it [`is_available`].
pub fn product(left: Matrix, right: Matrix) -> Vec<f32> {
    let (rows, depth, columns) = (left.rows, left.columns, right.columns);
    debug_assert_eq!(right.rows, depth);
    let mut out = vec![0.0; rows * columns];
    if out.is_empty() {
        return out;
    }
    let right = right.transpose();
    let height = height(rows);
    let mut packed = Vec::new();
    for columns_here in blocks(columns, WIDTH) {
        for depth_here in blocks(depth, DEPTH) {
            let pairs = depth_here.len().div_ceil(2);
            let panels = columns_here.len().div_ceil(COLUMNS);
            packed.resize(panels * pairs, [0; COLUMNS]);
            packed
                .par_chunks_mut(pairs)
                .enumerate()
                .for_each(|(panel, packed)| {
                    let first = columns_here.start + panel * COLUMNS;
                    Arch::new().dispatch(Pack {
                        matrix: right,
                        rows: first..columns_here.end.min(first + COLUMNS),
                        depth: depth_here.clone(),
                        panels: packed,
                    });
                });
            let job = Job {
                left,
                depth: depth_here,
                right: &packed,
                columns: columns_here.clone(),
                stride: columns,
            };
            out.par_chunks_mut(height * columns)
                .enumerate()
                .for_each_init(Vec::new, |buffer, (block, out)| {
                    job.rows(block * height, out, buffer);
                });
        }
    }
    out
}

/// A part of the depth, and of the columns.
struct Job<'a> {
    left: Matrix<'a>,
    depth: Range<usize>,
    right: &'a [[u32; COLUMNS]],
    columns: Range<usize>,
    /// From one row of the result to the next.
    stride: usize,
}

impl Job<'_> {
    /// Adds to the rows of the result from `first` on; the first part of the depth replaces what is there.
    fn rows(&self, first: usize, out: &mut [f32], packed: &mut Vec<[u32; ROWS]>) {
        let rows = out.len() / self.stride;
        let pairs = self.depth.len().div_ceil(2);
        packed.resize(rows.div_ceil(ROWS) * pairs, [0; ROWS]);
        Arch::new().dispatch(Pack {
            matrix: self.left,
            rows: first..first + rows,
            depth: self.depth.clone(),
            panels: packed,
        });
        for (i, right) in self.right.chunks(pairs).enumerate() {
            let column = self.columns.start + i * COLUMNS;
            let columns = COLUMNS.min(self.columns.end - column);
            for (left, out) in packed.chunks(pairs).zip(out.chunks_mut(ROWS * self.stride)) {
                let out = Tile {
                    data: &mut out[column..],
                    stride: self.stride,
                    columns,
                };
                multiply(left, right, out, self.depth.start > 0);
            }
        }
    }
}

/// A part of the result: its rows start `stride` apart.
struct Tile<'a> {
    data: &'a mut [f32],
    stride: usize,
    columns: usize,
}

impl Tile<'_> {
    /// Its rows; [`ROWS`] or fewer.
    fn rows(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let columns = self.columns;
        let rows = self.data.chunks_mut(self.stride).take(ROWS);
        rows.map(move |row| &mut row[..columns])
    }
}

/// Rows a task gets: as many blocks as make all threads end together.
fn height(rows: usize) -> usize {
    let threads = current_num_threads();
    let rounds = rows.div_ceil(threads * HEIGHT);
    rows.div_ceil(threads * rounds).next_multiple_of(ROWS)
}

fn blocks(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length)
        .step_by(size)
        .map(move |start| start..length.min(start + size))
}
