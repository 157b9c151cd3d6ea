//! One row of the state, or of its gradient, in the registers of one unit: the kernels that go through time give each unit a
//! row, and no row needs another.

use cubecl::prelude::*;

use super::tile::{A, B, DZ, K, Quad, R, load, load_f32, token};
use super::{Plan, TILE};

// Slots of the tile, `[slots, TILE, key]`; without R and DZ it is shorter.
pub(super) const SLOT_W: usize = 0;
pub(super) const SLOT_K: usize = 1;
pub(super) const SLOT_A: usize = 2;
pub(super) const SLOT_B: usize = 3;
pub(super) const SLOT_R: usize = 4;
pub(super) const SLOT_DZ: usize = 5;

/// Loads the first `slots` slots of the tile with tokens `from..from + TILE`.
#[cube]
pub(super) fn load_keys<F: Float>(
    keys: &Sequence<Box<[Quad<F>]>>,
    log_w: &[Quad<f32>],
    tile: &mut Shared<[Quad<f32>]>,
    #[comptime] slots: usize,
    #[comptime] plan: Plan,
    from: usize,
    time: usize,
    heads: usize,
) {
    let width = comptime![plan.key / 4];
    load_f32(
        log_w, 0usize, true, tile, SLOT_W, width, plan, from, time, heads,
    );
    load::<F>(keys, K, tile, SLOT_K, width, plan, from, time, heads);
    load::<F>(keys, A, tile, SLOT_A, width, plan, from, time, heads);
    load::<F>(keys, B, tile, SLOT_B, width, plan, from, time, heads);
    if slots > SLOT_R {
        load::<F>(keys, R, tile, SLOT_R, width, plan, from, time, heads);
    }
    if slots > SLOT_DZ {
        load::<F>(keys, DZ, tile, SLOT_DZ, width, plan, from, time, heads);
    }
}

/// Reads row number `index` of `states`, `[.., key]`.
#[cube]
pub(super) fn read_row(
    row: &mut Array<Quad<f32>>,
    states: &[Quad<f32>],
    index: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime![plan.key / 4];
    #[unroll]
    for c in 0..width {
        row[c] = states[index * width + c];
    }
}

/// Writes row number `index` of `states`.
#[cube]
pub(super) fn write_row(
    row: &Array<Quad<f32>>,
    states: &mut [Quad<f32>],
    index: usize,
    #[comptime] plan: Plan,
) {
    let width = comptime![plan.key / 4];
    #[unroll]
    for c in 0..width {
        states[index * width + c] = row[c];
    }
}

/// Adds `x` times the vector at `at` of the tile.
#[cube]
pub(super) fn add(
    row: &mut Array<Quad<f32>>,
    x: f32,
    tile: &Shared<[Quad<f32>]>,
    at: usize,
    #[comptime] plan: Plan,
) {
    let x = Quad::<f32>::new(x);
    #[unroll]
    for c in 0..comptime![plan.key / 4] {
        row[c] = fma(x, tile[at + c], row[c]);
    }
}

/// Multiplies with the vector at `scale` of the tile, then adds `x` times the vector at `at`.
#[cube]
pub(super) fn scale_and_add(
    row: &mut Array<Quad<f32>>,
    tile: &Shared<[Quad<f32>]>,
    scale: usize,
    x: f32,
    at: usize,
    #[comptime] plan: Plan,
) {
    let x = Quad::<f32>::new(x);
    #[unroll]
    for c in 0..comptime![plan.key / 4] {
        row[c] = fma(row[c], tile[scale + c], x * tile[at + c]);
    }
}

/// The scalar product of a row with the vector at `at` of the tile.
#[cube]
pub(super) fn dot(
    row: &Array<Quad<f32>>,
    tile: &Shared<[Quad<f32>]>,
    at: usize,
    #[comptime] plan: Plan,
) -> f32 {
    let width = comptime![plan.key / 4];
    let mut sum = Quad::<f32>::new(0.0);
    #[unroll]
    for c in 0..width {
        sum = fma(row[c], tile[at + c], sum);
    }
    (sum.extract(0usize) + sum.extract(1usize)) + (sum.extract(2usize) + sum.extract(3usize))
}

/// Copies this unit's value, row `i`, of tokens `from..from + TILE` into `own` at `slot` (`[slots, TILE, lanes]`). No
/// other unit reads it: shared memory stands in for registers that a loop could index.
#[cube]
pub(super) fn load_own<F: Float>(
    source: &[F], // [batch, time, heads, value] from `offset` on
    offset: usize,
    own: &mut Shared<[f32]>,
    #[comptime] slot: usize,
    #[comptime] plan: Plan,
    i: usize,
    from: usize,
    time: usize,
    heads: usize,
) {
    let mut held = Array::<F>::new(TILE);
    #[unroll]
    for t in 0..TILE {
        held[t] = source[offset + token((from + t).min(time - 1), time, heads) * plan.value + i];
    }
    #[unroll]
    for t in 0..TILE {
        own[(slot * TILE + t) * plan.lanes + UNIT_POS_X as usize] = f32::cast_from(held[t]);
    }
}

/// One token of one row: `S ← S diag(w) + (S a) b + v k`; returns `S a`. `q` is the token's place in a slot.
#[cube]
pub(super) fn step(
    row: &mut Array<Quad<f32>>,
    tile: &Shared<[Quad<f32>]>,
    q: usize,
    v: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let slot = comptime![TILE * plan.key / 4];
    let sa = dot(&*row, tile, SLOT_A * slot + q, plan);
    scale_and_add(row, tile, SLOT_W * slot + q, v, SLOT_K * slot + q, plan);
    add(row, sa, tile, SLOT_B * slot + q, plan);
    sa
}
