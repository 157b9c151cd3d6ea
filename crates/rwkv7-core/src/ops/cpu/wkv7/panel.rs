//! The working state and its three products.
//!
//! A state is kept key-major: row `j` holds the `value` elements of key channel `j`. The rows
//! are cut into panels of `P` vectors, `[panels, key, P * lanes]`, so that a product over the
//! keys keeps its sums in registers while it walks one panel. Sizes are padded with zeros.

use pulp::Simd;

use super::block::BLOCK;
use super::dims::Dims;
use super::scratch::vector_rows;
use crate::ops::cpu::simd::sum4::sum4;

/// Padded sizes of one head for a given vector length and panel width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Value size.
    pub(crate) value: usize,
    /// Key size.
    pub(crate) key: usize,
    /// Value size rounded up to whole panels.
    pub(crate) values: usize,
    /// Key size rounded up to whole vectors and to a multiple of 4.
    pub(crate) keys: usize,
    /// Elements of a panel row.
    pub(crate) width: usize,
}

impl Layout {
    pub(crate) fn new<S: Simd, const P: usize>(dims: &Dims) -> Self {
        let width = P * S::F32_LANES;
        Self {
            value: dims.value,
            key: dims.key,
            values: dims.value.next_multiple_of(width),
            keys: dims.key.next_multiple_of(S::F32_LANES.max(4)),
            width,
        }
    }

    /// Elements of a working state.
    pub(crate) fn state(&self) -> usize {
        self.values * self.keys
    }

    pub(crate) fn panel(&self) -> usize {
        self.width * self.keys
    }

    /// Fills a working state from `[value, key]`.
    #[inline(always)]
    pub(crate) fn load(&self, source: &[f32], state: &mut [f32]) {
        for (i, row) in source.chunks_exact(self.key).enumerate() {
            let column = (i / self.width) * self.panel() + i % self.width;
            let column = state[column..].iter_mut().step_by(self.width);
            column.zip(row).for_each(|(to, from)| *to = *from);
        }
    }

    /// Writes a working state as `[value, key]`.
    #[inline(always)]
    pub(crate) fn store(&self, state: &[f32], target: &mut [f32]) {
        for (i, row) in target.chunks_exact_mut(self.key).enumerate() {
            let column = (i / self.width) * self.panel() + i % self.width;
            let column = state[column..].iter().step_by(self.width);
            row.iter_mut()
                .zip(column)
                .for_each(|(to, from)| *to = *from);
        }
    }

    /// Fills a working state from `[key, value]`.
    #[inline(always)]
    pub(crate) fn load_start(&self, source: &[f32], state: &mut [f32]) {
        for (n, panel) in state.chunks_exact_mut(self.panel()).enumerate() {
            let from = n * self.width;
            let count = self.width.min(self.value - from);
            let rows = panel.chunks_exact_mut(self.width);
            for (to, source) in rows.zip(source.chunks_exact(self.value)) {
                to[..count].copy_from_slice(&source[from..from + count]);
            }
        }
    }

    /// Writes a working state as `[key, value]`.
    #[inline(always)]
    pub(crate) fn store_start(&self, state: &[f32], target: &mut [f32]) {
        for (n, panel) in state.chunks_exact(self.panel()).enumerate() {
            let from = n * self.width;
            let count = self.width.min(self.value - from);
            let rows = panel.chunks_exact(self.width);
            for (source, to) in rows.zip(target.chunks_exact_mut(self.value)) {
                to[from..from + count].copy_from_slice(&source[..count]);
            }
        }
    }
}

/// Panel `n` of a working state: `[key]` rows of `P` vectors.
#[inline(always)]
pub(crate) fn panel<'a, S: Simd, const P: usize>(
    layout: &Layout,
    state: &'a [f32],
    n: usize,
) -> &'a [[S::f32s; P]] {
    let panel = &state[n * layout.panel()..][..layout.panel()];
    &pulp::as_arrays::<P, _>(S::as_simd_f32s(panel).0).0[..layout.keys]
}

