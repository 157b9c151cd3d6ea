//! The kernels of every instruction set against the scalar loop in f64, at sizes, lengths and decays that no model has.

use pulp::Arch;

use super::*;
use crate::ops::tests::{
    case::{Case, Decay, Keys, LIMITS, Rate, Results, assert_close, named, relative_error},
    scalar,
};

fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn f64s(x: Vec<f32>) -> Vec<f64> {
    x.into_iter().map(f64::from).collect()
}

fn levels() -> Vec<Arch> {
    let mut levels = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(pulp::x86::V3::try_new().map(Arch::V3));
        levels.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    #[cfg(not(target_arch = "x86_64"))]
    levels.push(Arch::new());
    levels
}

fn dims(case: &Case) -> Dims {
    let [batch, time, heads, value, key] = case.dims;
    Dims {
        batch,
        time,
        heads,
        value,
        key,
    }
}

/// The arrays of a case.
struct Arrays([Vec<f32>; 8]);

impl Arrays {
    fn inputs(&self) -> Inputs<'_> {
        let [_, log_w, k, v, a, b, ..] = &self.0;
        Inputs { log_w, k, v, a, b }
    }

    /// y, the last state and the starts.
    fn forward(
        &self,
        arch: Arch,
        dims: Dims,
        query: &[f32],
        chunk: Option<usize>,
    ) -> [Vec<f32>; 3] {
        let mut y = vec![f32::NAN; dims.values()];
        let mut state = vec![f32::NAN; dims.states()];
        let mut starts = vec![f32::NAN; chunk.map_or(0, |chunk| dims.starts(chunk))];
        forward(
            arch,
            dims,
            self.inputs(),
            query,
            &self.0[6],
            chunk.unwrap_or(DEFAULT_CHUNK),
            &mut y,
            &mut state,
            chunk.is_some().then_some(&mut starts[..]),
        );
        [y, state, starts]
    }
}

/// y, S, z and all gradients by the kernels; `is_read` tells the backward pass of the read.
fn run(
    arch: Arch,
    case: &Case,
    chunk: usize,
    weights: &[Vec<f64>; 3],
    is_read: bool,
    context: &str,
) -> Results {
    let dims = dims(case);
    let arrays = Arrays(case.values.each_ref().map(|x| f32s(x)));
    let [dy, d_state, dz] = weights.each_ref().map(|x| f32s(x));
    let (r, x) = (&arrays.0[0], &arrays.0[7]);
    let [y, state, _] = arrays.forward(arch, dims, r, None);
    let [traced, state_too, starts] = arrays.forward(arch, dims, r, Some(chunk));
    for (name, x, traced) in [("y", &y, traced), ("state", &state, state_too)] {
        let error = relative_error(&f64s(traced), &f64s(x.clone()));
        assert!(
            error < LIMITS.0,
            "{name} of a traced call, {context}: {error:e}"
        );
    }
    let mut z = vec![f32::NAN; dims.keys()];
    read(arch, dims, arrays.inputs(), x, &starts, chunk, &mut z);
    let [dx, ..] = arrays.forward(arch, dims, &dz, None);

    let keys = || vec![f32::NAN; dims.keys()];
    let [mut dr, mut dlog_w, mut dk, mut da, mut db] = [keys(), keys(), keys(), keys(), keys()];
    let mut dv = vec![f32::NAN; dims.values()];
    let mut ds0 = vec![f32::NAN; dims.states()];
    backward(
        arch,
        dims,
        arrays.inputs(),
        &starts,
        chunk,
        Query { key: r, value: &dy },
        is_read.then_some(Query { key: &dz, value: x }),
        &d_state,
        Gradients {
            r: &mut dr,
            log_w: &mut dlog_w,
            k: &mut dk,
            v: &mut dv,
            a: &mut da,
            b: &mut db,
            s0: &mut ds0,
        },
    );
    let gradients = [dr, dlog_w, dk, dv, da, db, ds0, dx];
    named([y, state, z].map(f64s), gradients.map(f64s))
}

/// Runs all functions at one level, with and without a read, and compares them with the scalar loop.
fn check(arch: Arch, case: &Case, chunk: usize, context: &str) {
    let weights = case.output_gradients();
    for is_read in [true, false] {
        let mut weights = weights.clone();
        if !is_read {
            weights[2].fill(0.0);
        }
        let context = format!("{context} chunk {chunk} {arch:?} {:?}", case.dims);
        let found = run(arch, case, chunk, &weights, is_read, &context);
        assert_close(&found, &scalar::run(case, &weights), LIMITS, &context);
    }
}

