//! The backward pass through time. A unit owns a row of the gradient of the state; sums over rows are left to `gradient`.

use cubecl::prelude::*;

use super::row::{
    SLOT_A, SLOT_B, SLOT_DZ, SLOT_K, SLOT_R, SLOT_W, add, dot, load_keys, load_own, read_row,
    scale_and_add, write_row,
};
use super::tile::{Quad, token};
use super::{Plan, TILE};

/// Backward through the whole sequence: one unit owns row `i` of G, the gradient of the state.
///
/// ```text
/// G_t = Gn_t + dy_t r_tᵀ + x_tᵀ dz_t;  dv_t = G_t k_t;  dsa_t = G_t b_t;  Gn_{t-1} = G_t diag(w_t) + dsa_t a_tᵀ
/// ```
///
/// `d_starts` receives Gn before each chunk, and the given gradient of the last state as its last entry.
#[cube(launch)]
pub(super) fn backward_kernel<F: Float>(
    keys: Sequence<Box<[Quad<F>]>>, // r, k, a, b, (dz): [batch, time, heads, key]
    log_w: &[Quad<f32>],            // [batch, time, heads, key]
    values: Sequence<Box<[F]>>,     // dy, (x): [batch, time, heads, value]
    d_state: &[Quad<f32>],          // [batch, heads, value, key]
    dv: &mut [f32],                 // [batch, time, heads, value]
    scratch: &mut [f32],            // [2, batch, time, heads, value]: sa, dsa
    d_starts: &mut [Quad<f32>],     // [batch, heads, chunks + 1, value, key]
    time: usize,
    heads: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = comptime![plan.key / 4];
    let slot = comptime![TILE * width];
    let slots = comptime![if plan.read { SLOT_DZ + 1 } else { SLOT_R + 1 }];
    let mut tile = Shared::<[Quad<f32>]>::new_slice(comptime![slots * TILE * width]);
    let mut own = Shared::<[f32]>::new_slice(comptime![2 * TILE * plan.lanes]);
    let mut row = Array::<Quad<f32>>::new(width);

    let line = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * plan.lanes + UNIT_POS_X as usize;
    let chunks = time.div_ceil(plan.chunk);
    let stride = CUBE_COUNT_X as usize * time * plan.value;

    read_row(&mut row, d_state, line * plan.value + i, plan);
    let first = line * (chunks + 1);
    write_row(&row, d_starts, (first + chunks) * plan.value + i, plan);

    let tiles = time.div_ceil(TILE);
    for back in 0..tiles {
        let from = (tiles - 1 - back) * TILE;
        let count = (time - from).min(TILE);
        sync_cube();
        load_keys::<F>(&keys, log_w, &mut tile, slots, plan, from, time, heads);
        load_own::<F>(
            &values[0], 0usize, &mut own, 0usize, plan, i, from, time, heads,
        );
        if plan.read {
            if plan.packed {
                load_own::<F>(
                    &values[0], stride, &mut own, 1usize, plan, i, from, time, heads,
                );
            } else {
                load_own::<F>(
                    &values[1], 0usize, &mut own, 1usize, plan, i, from, time, heads,
                );
            }
        }
        sync_cube();
        for last in 0..count {
            let t = count - 1 - last;
            let q = t * width;
            let at = token(from + t, time, heads) * plan.value + i;
            let dy = own[t * plan.lanes + UNIT_POS_X as usize];
            add(&mut row, dy, &tile, SLOT_R * slot + q, plan);
            if plan.read {
                let x = own[(TILE + t) * plan.lanes + UNIT_POS_X as usize];
                add(&mut row, x, &tile, SLOT_DZ * slot + q, plan);
            }
            dv[at] = dot(&row, &tile, SLOT_K * slot + q, plan);
            let dsa = dot(&row, &tile, SLOT_B * slot + q, plan);
            scratch[stride + at] = dsa;
            scale_and_add(
                &mut row,
                &tile,
                SLOT_W * slot + q,
                dsa,
                SLOT_A * slot + q,
                plan,
            );
        }
        if from.is_multiple_of(plan.chunk) {
            let chunk = first + from / plan.chunk;
            write_row(&row, d_starts, chunk * plan.value + i, plan);
        }
    }
}