/// [`panel`], to be written.
#[inline(always)]
pub(crate) fn panel_mut<'a, S: Simd, const P: usize>(
    layout: &Layout,
    state: &'a mut [f32],
    n: usize,
) -> &'a mut [[S::f32s; P]] {
    let panel = &mut state[n * layout.panel()..][..layout.panel()];
    &mut pulp::as_arrays_mut::<P, _>(S::as_mut_simd_f32s(panel).0).0[..layout.keys]
}

/// The lanes of panel `n` in `N` rows of `[N, value]`.
#[inline(always)]
pub(crate) fn lanes<S: Simd, const P: usize, const N: usize>(
    simd: S,
    layout: &Layout,
    rows: &[f32],
    n: usize,
) -> [[S::f32s; P]; N] {
    let mut lanes = [[simd.splat_f32s(0.0); P]; N];
    for row in 0..N {
        let source = &rows[row * layout.values + n * layout.width..][..layout.width];
        lanes[row] = pulp::as_arrays::<P, _>(S::as_simd_f32s(source).0).0[0];
    }
    lanes
}

/// Writes the lanes of panel `n` in `N` rows of `[N, value]`.
#[inline(always)]
pub(crate) fn store_lanes<S: Simd, const P: usize, const N: usize>(
    layout: &Layout,
    rows: &mut [f32],
    n: usize,
    lanes: [[S::f32s; P]; N],
) {
    for row in 0..N {
        let target = &mut rows[row * layout.values + n * layout.width..][..layout.width];
        pulp::as_arrays_mut::<P, _>(S::as_mut_simd_f32s(target).0).0[0] = lanes[row];
    }
}

/// The first `len` elements of each row, so that the loops below need no bounds checks.
#[inline(always)]
fn cut<const N: usize>(rows: [&[f32]; N], len: usize) -> [&[f32]; N] {
    let mut rows = rows;
    for n in 0..N {
        rows[n] = &rows[n][..len];
    }
    rows
}

/// `out_n = S c_n` on one panel: sums over the keys.
#[inline(always)]
pub(crate) fn project<S: Simd, const P: usize, const N: usize>(
    simd: S,
    panel: &[[S::f32s; P]],
    c: [&[f32]; N],
) -> [[S::f32s; P]; N] {
    let keys = panel.len();
    let c = cut(c, keys);
    let mut sums = [[simd.splat_f32s(0.0); P]; N];
    for j in 0..keys {
        let row = panel[j];
        for n in 0..N {
            let factor = simd.splat_f32s(c[n][j]);
            for p in 0..P {
                sums[n][p] = simd.mul_add_e_f32s(factor, row[p], sums[n][p]);
            }
        }
    }
    sums
}

/// `S <- S diag(decay) + Σ_n u_n c_nᵀ` on one panel.
#[inline(always)]
pub(crate) fn update<S: Simd, const P: usize, const N: usize>(
    simd: S,
    panel: &mut [[S::f32s; P]],
    decay: &[f32],
    u: &[[S::f32s; P]; N],
    c: [&[f32]; N],
) {
    let keys = panel.len();
    let decay = &decay[..keys];
    let c = cut(c, keys);
    for j in 0..keys {
        panel[j] = updated(simd, panel[j], decay[j], u, c, j);
    }
}

/// [`update`] from one state to another.
#[inline(always)]
pub(crate) fn update_into<S: Simd, const P: usize, const N: usize>(
    simd: S,
    source: &[[S::f32s; P]],
    target: &mut [[S::f32s; P]],
    decay: &[f32],
    u: &[[S::f32s; P]; N],
    c: [&[f32]; N],
) {
    let keys = source.len();
    let (target, decay) = (&mut target[..keys], &decay[..keys]);
    let c = cut(c, keys);
    for j in 0..keys {
        target[j] = updated(simd, source[j], decay[j], u, c, j);
    }
}

#[inline(always)]
fn updated<S: Simd, const P: usize, const N: usize>(
    simd: S,
    row: [S::f32s; P],
    decay: f32,
    u: &[[S::f32s; P]; N],
    c: [&[f32]; N],
    j: usize,
) -> [S::f32s; P] {
    let decay = simd.splat_f32s(decay);
    let mut row = row;
    for p in 0..P {
        row[p] = simd.mul_f32s(row[p], decay);
    }
    for n in 0..N {
        let factor = simd.splat_f32s(c[n][j]);
        for p in 0..P {
            row[p] = simd.mul_add_e_f32s(factor, u[n][p], row[p]);
        }
    }
    row
}

