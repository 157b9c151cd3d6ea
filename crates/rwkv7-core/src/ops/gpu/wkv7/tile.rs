//! What the kernels share: where a token lies, and how its vectors reach shared memory.

use cubecl::prelude::*;

use super::{Plan, TILE};

/// Four neighbours: the unit of every load and of every multiplication.
pub(super) type Quad<E> = Vector<E, Const<4>>;

/// Places in the list of keys.
pub(super) const R: usize = 0;
pub(super) const K: usize = 1;
pub(super) const A: usize = 2;
pub(super) const B: usize = 3;
pub(super) const DZ: usize = 4;

/// Position of token `t` of this cube's batch row and head in `[batch, time, heads]`; `CUBE_POS_X` counts
/// `[batch, heads]`.
#[cube]
pub(super) fn token(t: usize, time: usize, heads: usize) -> usize {
    let row = CUBE_POS_X as usize;
    (row / heads * time + t) * heads + row % heads
}

/// Element `at` of tensor `which` of a list: its own buffer, or a part of the one packed buffer, in which each part has
/// `stride` elements.
#[cube]
pub(super) fn part<E: CubePrimitive>(
    list: &Sequence<Box<[E]>>,
    #[comptime] which: usize,
    #[comptime] packed: bool,
    stride: usize,
    at: usize,
) -> E {
    if packed {
        list[0][which * stride + at]
    } else {
        list[which][at]
    }
}

/// Copies tensor `which` of a list, `[batch, time, heads, 4 width]`, tokens `from..from + TILE`, into `tile` at `slot`
/// (`[slots, TILE, width]`). Past the end it repeats the last token. All fetches are under way before the first is
/// needed: a cube has too few units to wait for them one by one.
#[cube]
pub(super) fn load<F: Float>(
    list: &Sequence<Box<[Quad<F>]>>,
    #[comptime] which: usize,
    tile: &mut Shared<[Quad<f32>]>,
    #[comptime] slot: usize,
    #[comptime] width: usize,
    #[comptime] plan: Plan,
    from: usize,
    time: usize,
    heads: usize,
) {
    let stride = CUBE_COUNT_X as usize * time * width;
    let turns = comptime![TILE * width / plan.lanes];
    let mut held = Array::<Quad<F>>::new(turns);
    #[unroll]
    for n in 0..turns {
        let at = place(
            n * plan.lanes + UNIT_POS_X as usize,
            width,
            from,
            time,
            heads,
        );
        held[n] = part::<Quad<F>>(list, which, plan.packed, stride, at);
    }
    #[unroll]
    for n in 0..turns {
        let to = slot * TILE * width + n * plan.lanes + UNIT_POS_X as usize;
        tile[to] = Quad::<f32>::cast_from(held[n]);
    }
}

/// As [`load`], for one f32 tensor: `log_w`, whose exponential is copied, or a part of `scratch` at `offset`.
#[cube]
pub(super) fn load_f32(
    source: &[Quad<f32>],
    offset: usize,
    #[comptime] exp: bool,
    tile: &mut Shared<[Quad<f32>]>,
    #[comptime] slot: usize,
    #[comptime] width: usize,
    #[comptime] plan: Plan,
    from: usize,
    time: usize,
    heads: usize,
) {
    let turns = comptime![TILE * width / plan.lanes];
    let mut held = Array::<Quad<f32>>::new(turns);
    #[unroll]
    for n in 0..turns {
        let at = place(
            n * plan.lanes + UNIT_POS_X as usize,
            width,
            from,
            time,
            heads,
        );
        held[n] = source[offset + at];
    }
    #[unroll]
    for n in 0..turns {
        let to = slot * TILE * width + n * plan.lanes + UNIT_POS_X as usize;
        if exp {
            tile[to] = Quad::<f32>::exp(held[n]);
        } else {
            tile[to] = held[n];
        }
    }
}

/// Where element `e` of a tile lies in `[batch, time, heads, width]`.
#[cube]
fn place(e: usize, #[comptime] width: usize, from: usize, time: usize, heads: usize) -> usize {
    token((from + e / width).min(time - 1), time, heads) * width + e % width
}
