//! The replay of a chunk, block by block, for the backward pass.

use pulp::Simd;

use super::block::{BLOCK, Keys, Pairs};
use super::forward::solve;
use super::panel::{Layout, lanes, panel, panel_mut, project, store_lanes, update_into};

/// Computes `sa` (`[4, value]`) of a block and, if `next`, the state after it: `states` holds
/// the state before the block, and the one after it goes behind it. Calls `ahead` once for each
/// token of the block.
#[inline(always)]
pub(super) fn advance<S: Simd, const P: usize, const Q: usize>(
    simd: S,
    layout: &Layout,
    pairs: &Pairs<Q>,
    keys: Keys<'_>,
    v: &[f32],
    states: &mut [f32],
    sa: &mut [f32],
    next: bool,
    mut ahead: impl FnMut(usize),
) {
    let mut phases = 0..BLOCK;
    let ([b0, b1, b2, b3], [k0, k1, k2, k3]) = (keys.b_end(), keys.k_end());
    let (state, after) = states.split_at_mut(layout.state());
    for n in 0..layout.values / layout.width {
        phases.by_ref().take(1).for_each(&mut ahead);
        let rows = panel::<S, P>(layout, state, n);
        let sums = project::<S, P, BLOCK>(simd, rows, keys.a_start());
        let v = lanes::<S, P, BLOCK>(simd, layout, v, n);
        let u = solve(simd, pairs, sums, &v);
        store_lanes::<S, P, BLOCK>(layout, sa, n, u);
        phases.by_ref().take(1).for_each(&mut ahead);
        if next {
            let ([u0, u1, u2, u3], [v0, v1, v2, v3]) = (u, v);
            update_into::<S, P, 8>(
                simd,
                rows,
                panel_mut::<S, P>(layout, after, n),
                keys.decay(),
                &[u0, u1, u2, u3, v0, v1, v2, v3],
                [b0, b1, b2, b3, k0, k1, k2, k3],
            );
        }
    }
    phases.for_each(ahead);
}