/// `out_n = Sᵀ u_n` for the four rows of `u` (`[4, value]`), into `[4, key]`: sums over the
/// values.
#[inline(always)]
pub(crate) fn contract<S: Simd, const P: usize>(
    simd: S,
    layout: &Layout,
    state: &[f32],
    u: &[f32],
    out: &mut [f32],
) {
    if const { S::REGISTER_COUNT >= 32 } {
        contract_rows::<S, P, 4>(simd, layout, state, u, out, 0);
    } else {
        contract_rows::<S, P, 2>(simd, layout, state, u, out, 0);
        contract_rows::<S, P, 2>(simd, layout, state, u, out, 2);
    }
}

#[inline(always)]
fn contract_rows<S: Simd, const P: usize, const N: usize>(
    simd: S,
    layout: &Layout,
    state: &[f32],
    u: &[f32],
    out: &mut [f32],
    first: usize,
) {
    let u: [&[S::f32s]; N] = vector_rows::<S, N>(u, first, layout.values);
    let (keys, panels) = (layout.keys, layout.values / layout.width);
    let rows = &pulp::as_arrays::<P, _>(S::as_simd_f32s(state).0).0[..panels * keys];
    let (_, out) = out.split_at_mut(first * keys);
    for j in (0..keys).step_by(4) {
        let mut sums = [[simd.splat_f32s(0.0); 4]; N];
        for panel in 0..panels {
            let rows = &rows[panel * keys + j..][..4];
            for p in 0..P {
                for n in 0..N {
                    let u = u[n][panel * P + p];
                    for i in 0..4 {
                        sums[n][i] = simd.mul_add_e_f32s(u, rows[i][p], sums[n][i]);
                    }
                }
            }
        }
        for n in 0..N {
            out[n * keys + j..][..4].copy_from_slice(&sum4(simd, sums[n]));
        }
    }
}

/// `out_j = Σ_i S_ij D_ij`, `[key]`.
#[inline(always)]
pub(crate) fn column_sums<S: Simd, const P: usize>(
    simd: S,
    layout: &Layout,
    s: &[f32],
    d: &[f32],
    out: &mut [f32],
) {
    let (keys, panels) = (layout.keys, layout.values / layout.width);
    let s = &pulp::as_arrays::<P, _>(S::as_simd_f32s(s).0).0[..panels * keys];
    let d = &pulp::as_arrays::<P, _>(S::as_simd_f32s(d).0).0[..panels * keys];
    for j in (0..keys).step_by(4) {
        let mut sums = [simd.splat_f32s(0.0); 4];
        for panel in 0..panels {
            let s = &s[panel * keys + j..][..4];
            let d = &d[panel * keys + j..][..4];
            for p in 0..P {
                for i in 0..4 {
                    sums[i] = simd.mul_add_e_f32s(s[i][p], d[i][p], sums[i]);
                }
            }
        }
        out[j..j + 4].copy_from_slice(&sum4(simd, sums));
    }
}

/// `out[t][i] = x_t · y_i` for the tokens of a block, over `[4, value]` rows.
#[inline(always)]
pub(crate) fn dots<S: Simd>(
    simd: S,
    layout: &Layout,
    x: &[f32],
    y: &[f32],
) -> [[f32; BLOCK]; BLOCK] {
    let x: [&[S::f32s]; BLOCK] = vector_rows::<S, BLOCK>(x, 0, layout.values);
    let y: [&[S::f32s]; BLOCK] = vector_rows::<S, BLOCK>(y, 0, layout.values);
    let mut out = [[0.0; BLOCK]; BLOCK];
    for half in [0, 2] {
        let mut sums = [[simd.splat_f32s(0.0); BLOCK]; 2];
        for c in 0..layout.values / S::F32_LANES {
            for t in 0..2 {
                for i in 0..BLOCK {
                    sums[t][i] = simd.mul_add_e_f32s(x[half + t][c], y[i][c], sums[t][i]);
                }
            }
        }
        for t in 0..2 {
            out[half + t] = sum4(simd, sums[t]);
        }
    }
    out
}
