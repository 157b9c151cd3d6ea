//! The kernels that go through time: one unit owns one row of the state (of its gradient in the backward pass), and no
//! row needs another.

use cubecl::prelude::*;

use super::tile::{A, B, DZ, K, Quad, R, load, load_f32, token};
use super::{Plan, TILE};

// Slots of the tile, `[slots, TILE, key]`; without R and DZ it is shorter.
const SLOT_W: usize = 0;
const SLOT_K: usize = 1;
const SLOT_A: usize = 2;
const SLOT_B: usize = 3;
const SLOT_R: usize = 4;
const SLOT_DZ: usize = 5;

/// Loads the first `slots` slots of the tile with tokens `from..from + TILE`.
#[cube]
fn load_keys<F: Float>(
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
fn read_row(
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
fn write_row(
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
fn add(
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
fn scale_and_add(
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
fn dot(
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
fn load_own<F: Float>(
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
fn step(
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
