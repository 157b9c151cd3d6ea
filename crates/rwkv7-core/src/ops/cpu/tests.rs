use pulp::Arch;

use super::oracle::{self, Case};
use super::{backward::backward_on, forward::forward_on, read::read_on, *};

/// SplitMix64, so that the tests need no crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[-scale, scale]`, rounded to f32.
    fn array(&mut self, len: usize, scale: f64) -> Vec<f64> {
        (0..len)
            .map(|_| round(scale * (2.0 * self.next() - 1.0)))
            .collect()
    }
}

fn round(x: f64) -> f64 {
    x as f32 as f64
}

#[derive(Debug, Clone, Copy)]
enum Decay {
    None,
    Strongest,
    Mixed,
    /// Down to `w = 0`.
    Forgetting,
}

#[derive(Debug, Clone, Copy)]
enum Keys {
    Random,
    /// One removal key for all tokens, learning rate 1.
    Repeated,
    /// Learning rate 0 or 1.
    Switched,
}

fn case(dims: Dims, decay: Decay, keys: Keys, with_s0: bool, seed: u64) -> Case {
    let mut random = Random(seed);
    let (n_keys, n_values) = (dims.keys(), dims.values());
    let log_w = (0..n_keys).map(|_| match decay {
        Decay::None => 0.0,
        Decay::Strongest => round(-0.60653),
        Decay::Mixed => round(-0.60653 * random.next()),
        Decay::Forgetting => match (4.0 * random.next()) as usize {
            0 => round(-1e30),
            1 => round(-200.0 * random.next()),
            2 => 0.0,
            _ => round(-random.next()),
        },
    });
    let log_w = log_w.collect();
    let mut a = random.array(n_keys, 1.0);
    let mut b = vec![0.0; n_keys];
    let per_token = dims.heads * dims.key;
    for n in 0..n_keys / dims.key {
        let (kappa, first) = (n * dims.key, (n * dims.key) % per_token);
        if matches!(keys, Keys::Repeated) && kappa != first {
            a.copy_within(first..first + dims.key, kappa);
            b.copy_within(first..first + dims.key, kappa);
            continue;
        }
        let norm = a[kappa..][..dims.key]
            .iter()
            .map(|x| x * x)
            .sum::<f64>()
            .sqrt();
        let switch = if random.next() < 0.5 { 0.0 } else { 1.0 };
        for j in kappa..kappa + dims.key {
            a[j] = round(-a[j] / norm);
            let rate = match keys {
                Keys::Random => random.next(),
                Keys::Repeated => 1.0,
                Keys::Switched => switch,
            };
            b[j] = round(-a[j] * rate);
        }
    }
    Case {
        dims,
        r: random.array(n_keys, 1.0),
        log_w,
        k: random.array(n_keys, 1.0),
        v: random.array(n_values, 1.0),
        a,
        b,
        x: random.array(n_values, 1.0),
        s0: with_s0.then(|| random.array(dims.states(), 1.0)),
        dy: random.array(n_values, 1.0),
        dz: random.array(n_keys, 1.0),
        d_state: random.array(dims.states(), 1.0),
    }
}

fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// Largest difference relative to the largest expected value.
fn close(name: &str, found: &[f32], expected: &[f64], tolerance: f64, context: &str) {
    assert_eq!(found.len(), expected.len(), "{name} {context}");
    let scale = expected
        .iter()
        .fold(0.0f64, |m, x| m.max(x.abs()))
        .max(1e-30);
    let error = found.iter().zip(expected).fold(0.0f64, |m, (f, e)| {
        let d = (*f as f64 - e).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    });
    assert!(
        error <= tolerance * scale,
        "{name}: relative error {:e}, {context}",
        error / scale
    );
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

/// Runs all functions at one level and compares them with the oracle.
fn check(arch: Arch, case: &Case, chunk: usize, context: &str) {
    let expected = case.forward();
    let full = case.backward(true, true, true);
    check_against(arch, case, chunk, context, &expected, &full);
    for (y, read, state) in [
        (true, false, false),
        (false, true, true),
        (false, false, true),
    ] {
        let context = format!("{context} y {y} read {read} state {state}");
        let expected = case.backward(y, read, state);
        check_backward(arch, case, chunk, &context, &expected, (y, read, state));
    }
}

fn check_against(
    arch: Arch,
    case: &Case,
    chunk: usize,
    context: &str,
    expected: &oracle::Outputs,
    full: &oracle::Gradients,
) {
    let dims = case.dims;
    let arrays = [&case.log_w, &case.k, &case.v, &case.a, &case.b].map(|x| f32s(x));
    let inputs = inputs(&arrays);
    let s0 = case.s0.as_ref().map(|s0| f32s(s0));
    let (r, x, dz) = (f32s(&case.r), f32s(&case.x), f32s(&case.dz));

    let mut starts = vec![f32::NAN; dims.starts(chunk)];
    for with_starts in [false, true] {
        let mut y = vec![f32::NAN; dims.values()];
        let mut state = vec![f32::NAN; dims.states()];
        let starts = with_starts.then_some(&mut starts[..]);
        forward_on(
            arch,
            dims,
            inputs,
            &r,
            s0.as_deref(),
            chunk,
            &mut y,
            &mut state,
            starts,
        );
        close("y", &y, &expected.y, 1e-5, context);
        close("state", &state, &expected.state, 1e-5, context);
    }
    close(
        "starts",
        &starts,
        &transposed_starts(case, expected, chunk),
        1e-5,
        context,
    );

    let mut z = vec![f32::NAN; dims.keys()];
    read_on(arch, dims, inputs, &x, &starts, chunk, &mut z);
    close("z", &z, &expected.z, 1e-5, context);

    let mut dx = vec![f32::NAN; dims.values()];
    let mut state = vec![f32::NAN; dims.states()];
    forward_on(
        arch,
        dims,
        inputs,
        &dz,
        s0.as_deref(),
        chunk,
        &mut dx,
        &mut state,
        None,
    );
    close("dx", &dx, &full.x, 1e-5, context);
    check_backward(arch, case, chunk, context, full, (true, true, true));
}

fn inputs(arrays: &[Vec<f32>; 5]) -> Inputs<'_> {
    let [log_w, k, v, a, b] = arrays;
    Inputs { log_w, k, v, a, b }
}

fn transposed_starts(case: &Case, expected: &oracle::Outputs, chunk: usize) -> Vec<f64> {
    let Dims {
        time, value, key, ..
    } = case.dims;
    let mut starts = vec![];
    for states in expected.states.chunks((time + 1) * value * key) {
        for t in (0..time).step_by(chunk) {
            let s = &states[t * value * key..];
            starts.extend((0..key * value).map(|n| s[(n % value) * key + n / value]));
        }
    }
    starts
}

fn check_backward(
    arch: Arch,
    case: &Case,
    chunk: usize,
    context: &str,
    expected: &oracle::Gradients,
    (with_y, with_read, with_state): (bool, bool, bool),
) {
    let dims = case.dims;
    let arrays = [&case.log_w, &case.k, &case.v, &case.a, &case.b].map(|x| f32s(x));
    let starts = f32s(&transposed_starts(case, &case.forward(), chunk));
    let (r, dy) = (f32s(&case.r), f32s(&case.dy));
    let (x, dz) = (f32s(&case.x), f32s(&case.dz));
    let d_state = f32s(&case.d_state);
    let keys = || vec![f32::NAN; dims.keys()];
    let (mut dr, mut dlog_w, mut dk, mut da, mut db) = (keys(), keys(), keys(), keys(), keys());
    let mut dv = vec![f32::NAN; dims.values()];
    let mut ds0 = vec![f32::NAN; dims.states()];
    backward_on(
        arch,
        dims,
        inputs(&arrays),
        &starts,
        chunk,
        with_y.then_some(Query {
            key: &r,
            value: &dy,
        }),
        with_read.then_some(Query {
            key: &dz,
            value: &x,
        }),
        with_state.then_some(&d_state[..]),
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
    for (name, found, expected) in [
        ("dr", &dr, &expected.r),
        ("dlog_w", &dlog_w, &expected.log_w),
        ("dk", &dk, &expected.k),
        ("dv", &dv, &expected.v),
        ("da", &da, &expected.a),
        ("db", &db, &expected.b),
        ("ds0", &ds0, &expected.s0),
    ] {
        close(name, found, expected, 1e-4, context);
    }
}

fn dims(batch: usize, time: usize, heads: usize, value: usize, key: usize) -> Dims {
    Dims {
        batch,
        time,
        heads,
        value,
        key,
    }
}

fn check_levels(case: &Case, chunk: usize, context: &str) {
    for arch in levels() {
        check(
            arch,
            case,
            chunk,
            &format!("{context} chunk {chunk} {arch:?} {:?}", case.dims),
        );
    }
}

#[test]
fn all_sizes_agree_with_the_oracle() {
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
        let with_s0 = n % 2 == 0;
        let case = case(
            dims(1, 37, 2, value, key),
            Decay::Mixed,
            Keys::Random,
            with_s0,
            1,
        );
        check_levels(&case, 16, "sizes");
    }
    let case = case(dims(1, 9, 1, 256, 256), Decay::Mixed, Keys::Random, true, 1);
    check_levels(&case, 16, "sizes");
}

