//! The gradients of one block, from the state before the block and the gradient of the state after the block.

use pulp::Simd;

use super::block::{BLOCK, Keys, Pairs};
use super::forward::add_pair;
use super::panel::{Layout, lanes, panel, panel_mut, project, store_lanes, update};

/// `dsa` and `dv` (`[4, value]`) of a block from the gradient `d` of the state after it.
#[inline(always)]
pub(super) fn retreat<S: Simd, const P: usize, const Q: usize>(
    simd: S,
    layout: &Layout,
    pairs: &Pairs<Q>,
    keys: Keys<'_>,
    d: &[f32],
    g: &[f32],
    dsa: &mut [f32],
    dv: &mut [f32],
) {
    let ([b0, b1, b2, b3], [k0, k1, k2, k3]) = (keys.b_end(), keys.k_end());
    let values_len = BLOCK * layout.values;
    for n in 0..layout.values / layout.width {
        let reads = [b0, b1, b2, b3, k0, k1, k2, k3];
        let sums = project::<S, P, 8>(simd, panel::<S, P>(layout, d, n), reads);
        let [u0, u1, u2, u3, v0, v1, v2, v3] = sums;
        let (mut u, mut v) = ([u0, u1, u2, u3], [v0, v1, v2, v3]);
        for q in 0..Q {
            let g = lanes::<S, P, BLOCK>(simd, layout, &g[q * values_len..], n);
            for i in 0..BLOCK {
                for t in i..BLOCK {
                    u[i] = add_pair(simd, u[i], pairs.qb[q][t][i], &g[t]);
                    v[i] = add_pair(simd, v[i], pairs.qk[q][t][i], &g[t]);
                }
            }
        }
        for i in (0..BLOCK).rev() {
            for t in i + 1..BLOCK {
                u[i] = add_pair(simd, u[i], pairs.ab[t][i], &u[t]);
                v[i] = add_pair(simd, v[i], pairs.ak[t][i], &u[t]);
            }
        }
        store_lanes::<S, P, BLOCK>(layout, dsa, n, u);
        store_lanes::<S, P, BLOCK>(layout, dv, n, v);
    }
}

/// `D <- D P(4, 0) + Σ_t (dsa_t (P(t-1, 0) a_t)ᵀ + Σ_n g_t (P(t, 0) q_t)ᵀ)`.
#[inline(always)]
pub(super) fn update_gradient<S: Simd, const P: usize, const Q: usize, const N: usize>(
    simd: S,
    layout: &Layout,
    keys: Keys<'_>,
    dsa: &[f32],
    g: &[f32],
    d: &mut [f32],
) {
    let values_len = BLOCK * layout.values;
    let mut c: [&[f32]; N] = [&[]; N];
    c[..BLOCK].copy_from_slice(&keys.a_start());
    for q in 0..Q {
        c[(q + 1) * BLOCK..][..BLOCK].copy_from_slice(&keys.query_start(q));
    }
    for n in 0..layout.values / layout.width {
        let dsa = lanes::<S, P, BLOCK>(simd, layout, dsa, n);
        let mut u = [[simd.splat_f32s(0.0); P]; N];
        u[..BLOCK].copy_from_slice(&dsa);
        for q in 0..Q {
            let g = lanes::<S, P, BLOCK>(simd, layout, &g[q * values_len..], n);
            u[(q + 1) * BLOCK..][..BLOCK].copy_from_slice(&g);
        }
        update::<S, P, N>(simd, panel_mut::<S, P>(layout, d, n), keys.decay(), &u, c);
    }
}

/// What a block's walk over its keys needs besides the block itself.
pub(super) struct Products<'a, const Q: usize> {
    /// `Dᵀ v_t`, `[4, key]`; becomes `dk`.
    pub(super) d_v: &'a mut [f32],
    /// `Dᵀ sa_t`, `[4, key]`; becomes `db`.
    pub(super) d_sa: &'a mut [f32],
    /// `Sᵀ dsa_t`, `[4, key]`; becomes `da`.
    pub(super) s_dsa: &'a mut [f32],
    /// `Sᵀ g_t`, `[Q, 4, key]`; the first becomes the gradient of its query.
    pub(super) s_g: &'a mut [f32],
    /// `Σ_i (S ∘ D)_i`, `[key]`.
    pub(super) s_d: &'a mut [f32],
    /// Receives the gradient of `log_w`, `[4, key]`.
    pub(super) log_w: &'a mut [f32],
    /// `dsa_t · sa_i` and `dsa_t · v_i`.
    pub(super) dsa_dots: [[[f32; BLOCK]; BLOCK]; 2],
    /// `g_t · sa_i` and `g_t · v_i`.
    pub(super) g_dots: [[[[f32; BLOCK]; BLOCK]; 2]; Q],
}

