//! The read of the states along the value side. A unit owns columns of the state.

use cubecl::prelude::*;

use super::column::{SLOT_DY, SLOT_SA, SLOT_V, add, dot, key, read_columns, scale_and_add};
use super::tile::{B, K, Quad, load, load_f32, token};
use super::{Plan, TILE};

/// `z_t = x_t S_t` with the state after token t; in the tile, x takes the place of dy. `CUBE_POS_Y` counts
/// chunks, `CUBE_POS_Z` blocks of columns.
#[cube(launch)]
pub(super) fn read_kernel<F: Float, N: Size>(
    keys: Sequence<Box<[Vector<F, N>]>>, // r, k, a, b: [batch, time, heads, key]
    log_w: &[Vector<f32, N>],            // [batch, time, heads, key]
    values: Sequence<Box<[Quad<F>]>>,    // x, v: [batch, time, heads, value]
    scratch: &[Quad<f32>],               // [2, batch, time, heads, value]: sa first
    starts: &[Vector<f32, N>],           // [batch, heads, chunks, value, key]
    z: &mut [Vector<F, N>],              // [batch, time, heads, key]
    time: usize,
    heads: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = comptime![plan.value / 4];
    let slot = comptime![TILE * width];
    let mut tile = Shared::<[Quad<f32>]>::new_slice(comptime![3 * TILE * width]);
    let mut columns = Array::<Vector<f32, N>>::new(plan.value);

    let j = CUBE_POS_Z as usize * plan.lanes + UNIT_POS_X as usize;
    let chunk = CUBE_POS_X as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    let across = comptime![plan.key / plan.columns];
    let stride = CUBE_COUNT_X as usize * time * across;
    read_columns::<N>(&mut columns, starts, chunk, j, plan);

    let mut from = CUBE_POS_Y as usize * plan.chunk;
    let end = (from + plan.chunk).min(time);
    while from < end {
        let count = (end - from).min(TILE);
        sync_cube();
        load_f32(
            scratch, 0usize, false, &mut tile, SLOT_SA, width, plan, from, time, heads,
        );
        load::<F>(
            &values, 1usize, &mut tile, SLOT_V, width, plan, from, time, heads,
        );
        load::<F>(
            &values, 0usize, &mut tile, SLOT_DY, width, plan, from, time, heads,
        );
        sync_cube();
        for t in 0..count {
            let q = t * width;
            let at = token(from + t, time, heads) * across + j;
            let k = key::<F, N>(&keys, K, plan, stride, at);
            let b = key::<F, N>(&keys, B, plan, stride, at);
            let w = Vector::<f32, N>::exp(log_w[at]);
            scale_and_add::<N>(&mut columns, w, &tile, SLOT_SA * slot + q, b, plan);
            add::<N>(&mut columns, &tile, SLOT_V * slot + q, k, plan);
            z[at] = Vector::<F, N>::cast_from(dot::<N>(&columns, &tile, SLOT_DY * slot + q, plan));
        }
        from += TILE;
    }
}