#[test]
fn all_lengths_and_chunks_agree_with_the_oracle() {
    for (n, time) in [1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 200]
        .into_iter()
        .enumerate()
    {
        for chunk in [1, 6, 16, 32, 64] {
            let case = case(
                dims(1 + n % 3, time, 1 + n % 5, 16, 20),
                Decay::Mixed,
                Keys::Random,
                n % 2 == 0,
                n as u64,
            );
            check_levels(&case, chunk, "lengths");
        }
    }
}

#[test]
fn decays_and_removal_keys_at_their_limits_agree_with_the_oracle() {
    for decay in [
        Decay::None,
        Decay::Strongest,
        Decay::Mixed,
        Decay::Forgetting,
    ] {
        for keys in [Keys::Random, Keys::Repeated, Keys::Switched] {
            let case = case(dims(2, 70, 2, 16, 16), decay, keys, true, 3);
            check_levels(&case, DEFAULT_CHUNK, &format!("{decay:?} {keys:?}"));
        }
    }
}

#[test]
fn a_long_sequence_of_full_heads_agrees_with_the_oracle() {
    for (decay, keys) in [(Decay::Mixed, Keys::Random), (Decay::None, Keys::Repeated)] {
        let case = case(dims(1, 1000, 3, 64, 64), decay, keys, true, 4);
        let context = format!("long {decay:?} {keys:?}");
        check_against(
            Arch::new(),
            &case,
            DEFAULT_CHUNK,
            &context,
            &case.forward(),
            &case.backward(true, true, true),
        );
    }
}

#[test]
fn token_by_token_equals_one_call() {
    let whole = case(dims(1, 9, 2, 64, 64), Decay::Mixed, Keys::Random, true, 5);
    let expected = whole.forward();
    let arrays = [&whole.log_w, &whole.k, &whole.v, &whole.a, &whole.b].map(|x| f32s(x));
    let r = f32s(&whole.r);
    for arch in levels() {
        let mut state = whole.s0.as_ref().map(|s0| f32s(s0)).unwrap();
        let mut y = vec![];
        for t in 0..9 {
            let width = 2 * 64;
            let step: [Vec<f32>; 5] = arrays
                .each_ref()
                .map(|array| array[t * width..][..width].to_vec());
            let s0 = state.clone();
            let mut y_t = vec![0.0; width];
            let r = &r[t * width..][..width];
            let one = Dims {
                time: 1,
                ..whole.dims
            };
            forward_on(
                arch,
                one,
                inputs(&step),
                r,
                Some(&s0),
                16,
                &mut y_t,
                &mut state,
                None,
            );
            y.extend(y_t);
        }
        close("y", &y, &expected.y, 1e-5, &format!("{arch:?}"));
        close("state", &state, &expected.state, 1e-5, &format!("{arch:?}"));
    }
}