/// The key-space gradients of a block, from the products with its outer states.
///
/// Each line below is a Horner scheme over the tokens of the block. A path from token `i` (or
/// from `S`) to token `t` (or to `D`) that crosses the decay of token `s` contributes its value
/// to the gradient of `log_w_s`; `crossing` collects these.
#[inline(always)]
pub(super) fn finish<S: Simd, const Q: usize>(
    simd: S,
    layout: &Layout,
    keys: Keys<'_>,
    products: &mut Products<'_, Q>,
) {
    let (a, b, k, w) = (keys.a::<S>(), keys.b::<S>(), keys.k::<S>(), keys.w::<S>());
    let mut query: [[&[S::f32s]; BLOCK]; Q] = [[&[]; BLOCK]; Q];
    for q in 0..Q {
        query[q] = keys.query::<S>(q);
    }
    let count = layout.keys / S::F32_LANES;
    let d_v = &mut S::as_mut_simd_f32s(products.d_v).0[..BLOCK * count];
    let d_sa = &mut S::as_mut_simd_f32s(products.d_sa).0[..BLOCK * count];
    let s_dsa = &mut S::as_mut_simd_f32s(products.s_dsa).0[..BLOCK * count];
    let s_g = &mut S::as_mut_simd_f32s(products.s_g).0[..Q * BLOCK * count];
    let s_d = &S::as_simd_f32s(products.s_d).0[..count];
    let log_w = &mut S::as_mut_simd_f32s(products.log_w).0[..BLOCK * count];
    let [dsa_sa, dsa_v] = &products.dsa_dots;
    let g_dots = &products.g_dots;

    for c in 0..count {
        let (a, b) = (column::<S>(&a, c), column::<S>(&b, c));
        let (k, w) = (column::<S>(&k, c), column::<S>(&w, c));
        let one = simd.splat_f32s(1.0);
        let mut crossing = [simd.splat_f32s(0.0); BLOCK];

        let mut after = [one; BLOCK];
        for s in (0..BLOCK - 1).rev() {
            after[s] = simd.mul_f32s(after[s + 1], w[s + 1]);
        }
        let mut sum = s_d[c];
        for s in 0..BLOCK {
            sum = simd.mul_f32s(sum, w[s]);
            crossing[s] = simd.mul_add_e_f32s(sum, after[s], crossing[s]);
            sum = simd.mul_add_e_f32s(d_sa[s * count + c], b[s], sum);
            sum = simd.mul_add_e_f32s(d_v[s * count + c], k[s], sum);
        }

        for q in 0..Q {
            let [g_sa, g_v] = &g_dots[q];
            let query = column::<S>(&query[q], c);
            for t in 0..BLOCK {
                let mut after = [query[t]; BLOCK];
                for s in (0..t).rev() {
                    after[s] = simd.mul_f32s(after[s + 1], w[s + 1]);
                }
                let mut sum = s_g[(q * BLOCK + t) * count + c];
                for s in 0..=t {
                    sum = simd.mul_f32s(sum, w[s]);
                    crossing[s] = simd.mul_add_e_f32s(sum, after[s], crossing[s]);
                    sum = madd(simd, g_sa[t][s], b[s], sum);
                    sum = madd(simd, g_v[t][s], k[s], sum);
                }
                s_g[(q * BLOCK + t) * count + c] = sum;
            }
        }

        for t in 0..BLOCK {
            let mut after = [a[t]; BLOCK];
            for s in (0..t.saturating_sub(1)).rev() {
                after[s] = simd.mul_f32s(after[s + 1], w[s + 1]);
            }
            let mut sum = s_dsa[t * count + c];
            for s in 0..t {
                sum = simd.mul_f32s(sum, w[s]);
                crossing[s] = simd.mul_add_e_f32s(sum, after[s], crossing[s]);
                sum = madd(simd, dsa_sa[t][s], b[s], sum);
                sum = madd(simd, dsa_v[t][s], k[s], sum);
            }
            s_dsa[t * count + c] = sum;
        }

        for i in 0..BLOCK {
            let (mut db, mut dk) = (d_sa[i * count + c], d_v[i * count + c]);
            for t in (i..BLOCK).rev() {
                for q in 0..Q {
                    let query = query[q][t][c];
                    db = madd(simd, g_dots[q][0][t][i], query, db);
                    dk = madd(simd, g_dots[q][1][t][i], query, dk);
                }
                if t > i {
                    db = madd(simd, dsa_sa[t][i], a[t], simd.mul_f32s(db, w[t]));
                    dk = madd(simd, dsa_v[t][i], a[t], simd.mul_f32s(dk, w[t]));
                }
            }
            d_sa[i * count + c] = db;
            d_v[i * count + c] = dk;
            log_w[i * count + c] = crossing[i];
        }
    }
}

/// Vector `c` of each row.
#[inline(always)]
fn column<S: Simd>(rows: &[&[S::f32s]; BLOCK], c: usize) -> [S::f32s; BLOCK] {
    [rows[0][c], rows[1][c], rows[2][c], rows[3][c]]
}

/// `factor x + sum`.
#[inline(always)]
fn madd<S: Simd>(simd: S, factor: f32, x: S::f32s, sum: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), x, sum)
}
