//! Backward of the outputs and of the read.
//!
//! With `G_t = dL/dS_t` and `dsa_t = G_t b_t`,
//!
//! ```text
//! G_t = G_{t+1} diag(w_{t+1}) + dsa_{t+1} a_{t+1}ᵀ + Σ_n g_t q_tᵀ
//! dq_t = S_tᵀ g_t     dw_t = Σ_i (G_t ∘ S_{t-1})_i    dv_t = G_t k_t
//! dk_t = G_tᵀ v_t     db_t = G_tᵀ sa_t                da_t = S_{t-1}ᵀ dsa_t
//! ```
//!
//! where a *query* `(q, g)` is `(r, dy)`, or `(dz, x)` or `(x, dz)` of a read along the value or the
//! key side. A block of four tokens needs only the state `S` before it and the gradient `D` of the
//! state after it: everything else follows from products of `S` and `D` with the rows of the block,
//! see [`super::block`].

use pulp::{Arch, Simd, WithSimd};

use super::block::{BLOCK, KeyTokens, Keys, Pairs, block_rows, prepare};
use super::dims::{Dims, Inputs, check_len};
use super::forward::even;
use super::gradient::{Products, finish, retreat, update_gradient};
use super::heads::{Output, OutputTokens, Tokens, for_each_head};
use super::panel::{Layout, column_sums, contract, dots};
use super::replay::advance;
use super::scratch::{Scratch, take};

/// A rank-one term `value_tᵀ key_t` of the gradient of the state after each token.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `r`, or what a read has in key space, its gradient `dz` or its `x`: `[batch, time, heads, key]`.
    pub key: &'a [f32],
    /// The gradient `dy`, or what a read has in value space: `[batch, time, heads, value]`.
    pub value: &'a [f32],
}

/// Where [`backward`] writes; every element is overwritten.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of `r`: `[batch, time, heads, key]`.
    pub r: &'a mut [f32],
    /// Gradient of `log_w`: `[batch, time, heads, key]`.
    pub log_w: &'a mut [f32],
    /// Gradient of `k`: `[batch, time, heads, key]`.
    pub k: &'a mut [f32],
    /// Gradient of `v`: `[batch, time, heads, value]`.
    pub v: &'a mut [f32],
    /// Gradient of `a`: `[batch, time, heads, key]`.
    pub a: &'a mut [f32],
    /// Gradient of `b`: `[batch, time, heads, key]`.
    pub b: &'a mut [f32],
    /// Gradient of `s0`: `[batch, heads, value, key]`.
    pub s0: &'a mut [f32],
}

/// Gradients of the inputs from those of the outputs, of a read and of the last state.
///
/// # Shapes
/// - `starts`: `[batch, heads, ceil(time / chunk), key, value]`, from
///   [`forward`](super::forward) with the same `chunk`
/// - `output`: `r` and `dy`
/// - `read`: `dz` and `x` of a [`read`](super::read), or `x` and `dz` of one along the key side
/// - `d_state`: gradient of the last state, `[batch, heads, value, key]`
///
/// # Panics
/// If an array has a length that does not fit `dims`, or `chunk` is 0.
pub fn backward(
    arch: Arch,
    dims: Dims,
    inputs: Inputs<'_>,
    starts: &[f32],
    chunk: usize,
    output: Query<'_>,
    read: Option<Query<'_>>,
    d_state: &[f32],
    gradients: Gradients<'_>,
) {
    assert!(chunk > 0, "the chunk length must be positive");
    inputs.check(&dims);
    check_len("starts", starts, dims.starts(chunk));
    check_len("d_state", d_state, dims.states());
    for query in [Some(output), read].into_iter().flatten() {
        check_len("a query's key", query.key, dims.keys());
        check_len("a query's value", query.value, dims.values());
    }
    let g = gradients;
    let keys = [
        (&*g.r, "dr"),
        (&*g.log_w, "dlog_w"),
        (&*g.k, "dk"),
        (&*g.a, "da"),
        (&*g.b, "db"),
    ];
    for (array, name) in keys {
        check_len(name, array, dims.keys());
    }
    check_len("dv", g.v, dims.values());
    check_len("ds0", g.s0, dims.states());

    let call = Call {
        arch,
        dims,
        inputs,
        starts,
        chunk,
        d_state,
    };
    let outputs = Outputs {
        r: Output::new(g.r),
        log_w: Output::new(g.log_w),
        k: Output::new(g.k),
        v: Output::new(g.v),
        a: Output::new(g.a),
        b: Output::new(g.b),
        s0: Output::new(g.s0),
    };
    match read {
        Some(read) => call.run::<2, 12>([output, read], outputs),
        None => call.run::<1, 8>([output], outputs),
    }
}

