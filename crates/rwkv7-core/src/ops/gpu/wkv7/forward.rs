//! The forward pass: y and the last state, and the state before every chunk. A unit owns a row of the state.

use cubecl::prelude::*;

use super::row::{SLOT_R, dot, load_keys, load_own, read_row, step, write_row};
use super::tile::{Quad, token};
use super::{Plan, TILE};

/// Forward over the whole sequence; `CUBE_POS_Y` counts blocks of `lanes` rows.
#[cube(launch)]
pub(super) fn forward_kernel<F: Float>(
    keys: Sequence<Box<[Quad<F>]>>, // r, k, a, b: [batch, time, heads, key]
    log_w: &[Quad<f32>],            // [batch, time, heads, key]
    v: &[F],                        // [batch, time, heads, value]
    s0: &[Quad<f32>],               // [batch, heads, value, key]
    y: &mut [F],                    // [batch, time, heads, value]
    state: &mut [Quad<f32>],        // [batch, heads, value, key]
    mut starts: ComptimeOption<&mut [Quad<f32>]>, // [batch, heads, chunks, value, key]
    time: usize,
    heads: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = comptime![plan.key / 4];
    let slot = comptime![TILE * width];
    let slots = comptime![SLOT_R + 1];
    let mut tile = Shared::<[Quad<f32>]>::new_slice(comptime![slots * TILE * width]);
    let mut own = Shared::<[f32]>::new_slice(comptime![TILE * plan.lanes]);
    let mut row = Array::<Quad<f32>>::new(width);

    let line = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * plan.lanes + UNIT_POS_X as usize;
    let chunks = time.div_ceil(plan.chunk);

    read_row(&mut row, s0, line * plan.value + i, plan);

    let mut from = 0usize;
    while from < time {
        let count = (time - from).min(TILE);
        #[comptime]
        match &mut starts {
            ComptimeOption::Some(starts) => {
                if from.is_multiple_of(plan.chunk) {
                    let chunk = line * chunks + from / plan.chunk;
                    #[unroll]
                    for c in 0..width {
                        starts[(chunk * plan.value + i) * width + c] = row[c];
                    }
                }
            }
            ComptimeOption::None => {}
        }
        sync_cube();
        load_keys::<F>(&keys, log_w, &mut tile, slots, plan, from, time, heads);
        load_own::<F>(v, 0usize, &mut own, 0usize, plan, i, from, time, heads);
        sync_cube();
        for t in 0..count {
            let at = token(from + t, time, heads) * plan.value + i;
            step(
                &mut row,
                &tile,
                t * width,
                own[t * plan.lanes + UNIT_POS_X as usize],
                plan,
            );
            y[at] = F::cast_from(dot(&row, &tile, SLOT_R * slot + t * width, plan));
        }
        from += TILE;
    }

    write_row(&row, state, line * plan.value + i, plan);
}
