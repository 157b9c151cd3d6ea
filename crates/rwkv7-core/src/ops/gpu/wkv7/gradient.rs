//! The gradients that are sums over rows. A unit owns columns of the state, then of its gradient.

use cubecl::prelude::*;

use super::column::{
    SLOT_DSA, SLOT_DY, SLOT_SA, SLOT_V, SLOT_X, add, dot, key, read_columns, scale_and_add,
};
use super::tile::{A, B, DZ, K, Quad, R, load, load_f32, part, token};
use super::{Plan, TILE};

/// Loads all slots of the tile with tokens `from..from + TILE`; SLOT_X only with a read.
#[cube]
fn load_values<F: Float>(
    values: &Sequence<Box<[Quad<F>]>>, // dy, (x), v
    scratch: &[Quad<f32>],
    tile: &mut Shared<[Quad<f32>]>,
    #[comptime] plan: Plan,
    from: usize,
    time: usize,
    heads: usize,
) {
    let width = comptime![plan.value / 4];
    let half = CUBE_COUNT_X as usize * time * width;
    let v = comptime![if plan.read { 2usize } else { 1usize }];
    load_f32(
        scratch, 0usize, false, tile, SLOT_SA, width, plan, from, time, heads,
    );
    load_f32(
        scratch, half, false, tile, SLOT_DSA, width, plan, from, time, heads,
    );
    load::<F>(values, v, tile, SLOT_V, width, plan, from, time, heads);
    load::<F>(
        values, 0usize, tile, SLOT_DY, width, plan, from, time, heads,
    );
    if plan.read {
        load::<F>(values, 1usize, tile, SLOT_X, width, plan, from, time, heads);
    }
}

/// Place of dlog_w in the list of gradients. The other gradients have the places of their keys.
const LOG_W: usize = 4;

/// Writes element `at` of gradient `which` of a list, or of the one buffer that holds them all.
#[cube]
fn write<N: Size>(
    list: &mut Sequence<Box<[Vector<f32, N>]>>,
    #[comptime] which: usize,
    #[comptime] plan: Plan,
    stride: usize,
    at: usize,
    x: Vector<f32, N>,
) {
    if plan.packed {
        let all = list.index_mut(0usize);
        all[which * stride + at] = x;
    } else {
        let own = list.index_mut(which);
        own[at] = x;
    }
}

