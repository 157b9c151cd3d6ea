//! Columns of the state, or of its gradient, in the registers of one unit: the kernels that go through one chunk give each
//! unit some columns. With `sa` and `dsa` known no column needs another, and no chunk needs another.

use cubecl::prelude::*;

use super::Plan;
use super::tile::{Quad, part};

// Slots of the tile, `[slots, TILE, value]`.
pub(super) const SLOT_SA: usize = 0;
pub(super) const SLOT_V: usize = 1;
pub(super) const SLOT_DY: usize = 2;
pub(super) const SLOT_DSA: usize = 3;
pub(super) const SLOT_X: usize = 4;

/// Reads the unit's columns, `j N..`, of state number `index` of `states`, `[.., value, key]`.
#[cube]
pub(super) fn read_columns<N: Size>(
    columns: &mut Array<Vector<f32, N>>,
    states: &[Vector<f32, N>],
    index: usize,
    j: usize,
    #[comptime] plan: Plan,
) {
    let across = comptime![plan.key / plan.columns];
    #[unroll]
    for i in 0..plan.value {
        columns[i] = states[(index * plan.value + i) * across + j];
    }
}

/// The scalar product of each column with the vector at `at` of the tile. Four sums, so that a multiplication need not
/// wait for the one before.
#[cube]
pub(super) fn dot<N: Size>(
    columns: &Array<Vector<f32, N>>,
    tile: &Shared<[Quad<f32>]>,
    at: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let width = comptime![plan.value / 4];
    let mut sums = Array::<Vector<f32, N>>::new(4usize);
    #[unroll]
    for l in 0..4usize {
        sums[l] = Vector::new(0.0);
    }
    #[unroll]
    for c in 0..width {
        let x = tile[at + c];
        #[unroll]
        for l in 0..4usize {
            sums[l] = fma(columns[4 * c + l], Vector::new(x.extract(l)), sums[l]);
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Adds the outer product of the vector at `at` of the tile and `x`, after multiplying the columns with `scale`.
#[cube]
pub(super) fn scale_and_add<N: Size>(
    columns: &mut Array<Vector<f32, N>>,
    scale: Vector<f32, N>,
    tile: &Shared<[Quad<f32>]>,
    at: usize,
    x: Vector<f32, N>,
    #[comptime] plan: Plan,
) {
    let width = comptime![plan.value / 4];
    #[unroll]
    for c in 0..width {
        let y = tile[at + c];
        #[unroll]
        for l in 0..4usize {
            columns[4 * c + l] = fma(columns[4 * c + l], scale, Vector::new(y.extract(l)) * x);
        }
    }
}

/// Adds the outer product of the vector at `at` of the tile and `x`.
#[cube]
pub(super) fn add<N: Size>(
    columns: &mut Array<Vector<f32, N>>,
    tile: &Shared<[Quad<f32>]>,
    at: usize,
    x: Vector<f32, N>,
    #[comptime] plan: Plan,
) {
    let width = comptime![plan.value / 4];
    #[unroll]
    for c in 0..width {
        let y = tile[at + c];
        #[unroll]
        for l in 0..4usize {
            columns[4 * c + l] = fma(Vector::new(y.extract(l)), x, columns[4 * c + l]);
        }
    }
}

/// The unit's columns of key tensor `which`.
#[cube]
pub(super) fn key<F: Float, N: Size>(
    keys: &Sequence<Box<[Vector<F, N>]>>,
    #[comptime] which: usize,
    #[comptime] plan: Plan,
    stride: usize,
    at: usize,
) -> Vector<f32, N> {
    Vector::cast_from(part::<Vector<F, N>>(keys, which, plan.packed, stride, at))
}
