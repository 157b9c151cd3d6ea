//! Forward: outputs, last state and chunk starts.

use pulp::{Arch, Simd, WithSimd};

use super::block::{BLOCK, KeyTokens, Keys, Pairs, block_rows, prepare};
use super::dims::{Dims, Inputs, check_len};
use super::heads::{Output, OutputTokens, Tokens, for_each_head};
use super::panel::{Layout, lanes, panel, panel_mut, project, store_lanes, update};
use super::scratch::{Scratch, take};
use super::step;

/// Runs the operator over all tokens.
///
/// # Shapes
/// - `r`: `[batch, time, heads, key]`
/// - `s0`, `state`: `[batch, heads, value, key]`; `state` receives the state after the
///   last token
/// - `y`: `[batch, time, heads, value]`
/// - `starts`: `[batch, heads, ceil(time / chunk), key, value]` (note: transposed), receives
///   the state before token 0, `chunk`, `2 chunk`, … for [`read`](super::read) and
///   [`backward`](super::backward)
///
/// # Panics
/// If an array has a length that does not fit `dims`, or `chunk` is 0.
#[allow(unsafe_code)] // each head writes its own part of the outputs
pub fn forward(
    arch: Arch,
    dims: Dims,
    inputs: Inputs<'_>,
    r: &[f32],
    s0: &[f32],
    chunk: usize,
    y: &mut [f32],
    state: &mut [f32],
    starts: Option<&mut [f32]>,
) {
    assert!(chunk > 0, "the chunk length must be positive");
    inputs.check(&dims);
    check_len("r", r, dims.keys());
    check_len("y", y, dims.values());
    check_len("state", state, dims.states());
    check_len("s0", s0, dims.states());
    if let Some(starts) = &starts {
        check_len("starts", starts, dims.starts(chunk));
    }

    let (y, state) = (Output::new(y), Output::new(state));
    let starts = starts.map(Output::new);
    for_each_head(&dims, |scratch, head| {
        let key = |array| Tokens::new(&dims, head, array, dims.key);
        // SAFETY: this task is the only one of `head`, and takes each array once.
        let (y, state, starts) = unsafe {
            (
                y.tokens(&dims, head, dims.value),
                state.state(head, dims.state()),
                starts.map(|starts| starts.state(head, dims.starts(chunk) / dims.count())),
            )
        };
        arch.dispatch(Forward {
            dims,
            keys: KeyTokens {
                log_w: key(inputs.log_w),
                k: key(inputs.k),
                a: key(inputs.a),
                b: key(inputs.b),
                queries: [key(r)],
            },
            v: Tokens::new(&dims, head, inputs.v, dims.value),
            s0: &s0[head.index * dims.state()..][..dims.state()],
            chunk,
            y,
            state,
            starts,
            scratch,
        });
    });
}

/// One head.
struct Forward<'a> {
    dims: Dims,
    keys: KeyTokens<'a, 1>,
    v: Tokens<'a>,
    s0: &'a [f32],
    chunk: usize,
    y: OutputTokens<'a>,
    state: &'a mut [f32],
    starts: Option<&'a mut [f32]>,
    scratch: &'a mut Scratch,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if self.starts.is_none() && self.dims.time <= step::MAX_TOKENS {
            let time = self.dims.time;
            return step::steps(simd, &self.keys, self.v, self.s0, time, self.y, self.state);
        }
        // Nested so that no code is made for panels of two vectors where they do not fit.
        if const { S::REGISTER_COUNT >= 32 } {
            if even::<S>(&self.dims) {
                return self.run::<S, 2>(simd);
            }
        }
        self.run::<S, 1>(simd);
    }
}

/// Whether the value size is a whole number of panels of two vectors.
#[inline(always)]
pub(crate) fn even<S: Simd>(dims: &Dims) -> bool {
    dims.value.div_ceil(S::F32_LANES).is_multiple_of(2)
}

impl Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const P: usize>(&mut self, simd: S) {
        let layout = Layout::new::<S, P>(&self.dims);
        let (time, chunk) = (self.dims.time, self.chunk);
        let keys_len = block_rows(1) * layout.keys;
        let values_len = BLOCK * layout.values;
        let mut rest = self
            .scratch
            .zeros(layout.state() + keys_len + 2 * values_len);
        let state = take(&mut rest, layout.state());
        let keys = take(&mut rest, keys_len);
        let v = take(&mut rest, values_len);
        let y = take(&mut rest, values_len);