/// The gradients that are sums over rows: dr, dlog_w, dk, da, db of one chunk.
///
/// Forward through the chunk with the state, `dr_t = dy_t S_t` and `da_t = dsa_t S_{t-1}`; back with its gradient,
/// `dk_t = v_t G_t` and `db_t = sa_t G_t`. The gradient of the log decay needs both at once; see the module
/// documentation for the identity that spares keeping the states.
#[cube(launch)]
pub(super) fn gradient_kernel<F: Float, N: Size>(
    keys: Sequence<Box<[Vector<F, N>]>>, // r, k, a, b, (dz): [batch, time, heads, key]
    log_w: &[Vector<f32, N>],            // [batch, time, heads, key]
    values: Sequence<Box<[Quad<F>]>>,    // dy, (x), v: [batch, time, heads, value]
    scratch: &[Quad<f32>],               // [2, batch, time, heads, value]: sa, dsa
    starts: &[Vector<f32, N>],           // [batch, heads, chunks, value, key]
    d_starts: &[Vector<f32, N>],         // [batch, heads, chunks + 1, value, key]
    mut d_keys: Sequence<Box<[Vector<f32, N>]>>, // dr, dk, da, db, dlog_w: [batch, time, heads, key]
    time: usize,
    heads: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let width = comptime![plan.value / 4];
    let slot = comptime![TILE * width];
    let slots = comptime![if plan.read { SLOT_X + 1 } else { SLOT_X }];
    let mut tile = Shared::<[Quad<f32>]>::new_slice(comptime![slots * TILE * width]);
    let mut columns = Array::<Vector<f32, N>>::new(plan.value);

    let j = CUBE_POS_Z as usize * plan.lanes + UNIT_POS_X as usize;
    let chunks = CUBE_COUNT_Y as usize;
    let line = CUBE_POS_X as usize;
    let across = comptime![plan.key / plan.columns];
    let stride = CUBE_COUNT_X as usize * time * across;
    let begin = CUBE_POS_Y as usize * plan.chunk;
    let end = (begin + plan.chunk).min(time);
    let tiles = (end - begin).div_ceil(TILE);

    // Sum of r dr + z dz + a da over the tokens passed so far.
    let mut passed = Vector::<f32, N>::new(0.0);
    read_columns::<N>(
        &mut columns,
        starts,
        line * chunks + CUBE_POS_Y as usize,
        j,
        plan,
    );
    for n in 0..tiles {
        let from = begin + n * TILE;
        let count = (end - from).min(TILE);
        sync_cube();
        load_values::<F>(&values, scratch, &mut tile, plan, from, time, heads);
        sync_cube();
        for t in 0..count {
            let q = t * width;
            let at = token(from + t, time, heads) * across + j;
            let r = key::<F, N>(&keys, R, plan, stride, at);
            let k = key::<F, N>(&keys, K, plan, stride, at);
            let a = key::<F, N>(&keys, A, plan, stride, at);
            let b = key::<F, N>(&keys, B, plan, stride, at);
            let w = Vector::<f32, N>::exp(log_w[at]);
            let da = dot::<N>(&columns, &tile, SLOT_DSA * slot + q, plan);
            scale_and_add::<N>(&mut columns, w, &tile, SLOT_SA * slot + q, b, plan);
            add::<N>(&mut columns, &tile, SLOT_V * slot + q, k, plan);
            let dr = dot::<N>(&columns, &tile, SLOT_DY * slot + q, plan);
            write::<N>(&mut d_keys, R, plan, stride, at, dr);
            write::<N>(&mut d_keys, A, plan, stride, at, da);
            let before = passed + a * da;
            write::<N>(&mut d_keys, LOG_W, plan, stride, at, before);
            passed = before + r * dr;
            if plan.read {
                let dz = key::<F, N>(&keys, DZ, plan, stride, at);
                passed += dz * dot::<N>(&columns, &tile, SLOT_X * slot + q, plan);
            }
        }
    }

    // From the state at the chunk's end to its gradient there. `left`: what is left of the sum over the whole chunk when
    // the tokens from the end down to the present one are taken away.
    let mut left = passed;
    let at = (line * (chunks + 1) + CUBE_POS_Y as usize + 1) * plan.value * across + j;
    #[unroll]
    for i in 0..plan.value {
        let g = d_starts[at + i * across];
        left = fma(columns[i], g, left);
        columns[i] = g;
    }

    for n in 0..tiles {
        let from = begin + (tiles - 1 - n) * TILE;
        let count = (end - from).min(TILE);
        sync_cube();
        load_values::<F>(&values, scratch, &mut tile, plan, from, time, heads);
        sync_cube();
        for last in 0..count {
            let t = count - 1 - last;
            let q = t * width;
            let at = token(from + t, time, heads) * across + j;
            let r = key::<F, N>(&keys, R, plan, stride, at);
            let k = key::<F, N>(&keys, K, plan, stride, at);
            let a = key::<F, N>(&keys, A, plan, stride, at);
            let b = key::<F, N>(&keys, B, plan, stride, at);
            let w = Vector::<f32, N>::exp(log_w[at]);
            add::<N>(&mut columns, &tile, SLOT_DY * slot + q, r, plan);
            if plan.read {
                let dz = key::<F, N>(&keys, DZ, plan, stride, at);
                add::<N>(&mut columns, &tile, SLOT_X * slot + q, dz, plan);
            }
            let dk = dot::<N>(&columns, &tile, SLOT_V * slot + q, plan);
            let db = dot::<N>(&columns, &tile, SLOT_SA * slot + q, plan);
            write::<N>(&mut d_keys, K, plan, stride, at, dk);
            write::<N>(&mut d_keys, B, plan, stride, at, db);
            left -= k * dk + b * db;
            let before = part::<Vector<f32, N>>(&d_keys, LOG_W, plan.packed, stride, at);
            write::<N>(&mut d_keys, LOG_W, plan, stride, at, left - before);
            scale_and_add::<N>(&mut columns, w, &tile, SLOT_DSA * slot + q, a, plan);
        }
    }
}