struct Call<'a> {
    arch: Arch,
    dims: Dims,
    inputs: Inputs<'a>,
    starts: &'a [f32],
    chunk: usize,
    d_state: &'a [f32],
}

struct Outputs<'a> {
    r: Output<'a>,
    log_w: Output<'a>,
    k: Output<'a>,
    v: Output<'a>,
    a: Output<'a>,
    b: Output<'a>,
    s0: Output<'a>,
}

impl Call<'_> {
    /// `Q` queries; `N = 4 + 4 Q` is the rank of a block's update of the state gradient.
    #[allow(unsafe_code)] // each head writes its own part of the outputs
    fn run<const Q: usize, const N: usize>(&self, queries: [Query<'_>; Q], outputs: Outputs<'_>) {
        let dims = self.dims;
        let starts_len = self.dims.starts(self.chunk) / dims.count().max(1);
        for_each_head(&dims, |scratch, head| {
            let key = |array| Tokens::new(&dims, head, array, dims.key);
            let value = |array| Tokens::new(&dims, head, array, dims.value);
            // SAFETY: this task is the only one of `head`, and takes each array once.
            let gradients = unsafe {
                HeadGradients {
                    r: outputs.r.tokens(&dims, head, dims.key),
                    log_w: outputs.log_w.tokens(&dims, head, dims.key),
                    k: outputs.k.tokens(&dims, head, dims.key),
                    v: outputs.v.tokens(&dims, head, dims.value),
                    a: outputs.a.tokens(&dims, head, dims.key),
                    b: outputs.b.tokens(&dims, head, dims.key),
                    s0: outputs.s0.state(head, dims.state()),
                }
            };
            self.arch.dispatch(Backward::<Q, N> {
                dims,
                keys: KeyTokens {
                    log_w: key(self.inputs.log_w),
                    k: key(self.inputs.k),
                    a: key(self.inputs.a),
                    b: key(self.inputs.b),
                    queries: queries.map(|query| key(query.key)),
                },
                v: value(self.inputs.v),
                g: queries.map(|query| value(query.value)),
                starts: &self.starts[head.index * starts_len..][..starts_len],
                chunk: self.chunk,
                d_state: &self.d_state[head.index * dims.state()..][..dims.state()],
                gradients,
                scratch,
            });
        });
    }
}

struct HeadGradients<'a> {
    r: OutputTokens<'a>,
    log_w: OutputTokens<'a>,
    k: OutputTokens<'a>,
    v: OutputTokens<'a>,
    a: OutputTokens<'a>,
    b: OutputTokens<'a>,
    s0: &'a mut [f32],
}

impl HeadGradients<'_> {
    /// Asks for the rows of token `t`, if there is one.
    #[inline(always)]
    fn prefetch(&mut self, t: usize) {
        let Self {
            r,
            log_w,
            k,
            v,
            a,
            b,
            ..
        } = self;
        for part in [r, log_w, k, v, a, b] {
            part.prefetch(t);
        }
    }
}

/// One head.
struct Backward<'a, const Q: usize, const N: usize> {
    dims: Dims,
    keys: KeyTokens<'a, Q>,
    v: Tokens<'a>,
    g: [Tokens<'a>; Q],
    starts: &'a [f32],
    chunk: usize,
    d_state: &'a [f32],
    gradients: HeadGradients<'a>,
    scratch: &'a mut Scratch,
}

impl<const Q: usize, const N: usize> WithSimd for Backward<'_, Q, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if const { S::REGISTER_COUNT >= 32 } {
            if even::<S>(&self.dims) {
                return self.run::<S, 2>(simd);
            }
        }
        self.run::<S, 1>(simd);
    }
}

