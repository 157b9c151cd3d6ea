//! The read `z_t = x_t S_t`, from the chunk starts.

use pulp::{Arch, Simd, WithSimd};

use super::block::{BLOCK, KeyTokens, Keys, block_rows, prepare};
use super::dims::{Dims, Inputs, check_len};
use super::forward::{even, solve};
use super::heads::{Output, OutputTokens, Tokens, for_each_head};
use super::panel::{Layout, contract, dots, lanes, panel_mut, project, store_lanes, update};
use super::scratch::{Scratch, take};

/// Reads the state after every token with a row vector: `z_t = x_t S_t`.
///
/// Its gradient with respect to `x` is [`forward`](super::forward)'s `y` with `r := dz`; those
/// with respect to the inputs come from the `read` argument of [`backward`](super::backward).
///
/// # Shapes
/// - `x`: `[batch, time, heads, value]`
/// - `starts`: `[batch, heads, ceil(time / chunk), key, value]`, from `forward`
/// - `z`: `[batch, time, heads, key]`
///
/// # Panics
/// If an array has a length that does not fit `dims`, or `chunk` is 0.
#[allow(unsafe_code)] // each head writes its own part of the output
pub fn read(
    arch: Arch,
    dims: Dims,
    inputs: Inputs<'_>,
    x: &[f32],
    starts: &[f32],
    chunk: usize,
    z: &mut [f32],
) {
    assert!(chunk > 0, "the chunk length must be positive");
    inputs.check(&dims);
    check_len("x", x, dims.values());
    check_len("starts", starts, dims.starts(chunk));
    check_len("z", z, dims.keys());

    let z = Output::new(z);
    for_each_head(&dims, |scratch, head| {
        let key = |array| Tokens::new(&dims, head, array, dims.key);
        let starts_len = dims.starts(chunk) / dims.count();
        arch.dispatch(Read {
            dims,
            keys: KeyTokens {
                log_w: key(inputs.log_w),
                k: key(inputs.k),
                a: key(inputs.a),
                b: key(inputs.b),
                queries: [],
            },
            v: Tokens::new(&dims, head, inputs.v, dims.value),
            x: Tokens::new(&dims, head, x, dims.value),
            starts: &starts[head.index * starts_len..][..starts_len],
            chunk,
            // SAFETY: this task is the only one of `head`, and takes `z` once.
            z: unsafe { z.tokens(&dims, head, dims.key) },
            scratch,
        });
    });
}

/// One head.
struct Read<'a> {
    dims: Dims,
    keys: KeyTokens<'a, 0>,
    v: Tokens<'a>,
    x: Tokens<'a>,
    starts: &'a [f32],
    chunk: usize,
    z: OutputTokens<'a>,
    scratch: &'a mut Scratch,
}

impl WithSimd for Read<'_> {
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

impl Read<'_> {
    #[inline(always)]
    fn run<S: Simd, const P: usize>(&mut self, simd: S) {
        let layout = Layout::new::<S, P>(&self.dims);
        let (time, chunk) = (self.dims.time, self.chunk);
        let keys_len = block_rows(0) * layout.keys;
        let values_len = BLOCK * layout.values;
        let z_len = BLOCK * layout.keys;
        let mut rest = self
            .scratch
            .zeros(layout.state() + keys_len + 3 * values_len + z_len);
        let state = take(&mut rest, layout.state());
        let block = take(&mut rest, keys_len);
        let v = take(&mut rest, values_len);
        let x = take(&mut rest, values_len);
        let sa = take(&mut rest, values_len);
        let z = take(&mut rest, z_len);

        // From one chunk to the next the state is at hand: only the first start is loaded.
        layout.load_start(
            &self.starts[..self.dims.state().min(self.starts.len())],
            state,
        );
        for start in (0..time).step_by(chunk) {
            let end = time.min(start + chunk);
            for from in (start..end).step_by(BLOCK) {
                let count = BLOCK.min(end - from);
                let pairs = prepare(simd, &layout, &self.keys, from, count, block);
                let keys = Keys::new(block, &layout);
                self.v.load(simd, from, count, v, layout.values);
                self.x.load(simd, from, count, x, layout.values);
                let mut ahead = |t| {
                    self.keys.prefetch(from + BLOCK + t);
                    self.v.prefetch(from + BLOCK + t);
                    self.x.prefetch(from + BLOCK + t);
                    self.z.prefetch(from + t);
                };
                let mut phases = 0..BLOCK;
                phases.by_ref().take(1).for_each(&mut ahead);
                contract::<S, P>(simd, &layout, state, x, z);

                let ([b0, b1, b2, b3], [k0, k1, k2, k3]) = (keys.b_end(), keys.k_end());
                for n in 0..layout.values / layout.width {
                    phases.by_ref().take(1).for_each(&mut ahead);
                    let rows = panel_mut::<S, P>(&layout, state, n);
                    let sums = project::<S, P, BLOCK>(simd, rows, keys.a_start());
                    let v = lanes::<S, P, BLOCK>(simd, &layout, v, n);
                    let u = solve(simd, &pairs, sums, &v);
                    store_lanes::<S, P, BLOCK>(&layout, sa, n, u);
                    let ([u0, u1, u2, u3], [v0, v1, v2, v3]) = (u, v);
                    update::<S, P, 8>(
                        simd,
                        rows,
                        keys.decay(),
                        &[u0, u1, u2, u3, v0, v1, v2, v3],
                        [b0, b1, b2, b3, k0, k1, k2, k3],
                    );
                }
                phases.for_each(ahead);
                let x_sa = dots(simd, &layout, x, sa);
                let x_v = dots(simd, &layout, x, v);
                finish(simd, &layout, keys, &x_sa, &x_v, z);
                self.z.store(simd, from, count, z, layout.keys);
            }
        }
    }
}

/// `x_t S_t` from `x_t S_0`: `z <- z diag(w_i) + (x_t·sa_i) b_i + (x_t·v_i) k_i` for `i <= t`.
#[inline(always)]
fn finish<S: Simd>(
    simd: S,
    layout: &Layout,
    keys: Keys<'_>,
    x_sa: &[[f32; BLOCK]; BLOCK],
    x_v: &[[f32; BLOCK]; BLOCK],
    z: &mut [f32],
) {
    let (w, b, k) = (keys.w::<S>(), keys.b::<S>(), keys.k::<S>());
    let count = layout.keys / S::F32_LANES;
    for (t, z) in z.chunks_exact_mut(layout.keys).enumerate() {
        let z = &mut S::as_mut_simd_f32s(z).0[..count];
        for c in 0..count {
            let mut sum = z[c];
            for i in 0..=t {
                sum = simd.mul_f32s(sum, w[i][c]);
                sum = simd.mul_add_e_f32s(simd.splat_f32s(x_sa[t][i]), b[i][c], sum);
                sum = simd.mul_add_e_f32s(simd.splat_f32s(x_v[t][i]), k[i][c], sum);
            }
            z[c] = sum;
        }
    }
}