#[test]
fn golden_vector() {
    // Reference section 4.6; log_w from the listed w, dlog_w = dw w.
    let w = [
        0.738403149974731,
        0.930251567306666,
        0.641844355253279,
        0.849488209142927,
        0.561150906792801,
        0.685545320713089f64,
    ];
    let kappa = [0.6, 0.8, 1.0, 0.0, -0.8, 0.6];
    let rate = [0.5, 0.25, 0.75, 1.0, 0.125, 0.5];
    let dw = [
        -0.207179903,
        1.364623054,
        0.408897599,
        9.112047822,
        1.630282356,
        -1.341755486,
    ];
    let case = Case {
        dims: dims(1, 3, 1, 2, 2),
        r: vec![1.0, -0.5, 0.25, 2.0, -1.0, 0.5],
        log_w: w.iter().map(|w| w.ln()).collect(),
        k: vec![0.5, 1.0, -1.0, 0.25, 0.75, -0.5],
        v: vec![1.0, 2.0, -1.0, 0.5, 0.25, -2.0],
        a: kappa.iter().map(|x| -x).collect(),
        b: kappa.iter().zip(rate).map(|(x, rate)| x * rate).collect(),
        x: vec![0.0; 6],
        s0: Some(vec![0.1, -0.2, 0.3, 0.4]),
        dy: vec![1.0, -1.0, 0.5, 2.0, -0.25, 0.75],
        dz: vec![0.0; 6],
        d_state: vec![1.0, 0.0, 0.0, -1.0],
    };
    let mut outputs = case.forward();
    outputs.y = vec![
        0.186865471728,
        -0.064529368469,
        1.150533666818,
        3.956272625448,
        -0.499191743872,
        2.618601075903,
    ];
    outputs.state = vec![
        0.664733373541,
        0.331083259340,
        -1.673029170186,
        1.891143811434,
    ];
    let gradients = oracle::Gradients {
        r: vec![
            -0.46768063,
            -1.43815094,
            -0.764436447,
            4.339460598,
            -1.420955221,
            1.335587044,
        ],
        log_w: dw.iter().zip(w).map(|(dw, w)| dw * w).collect(),
        k: vec![
            -1.072973941,
            7.542151224,
            -0.701870224,
            0.807710252,
            1.8125,
            1.21875,
        ],
        v: vec![
            0.821856091,
            3.091904081,
            -0.443486925,
            0.920621724,
            1.0,
            -0.25,
        ],
        a: vec![
            0.160515386,
            0.097585027,
            0.306673199,
            0.417084406,
            -0.082599588,
            -0.305696247,
        ],
        b: vec![
            0.591880166,
            -1.759706514,
            -0.408897599,
            -4.510271095,
            1.885208277,
            1.019529685,
        ],
        x: vec![0.0; 6],
        s0: vec![0.473199963, 0.054996989, -0.988705069, 3.005935279],
    };
    let oracle = case.backward(true, false, true);
    for (found, expected) in [
        (&oracle.r, &gradients.r),
        (&oracle.log_w, &gradients.log_w),
        (&oracle.k, &gradients.k),
        (&oracle.v, &gradients.v),
        (&oracle.a, &gradients.a),
        (&oracle.b, &gradients.b),
        (&oracle.s0, &gradients.s0),
    ] {
        close("oracle", &f32s(found), expected, 1e-6, "golden");
    }
    for arch in levels() {
        check_against(arch, &case, 16, "golden", &outputs, &gradients);
        check_against(arch, &case, 2, "golden", &outputs, &gradients);
    }
}

#[test]
fn the_oracle_agrees_with_finite_differences() {
    let case = case(dims(1, 7, 2, 3, 4), Decay::Mixed, Keys::Random, true, 6);
    let loss = |case: &Case| {
        let out = case.forward();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        dot(&out.y, &case.dy) + dot(&out.z, &case.dz) + dot(&out.state, &case.d_state)
    };
    let g = case.backward(true, true, true);
    type Field = fn(&mut Case) -> &mut Vec<f64>;
    let fields: [(&str, Field, &Vec<f64>); 8] = [
        ("r", |c| &mut c.r, &g.r),
        ("log_w", |c| &mut c.log_w, &g.log_w),
        ("k", |c| &mut c.k, &g.k),
        ("v", |c| &mut c.v, &g.v),
        ("a", |c| &mut c.a, &g.a),
        ("b", |c| &mut c.b, &g.b),
        ("x", |c| &mut c.x, &g.x),
        ("s0", |c| c.s0.as_mut().unwrap(), &g.s0),
    ];
    for (name, field, gradient) in fields {
        for n in 0..gradient.len() {
            let step = 1e-5;
            let shifted = |by: f64| {
                let mut case = case.clone();
                field(&mut case)[n] += by;
                loss(&case)
            };
            let found = (shifted(step) - shifted(-step)) / (2.0 * step);
            let error = (found - gradient[n]).abs();
            assert!(
                error < 1e-7 * (1.0 + gradient[n].abs()),
                "d{name}[{n}]: {error:e}"
            );
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
            super::exp::exp_row(simd, self.0, self.1);
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
