//! The replay of a chunk from its start. A unit owns a row of the state.

use cubecl::prelude::*;

use super::row::{SLOT_B, load_keys, load_own, read_row, step};
use super::tile::{Quad, token};
use super::{Plan, TILE};

/// `sa_t = S_{t-1} a_t` of every token, each chunk replayed from its start; `CUBE_POS_Y` counts chunks, `CUBE_POS_Z`
/// blocks of rows.
#[cube(launch)]
pub(super) fn replay_kernel<F: Float>(
    keys: Sequence<Box<[Quad<F>]>>, // r, k, a, b: [batch, time, heads, key]
    log_w: &[Quad<f32>],            // [batch, time, heads, key]
    v: &[F],                        // [batch, time, heads, value]
    starts: &[Quad<f32>],           // [batch, heads, chunks, value, key]
    scratch: &mut [f32],            // [2, batch, time, heads, value]: sa, then room for dsa
    time: usize,
    heads: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = comptime![plan.key / 4];
    let slots = comptime![SLOT_B + 1];
    let mut tile = Shared::<[Quad<f32>]>::new_slice(comptime![slots * TILE * width]);
    let mut own = Shared::<[f32]>::new_slice(comptime![TILE * plan.lanes]);
    let mut row = Array::<Quad<f32>>::new(width);

    let i = CUBE_POS_Z as usize * plan.lanes + UNIT_POS_X as usize;
    let chunk = CUBE_POS_X as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    read_row(&mut row, starts, chunk * plan.value + i, plan);

    let mut from = CUBE_POS_Y as usize * plan.chunk;
    let end = (from + plan.chunk).min(time);
    while from < end {
        let count = (end - from).min(TILE);
        sync_cube();
        load_keys::<F>(&keys, log_w, &mut tile, slots, plan, from, time, heads);
        load_own::<F>(v, 0usize, &mut own, 0usize, plan, i, from, time, heads);
        sync_cube();
        for t in 0..count {
            let at = token(from + t, time, heads) * plan.value + i;
            scratch[at] = step(
                &mut row,
                &tile,
                t * width,
                own[t * plan.lanes + UNIT_POS_X as usize],
                plan,
            );
        }
        from += TILE;
    }
}