fn check_levels(case: &Case, chunk: usize, context: &str) {
    for arch in levels() {
        check(arch, case, chunk, context);
    }
}

fn mixed(dims: [usize; 5], seed: u64) -> Case {
    Case::rectangular(dims, seed, Decay::Mixed, Rate::Random, Keys::Random)
}

#[test]
fn all_sizes_agree() {
    let sizes = [
        (16, 16),
        (32, 32),
        (64, 64),
        (128, 128),
        (7, 7),
        (1, 1),
        (64, 16),
        (16, 64),
        (5, 33),
        (80, 48),
        (96, 7),
    ];
    for (n, (value, key)) in sizes.into_iter().enumerate() {
        let mut case = mixed([1, 37, 2, value, key], 1);
        if n % 2 == 1 {
            case = case.without_state();
        }
        check_levels(&case, 16, "sizes");
    }
    check_levels(&mixed([1, 9, 1, 256, 256], 1), 16, "sizes");
}

#[test]
fn all_lengths_and_chunks_agree() {
    let lengths = [1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 200];
    for (n, time) in lengths.into_iter().enumerate() {
        for chunk in [1, 6, 16, 32, 64] {
            let case = mixed([1 + n % 3, time, 1 + n % 5, 16, 20], n as u64);
            check_levels(&case, chunk, "lengths");
        }
    }
}

#[test]
fn decays_and_removal_keys_at_their_limits_agree() {
    for decay in [
        Decay::Slowest,
        Decay::Strongest,
        Decay::Mixed,
        Decay::Forgetting,
    ] {
        for (keys, rate) in [
            (Keys::Random, Rate::Random),
            (Keys::Repeated, Rate::Always(1.0)),
            (Keys::Random, Rate::Switched),
        ] {
            let case = Case::random([2, 70, 2, 16], 3, decay, rate, keys);
            check_levels(
                &case,
                DEFAULT_CHUNK,
                &format!("{decay:?} {keys:?} {rate:?}"),
            );
        }
    }
}

#[test]
fn a_long_sequence_of_full_heads_agrees() {
    for (decay, rate, keys) in [
        (Decay::Mixed, Rate::Random, Keys::Random),
        (Decay::Slowest, Rate::Always(1.0), Keys::Repeated),
    ] {
        let case = Case::random([1, 1000, 3, 64], 4, decay, rate, keys);
        check(
            Arch::new(),
            &case,
            DEFAULT_CHUNK,
            &format!("long {decay:?}"),
        );
    }
}

#[test]
fn token_by_token_equals_one_call() {
    let whole = mixed([1, 9, 2, 64, 64], 5);
    let expected = scalar::run(&whole, &whole.output_gradients());
    for arch in levels() {
        let mut state = f32s(&whole.values[6]);
        let mut y = vec![];
        for t in 0..9 {
            let width = 2 * 64;
            let mut step = whole.values.each_ref().map(|x| f32s(x));
            for i in [0, 1, 2, 3, 4, 5, 7] {
                step[i] = step[i][t * width..][..width].to_vec();
            }
            step[6] = state;
            let one = Dims {
                time: 1,
                ..dims(&whole)
            };
            let arrays = Arrays(step);
            let [y_t, after, _] = arrays.forward(arch, one, &arrays.0[0], None);
            y.extend(y_t);
            state = after;
        }
        for ((name, expected), found) in expected.iter().zip([y, state]) {
            let error = relative_error(&f64s(found), expected);
            assert!(error < LIMITS.0, "{name}, {arch:?}: {error:e}");
        }
    }
}

#[test]
fn the_decay_is_accurate() {
    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl pulp::WithSimd for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            crate::ops::cpu::simd::math::exp_row(simd, self.0, self.1);
        }
    }
    let x: Vec<f32> = (0..100_003).map(|n| -87.0 * n as f32 / 100_002.0).collect();
    for arch in levels() {
        let mut w = vec![0.0; x.len()];
        arch.dispatch(Exp(&x, &mut w));
        assert_eq!(w[0], 1.0);
        for (x, w) in x.iter().zip(&w) {
            let exact = (*x as f64).exp();
            assert!(
                (*w as f64 - exact).abs() < 2e-7 * exact,
                "exp({x}) = {w} {arch:?}"
            );
        }
        let mut w = [1.0; 3];
        arch.dispatch(Exp(&[-1e30, f32::NEG_INFINITY, -100.0], &mut w));
        assert_eq!(w, [0.0; 3]);
    }
}