        layout.load(self.s0, state);
        for (n, start) in (0..time).step_by(chunk).enumerate() {
            if let Some(starts) = &mut self.starts {
                layout.store_start(
                    state,
                    &mut starts[n * self.dims.state()..][..self.dims.state()],
                );
            }
            let end = time.min(start + chunk);
            for from in (start..end).step_by(BLOCK) {
                let count = BLOCK.min(end - from);
                let pairs = prepare(simd, &layout, &self.keys, from, count, keys);
                self.v.load(simd, from, count, v, layout.values);
                let ahead = |t| {
                    self.keys.prefetch(from + BLOCK + t);
                    self.v.prefetch(from + BLOCK + t);
                    self.y.prefetch(from + t);
                };
                let keys = Keys::new(keys, &layout);
                block::<S, P>(simd, &layout, &pairs, keys, v, state, y, ahead);
                self.y.store(simd, from, count, y, layout.values);
            }
        }
        layout.store(state, self.state);
    }
}

/// One block: `state` moves to its end, `y` receives `[4, value]`. Calls `ahead` once for each
/// token of the block, spread over the work.
#[inline(always)]
fn block<S: Simd, const P: usize>(
    simd: S,
    layout: &Layout,
    pairs: &Pairs<1>,
    keys: Keys<'_>,
    v: &[f32],
    state: &mut [f32],
    y: &mut [f32],
    mut ahead: impl FnMut(usize),
) {
    let mut phases = 0..BLOCK;
    let ([a0, a1, a2, a3], [q0, q1, q2, q3]) = (keys.a_start(), keys.query_start(0));
    let ([b0, b1, b2, b3], [k0, k1, k2, k3]) = (keys.b_end(), keys.k_end());
    for n in 0..layout.values / layout.width {
        phases.by_ref().take(1).for_each(&mut ahead);
        let reads = [a0, a1, a2, a3, q0, q1, q2, q3];
        let sums = project::<S, P, 8>(simd, panel::<S, P>(layout, state, n), reads);
        let v = lanes::<S, P, BLOCK>(simd, layout, v, n);
        let [s0, s1, s2, s3, y0, y1, y2, y3] = sums;
        let sa = solve(simd, pairs, [s0, s1, s2, s3], &v);
        let mut out = [y0, y1, y2, y3];
        for t in 0..BLOCK {
            for i in 0..=t {
                out[t] = add_pair(simd, out[t], pairs.qb[0][t][i], &sa[i]);
                out[t] = add_pair(simd, out[t], pairs.qk[0][t][i], &v[i]);
            }
        }
        store_lanes::<S, P, BLOCK>(layout, y, n, out);
        phases.by_ref().take(1).for_each(&mut ahead);
        let [u0, u1, u2, u3] = sa;
        let [v0, v1, v2, v3] = v;
        update::<S, P, 8>(
            simd,
            panel_mut::<S, P>(layout, state, n),
            keys.decay(),
            &[u0, u1, u2, u3, v0, v1, v2, v3],
            [b0, b1, b2, b3, k0, k1, k2, k3],
        );
    }
    phases.for_each(ahead);
}

/// `sa_t` from `S_0 P(t-1, 0) a_t`, token by token.
#[inline(always)]
pub(crate) fn solve<S: Simd, const P: usize, const Q: usize>(
    simd: S,
    pairs: &Pairs<Q>,
    sums: [[S::f32s; P]; BLOCK],
    v: &[[S::f32s; P]; BLOCK],
) -> [[S::f32s; P]; BLOCK] {
    let mut sa = sums;
    for t in 1..BLOCK {
        for i in 0..t {
            sa[t] = add_pair(simd, sa[t], pairs.ak[t][i], &v[i]);
        }
        for i in 0..t {
            sa[t] = add_pair(simd, sa[t], pairs.ab[t][i], &sa[i]);
        }
    }
    sa
}

/// `sum + factor x`.
#[inline(always)]
pub(crate) fn add_pair<S: Simd, const P: usize>(
    simd: S,
    sum: [S::f32s; P],
    factor: f32,
    x: &[S::f32s; P],
) -> [S::f32s; P] {
    let factor = simd.splat_f32s(factor);
    let mut sum = sum;
    for p in 0..P {
        sum[p] = simd.mul_add_e_f32s(factor, x[p], sum[p]);
    }
    sum
}