impl<const Q: usize, const N: usize> Backward<'_, Q, N> {
    #[inline(always)]
    fn run<S: Simd, const P: usize>(&mut self, simd: S) {
        let layout = Layout::new::<S, P>(&self.dims);
        let (time, chunk) = (self.dims.time, self.chunk.min(self.dims.time.max(1)));
        let blocks = chunk.div_ceil(BLOCK);
        let keys_len = block_rows(Q) * layout.keys;
        let values_len = BLOCK * layout.values;
        let rows_len = BLOCK * layout.keys;

        let mut rest = self.scratch.zeros(
            (blocks + 1) * layout.state()
                + blocks * (keys_len + 2 * values_len)
                + (Q + 2) * values_len
                + (Q + 5) * rows_len,
        );
        let d = take(&mut rest, layout.state());
        let states = take(&mut rest, blocks * layout.state());
        let keys = take(&mut rest, blocks * keys_len);
        let vs = take(&mut rest, blocks * values_len);
        let sas = take(&mut rest, blocks * values_len);
        let g = take(&mut rest, Q * values_len);
        let dsa = take(&mut rest, values_len);
        let dv = take(&mut rest, values_len);
        let mut products = Products::<Q> {
            d_v: take(&mut rest, rows_len),
            d_sa: take(&mut rest, rows_len),
            s_dsa: take(&mut rest, rows_len),
            s_g: take(&mut rest, Q * rows_len),
            s_d: take(&mut rest, layout.keys),
            log_w: take(&mut rest, rows_len),
            dsa_dots: [[[0.0; BLOCK]; BLOCK]; 2],
            g_dots: [[[[0.0; BLOCK]; BLOCK]; 2]; Q],
        };
        let mut pairs = vec![Pairs::<Q>::ZERO; blocks];

        layout.load(self.d_state, d);
        for n in (0..time.div_ceil(self.chunk)).rev() {
            let start = n * self.chunk;
            let end = time.min(start + self.chunk);
            let blocks = (end - start).div_ceil(BLOCK);
            let count = |block: usize| BLOCK.min(end - start - block * BLOCK);

            let chunk_start = &self.starts[n * self.dims.state()..][..self.dims.state()];
            layout.load_start(chunk_start, &mut states[..layout.state()]);
            for block in 0..blocks {
                let from = start + block * BLOCK;
                let block_keys = &mut keys[block * keys_len..][..keys_len];
                pairs[block] = prepare(simd, &layout, &self.keys, from, count(block), block_keys);
                let v = &mut vs[block * values_len..][..values_len];
                self.v.load(simd, from, count(block), v, layout.values);
                let ahead = |t| {
                    if block + 1 < blocks {
                        self.keys.prefetch(from + BLOCK + t);
                        self.v.prefetch(from + BLOCK + t);
                    }
                };
                advance::<S, P, Q>(
                    simd,
                    &layout,
                    &pairs[block],
                    Keys::new(block_keys, &layout),
                    v,
                    &mut states[block * layout.state()..],
                    &mut sas[block * values_len..][..values_len],
                    block + 1 < blocks,
                    ahead,
                );
            }
            for block in (0..blocks).rev() {
                let from = start + block * BLOCK;
                let count = count(block);
                let block_keys = Keys::new(&keys[block * keys_len..][..keys_len], &layout);
                let pairs = &pairs[block];
                let state = &states[block * layout.state()..][..layout.state()];
                let v = &vs[block * values_len..][..values_len];
                let sa = &sas[block * values_len..][..values_len];
                for q in 0..Q {
                    let g = &mut g[q * values_len..][..values_len];
                    self.g[q].load(simd, from, count, g, layout.values);
                }

                // Asks for what the next block reads and what this one writes.
                let mut ahead = |t| {
                    for g in &self.g {
                        g.prefetch(from.saturating_sub(BLOCK) + t);
                    }
                    if block == 0 {
                        self.keys.prefetch(start.saturating_sub(self.chunk) + t);
                        self.v.prefetch(start.saturating_sub(self.chunk) + t);
                    }
                    self.gradients.prefetch(from + t);
                };
                ahead(0);
                retreat::<S, P, Q>(simd, &layout, pairs, block_keys, d, g, dsa, dv);
                products.dsa_dots = [dots(simd, &layout, dsa, sa), dots(simd, &layout, dsa, v)];
                for q in 0..Q {
                    let g = &g[q * values_len..][..values_len];
                    products.g_dots[q] = [dots(simd, &layout, g, sa), dots(simd, &layout, g, v)];
                    let s_g = &mut products.s_g[q * rows_len..][..rows_len];
                    contract::<S, P>(simd, &layout, state, g, s_g);
                }
                ahead(1);
                contract::<S, P>(simd, &layout, d, v, products.d_v);
                contract::<S, P>(simd, &layout, d, sa, products.d_sa);
                ahead(2);
                contract::<S, P>(simd, &layout, state, dsa, products.s_dsa);
                column_sums::<S, P>(simd, &layout, state, d, products.s_d);
                ahead(3);
                finish::<S, Q>(simd, &layout, block_keys, &mut products);
                update_gradient::<S, P, Q, N>(simd, &layout, block_keys, dsa, g, d);

                let out = &mut self.gradients;
                out.r.store(simd, from, count, products.s_g, layout.keys);
                out.log_w
                    .store(simd, from, count, products.log_w, layout.keys);
                out.k.store(simd, from, count, products.d_v, layout.keys);
                out.v.store(simd, from, count, dv, layout.values);
                out.a.store(simd, from, count, products.s_dsa, layout.keys);
                out.b.store(simd, from, count, products.d_sa, layout.keys);
            }
        }
        layout.store(d, self.gradients.s0);
    }
}
