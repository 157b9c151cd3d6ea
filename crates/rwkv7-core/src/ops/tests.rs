//! All forms of the operator and of the read of its states: against golden values, against a scalar loop in f64, and that
//! loop against finite differences.

mod refusals;
mod scalar;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Side, Wkv7Input, chunked, oracle, sse, widen, wkv7, wkv7_traced};

const NAMES: [&str; 8] = ["r", "log_w", "k", "v", "a", "b", "s0", "x"];

/// r, log_w, k, v, a, b `[batch, time, heads, size]`, S0 `[batch, heads, size, size]` and queries x
/// `[batch, time, heads, size]`, in row-major order, and the side that these are read on.
#[derive(Clone)]
struct Case {
    dims: [usize; 4],
    values: [Vec<f64>; 8],
    side: Side,
}

const SIDES: [Side; 2] = [Side::Value, Side::Key];

/// How the keys of a case are drawn.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Random,
    Repeated,
}

/// How the decays of a case are drawn.
#[derive(Clone, Copy)]
enum Decay {
    /// As a trained model has them.
    Mixed,
    /// RWKV-7's floor.
    Strongest,
    /// None at all.
    Slowest,
}

/// How the in-context rates of a case are drawn.
#[derive(Clone, Copy)]
enum Rate {
    Random,
    Always(f64),
}

impl Case {
    fn shape(&self, i: usize) -> [usize; 4] {
        let [batch, _, heads, size] = self.dims;
        if i == 6 {
            [batch, heads, size, size]
        } else {
            self.dims
        }
    }

    /// Keys of length 1 as RWKV-7 makes them.
    fn random(dims: [usize; 4], seed: u64, decay: Decay, rate: Rate, keys: Keys) -> Self {
        let [batch, time, heads, size] = dims;
        let mut rng = StdRng::seed_from_u64(seed);
        let count = batch * time * heads * size;
        let mut uniform =
            |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let [r, k, v, x] = [
            uniform(count),
            uniform(count),
            uniform(count),
            uniform(count),
        ];
        let s0 = uniform(batch * heads * size * size);
        let mut unit = uniform(count);
        for row in unit.chunks_mut(size) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        if keys == Keys::Repeated {
            let first = unit[..size].to_vec();
            unit.chunks_mut(size)
                .for_each(|row| row.copy_from_slice(&first));
        }
        let log_w = (0..count)
            .map(|_| {
                let z: f64 = match decay {
                    Decay::Mixed => rng.random_range(-6.0..3.0),
                    Decay::Strongest => 40.0,
                    Decay::Slowest => return 0.0,
                };
                -0.606_530_659_712_633_4 / (1.0 + (-z).exp())
            })
            .collect();
        let a = unit.iter().map(|x| -x).collect();
        let b = unit
            .iter()
            .map(|x| {
                x * match rate {
                    Rate::Random => rng.random(),
                    Rate::Always(rate) => rate,
                }
            })
            .collect();
        Self {
            dims,
            values: [r, log_w, k, v, a, b, s0, x],
            side: Side::Value,
        }
    }

    /// The same with queries for this side.
    fn on(&self, side: Side) -> Self {
        Self {
            side,
            ..self.clone()
        }
    }

    /// What a sequence starts from.
    fn without_state(mut self) -> Self {
        self.values[6].fill(0.0);
        self
    }

    fn tensors(&self, dtype: DType, device: &Device) -> [Tensor<4>; 8] {
        std::array::from_fn(|i| {
            let data = TensorData::new(self.values[i].clone(), self.shape(i));
            Tensor::from_data(data, (device, dtype))
        })
    }

    /// Any gradients of y, S and z.
    fn output_gradients(&self) -> [Vec<f64>; 3] {
        let mut rng = StdRng::seed_from_u64(99);
        [3, 6, 2].map(|i| {
            let n = self.values[i].len();
            (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
        })
    }
}

/// y, S and z.
type Operator<'a> = &'a dyn Fn(Wkv7Input, Tensor<4>, (Tensor<4>, Side)) -> [Tensor<4>; 3];

/// What users call: the custom operation where there is one.
fn public(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state, trace) = wkv7_traced(input, s0);
    [y, state, sse(x, &trace, side)]
}

/// As [`public`], but y and S come from the call that leaves no trace.
fn untraced(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state) = wkv7(input.clone(), s0.clone());
    let (_, _, trace) = wkv7_traced(input, s0);
    [y, state, sse(x, &trace, side)]
}

/// As [`untraced`], with the removal key in f32, as the layers make it.
fn wide_keys(input: Wkv7Input, s0: Tensor<4>, query: (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let [a, b] = [input.a, input.b].map(widen);
    untraced(Wkv7Input { a, b, ..input }, s0, query)
}

fn by_oracle(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state, states) = oracle::wkv7_traced(input, s0);
    [y, state, oracle::sse(x, &states, side)]
}

fn by_chunks(chunk: usize) -> impl Fn(Wkv7Input, Tensor<4>, (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    move |input, s0, (x, side)| {
        let (y, state, trace) = chunked::wkv7_traced(input, s0, chunk);
        [y, state, chunked::sse(x, &trace, side)]
    }
}

fn input([r, log_w, k, v, a, b]: [Tensor<4>; 6]) -> Wkv7Input {
    Wkv7Input {
        r,
        log_w,
        k,
        v,
        a,
        b,
    }
}

fn call(operator: Operator, tensors: [Tensor<4>; 8], side: Side) -> [Tensor<4>; 3] {
    let [r, log_w, k, v, a, b, s0, x] = tensors;
    operator(input([r, log_w, k, v, a, b]), s0, (x, side))
}

fn values(x: Tensor<4>) -> Vec<f64> {
    x.into_data_dtype(DType::F64).try_to_vec::<f64>().unwrap()
}

/// Named outputs and gradients.
type Results = Vec<(String, Vec<f64>)>;

/// y, S, z, and the gradients of `Σ y ⊙ dy + Σ S ⊙ ds + Σ z ⊙ dz` by all eight inputs.
fn run(operator: Operator, case: &Case, dtype: DType) -> Results {
    let device = Device::default().autodiff();
    let inputs = case.tensors(dtype, &device).map(Tensor::require_grad);
    let outputs = call(operator, inputs.clone(), case.side);
    let weighted = outputs.iter().zip(case.output_gradients()).map(|(x, d)| {
        let d = Tensor::from_data(TensorData::new(d, x.dims()), (&device, x.dtype()));
        (x.clone() * d).cast(DType::F32).sum()
    });
    let grads = weighted.reduce(|a, b| a + b).unwrap().backward();
    let outputs = ["y", "state", "z"].into_iter().zip(outputs);
    let gradients = NAMES.iter().zip(&inputs);
    outputs
        .map(|(name, x)| (name.to_string(), values(x)))
        .chain(gradients.map(|(name, x)| (format!("d{name}"), values(x.grad(&grads).unwrap()))))
        .collect()
}

fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let error = found.iter().zip(expected).fold(0.0, |m: f64, (a, b)| {
        assert!(a.is_finite(), "not finite: {a}");
        m.max((a - b).abs())
    });
    if scale > 0.0 { error / scale } else { error }
}

/// Outputs to `limits.0` and gradients to `limits.1` of the largest expected value.
fn assert_close(found: &Results, expected: &Results, limits: (f64, f64), what: &str) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let error = relative_error(found, expected);
        let limit = if name.starts_with('d') {
            limits.1
        } else {
            limits.0
        };
        assert!(error < limit, "{what}, {name}: relative error {error:e}");
    }
}

const LIMITS: (f64, f64) = (1e-5, 1e-4);

/// Reference `rwkv7.md` 4.6, computed in numpy.
#[test]
fn golden_values() {
    let w: [f64; 6] = [
        0.738403149974731,
        0.930251567306666,
        0.641844355253279,
        0.849488209142927,
        0.561150906792801,
        0.685545320713089,
    ];
    let k_hat = [0.6, 0.8, 1.0, 0.0, -0.8, 0.6];
    let rate = [0.5, 0.25, 0.75, 1.0, 0.125, 0.5];
    let case = Case {
        dims: [1, 3, 1, 2],
        values: [
            vec![1.0, -0.5, 0.25, 2.0, -1.0, 0.5],
            w.iter().map(|w| w.ln()).collect(),
            vec![0.5, 1.0, -1.0, 0.25, 0.75, -0.5],
            vec![1.0, 2.0, -1.0, 0.5, 0.25, -2.0],
            k_hat.iter().map(|k| -k).collect(),
            k_hat.iter().zip(rate).map(|(k, a)| k * a).collect(),
            vec![0.1, -0.2, 0.3, 0.4],
            vec![0.0; 6],
        ],
        side: Side::Value,
    };
    let dw = [
        -0.207179903,
        1.364623054,
        0.408897599,
        9.112047822,
        1.630282356,
        -1.341755486,
    ];
    let expected: [(&str, Vec<f64>); 9] = [
        (
            "y",
            vec![
                0.186865471728,
                -0.064529368469,
                1.150533666818,
                3.956272625448,
                -0.499191743872,
                2.618601075903,
            ],
        ),
        (
            "state",
            vec![
                0.664733373541,
                0.331083259340,
                -1.673029170186,
                1.891143811434,
            ],
        ),
        (
            "dr",
            vec![
                -0.46768063,
                -1.43815094,
                -0.764436447,
                4.339460598,
                -1.420955221,
                1.335587044,
            ],
        ),
        // The derivative by ln w is that by w times w.
        ("dlog_w", dw.iter().zip(w).map(|(d, w)| d * w).collect()),
        (
            "dk",
            vec![
                -1.072973941,
                7.542151224,
                -0.701870224,
                0.807710252,
                1.8125,
                1.21875,
            ],
        ),
        (
            "dv",
            vec![
                0.821856091,
                3.091904081,
                -0.443486925,
                0.920621724,
                1.0,
                -0.25,
            ],
        ),
        (
            "da",
            vec![
                0.160515386,
                0.097585027,
                0.306673199,
                0.417084406,
                -0.082599588,
                -0.305696247,
            ],
        ),
        (
            "db",
            vec![
                0.591880166,
                -1.759706514,
                -0.408897599,
                -4.510271095,
                1.885208277,
                1.019529685,
            ],
        ),
        (
            "ds0",
            vec![0.473199963, 0.054996989, -0.988705069, 3.005935279],
        ),
    ];
    let dy = vec![1.0, -1.0, 0.5, 2.0, -0.25, 0.75];
    let ds = vec![1.0, 0.0, 0.0, -1.0];
    let found = scalar::run(&case, &[dy.clone(), ds.clone(), vec![0.0; 6]]);
    let find = |results: &Results, name: &str| {
        let found = results.iter().find(|(n, _)| n == name);
        found.unwrap().1.clone()
    };
    for (name, expected) in &expected {
        let error = relative_error(&find(&found, name), expected);
        assert!(error < 1e-8, "scalar {name}: relative error {error:e}");
    }
    let forms: [(&str, Operator); 3] = [
        ("oracle", &by_oracle),
        ("chunked", &by_chunks(chunked::CHUNK)),
        ("public", &public),
    ];
    for (form, operator) in forms {
        let device = Device::default().autodiff();
        let inputs = case.tensors(DType::F32, &device).map(Tensor::require_grad);
        let [y, state, _] = call(operator, inputs.clone(), case.side);
        let weigh = |x: &Tensor<4>, d: &Vec<f64>| {
            let d = TensorData::new(d.clone(), x.dims());
            (x.clone() * Tensor::from_data(d, (&device, DType::F32))).sum()
        };
        let grads = (weigh(&y, &dy) + weigh(&state, &ds)).backward();
        for (name, expected) in &expected {
            let found = match *name {
                "y" => y.clone(),
                "state" => state.clone(),
                name => {
                    let i = NAMES.iter().position(|n| name[1..] == **n).unwrap();
                    inputs[i].grad(&grads).unwrap()
                }
            };
            let error = relative_error(&values(found), expected);
            assert!(error < 1e-5, "{form} {name}: relative error {error:e}");
        }
    }
}

/// In f64, the scalar loop's gradients against central differences of its outputs.
#[test]
fn the_scalar_loop_agrees_with_finite_differences() {
    let case = Case::random([1, 9, 2, 4], 11, Decay::Mixed, Rate::Random, Keys::Random);
    for side in SIDES {
        gradients_are_slopes(&case.on(side));
    }
}

fn gradients_are_slopes(case: &Case) {
    let weights = case.output_gradients();
    let loss = |case: &Case| -> f64 {
        let results = scalar::run(case, &weights);
        let sums = results.iter().zip(&weights).map(|((_, x), d)| {
            let products = x.iter().zip(d).map(|(x, d)| x * d);
            products.sum::<f64>()
        });
        sums.sum()
    };
    let found = scalar::run(case, &weights);
    for (i, name) in NAMES.iter().enumerate() {
        let gradient = &found[3 + i].1;
        for (j, &found) in gradient.iter().enumerate() {
            let step = 1e-5;
            let shifted = |by: f64| {
                let mut case = case.clone();
                case.values[i][j] += by;
                loss(&case)
            };
            let expected = (shifted(step) - shifted(-step)) / (2.0 * step);
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-7, "d{name}[{j}]: {found} and {expected}");
        }
    }
}

/// Both tensor forms in f64: outputs, states and all gradients.
#[cfg(feature = "flex")]
#[test]
fn tensor_forms_agree_with_the_scalar_loop_in_f64() {
    let case = Case::random([2, 19, 2, 4], 12, Decay::Mixed, Rate::Random, Keys::Random);
    let forms: [(&str, Operator); 3] = [
        ("oracle", &by_oracle),
        ("chunked", &by_chunks(8)),
        ("public", &public),
    ];
    for case in SIDES.map(|side| case.on(side)) {
        let expected = scalar::run(&case, &case.output_gradients());
        for (form, operator) in forms {
            let found = run(operator, &case, DType::F64);
            assert_close(&found, &expected, (1e-7, 1e-7), form);
        }
    }
}

/// Compares a form with the scalar loop in f32, both sides.
fn compare(operator: Operator, case: &Case, what: &str) {
    for case in SIDES.map(|side| case.on(side)) {
        let expected = scalar::run(&case, &case.output_gradients());
        let found = run(operator, &case, DType::F32);
        let what = format!("{what}, {:?}, {:?} side", case.dims, case.side);
        assert_close(&found, &expected, LIMITS, &what);
    }
}

const LENGTHS: [usize; 6] = [1, 15, 16, 17, 64, 200];

#[test]
fn the_oracle_is_the_scalar_loop() {
    for time in [1, 17] {
        let case = Case::random(
            [2, time, 3, 16],
            1,
            Decay::Mixed,
            Rate::Random,
            Keys::Random,
        );
        compare(&by_oracle, &case, "oracle");
    }
}

#[test]
fn chunks_of_any_length_agree() {
    for time in LENGTHS {
        let case = Case::random(
            [2, time, 3, 16],
            time as u64,
            Decay::Mixed,
            Rate::Random,
            Keys::Random,
        );
        compare(&by_chunks(chunked::CHUNK), &case, "chunked");
    }
    let case = Case::random([2, 70, 2, 16], 7, Decay::Mixed, Rate::Random, Keys::Random);
    for chunk in [2, 4, 8, 32, 64] {
        compare(&by_chunks(chunk), &case, &format!("chunk {chunk}"));
    }
}

#[test]
fn chunks_bear_the_strongest_and_the_slowest_decay() {
    for time in LENGTHS {
        for decay in [Decay::Strongest, Decay::Slowest] {
            let case = Case::random([1, time, 2, 16], 3, decay, Rate::Random, Keys::Random);
            compare(&by_chunks(chunked::CHUNK), &case, "chunked");
        }
    }
}

/// With one key repeated and rate 1 the powers of the triangular matrix explode: the inverse must not be built of them.
#[test]
fn chunks_bear_repeated_keys() {
    for time in LENGTHS {
        for rate in [0.0, 1.0] {
            let case = Case::random(
                [1, time, 2, 16],
                5,
                Decay::Slowest,
                Rate::Always(rate),
                Keys::Repeated,
            );
            compare(&by_chunks(chunked::CHUNK), &case, "chunked");
            compare(&by_chunks(64), &case, "chunked");
        }
    }
}

/// The custom operation: every size with every length once, and other batches, heads, decays and keys in turn.
#[test]
fn custom_operation_agrees() {
    let decays = [Decay::Mixed, Decay::Strongest, Decay::Slowest];
    let rates = [Rate::Random, Rate::Always(0.0), Rate::Always(1.0)];
    let mut n = 0;
    for size in [16, 32, 64, 128] {
        for time in [1, 15, 16, 17, 33, 64, 200, 1000] {
            // A GPU test on a software driver has to be small.
            let heads = if size * time > 16_384 { 1 } else { 1 + n % 5 };
            let batch = if size * time > 4096 { 1 } else { 1 + n % 3 };
            let keys = if n % 4 == 3 {
                Keys::Repeated
            } else {
                Keys::Random
            };
            let dims = [batch, time, heads, size];
            let mut case = Case::random(dims, n as u64, decays[n % 3], rates[n / 2 % 3], keys);
            if n % 2 == 0 {
                case = case.without_state();
            }
            compare(&public, &case, "custom");
            n += 1;
        }
    }
}

/// Cases drawn at random.
#[test]
fn custom_operation_agrees_on_random_cases() {
    let mut rng = StdRng::seed_from_u64(2024);
    for seed in 0..24 {
        let dims = [
            rng.random_range(1..4),
            rng.random_range(1..150),
            rng.random_range(1..6),
            16 * rng.random_range(1..5),
        ];
        let decay = [Decay::Mixed, Decay::Strongest, Decay::Slowest][rng.random_range(0..3)];
        let keys = if rng.random() {
            Keys::Random
        } else {
            Keys::Repeated
        };
        let rate = Rate::Always(rng.random());
        let case = Case::random(dims, seed, decay, rate, keys);
        compare(&public, &case, "custom");
    }
}

#[test]
fn custom_operation_in_half_precision() {
    for dtype in [DType::BF16, DType::F16] {
        if !Device::default().supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        for dims in [[2, 40, 2, 32], [1, 17, 3, 16], [1, 33, 1, 64]] {
            let mut case = Case::random(dims, 8, Decay::Mixed, Rate::Random, Keys::Random);
            // The values that the half-precision tensors hold, so that only the arithmetic is compared.
            let rounded = case.tensors(dtype, &Device::default()).map(values);
            case.values = rounded;
            let round = |d: Vec<f64>| {
                let data = TensorData::new(d.clone(), [d.len(), 1, 1, 1]);
                values(Tensor::from_data(data, (&Device::default(), dtype)))
            };
            let [dy, d_state, dz] = case.output_gradients();
            let weights = [round(dy), d_state, round(dz)];
            let forms: [(&str, Operator); 3] = [
                ("traced", &public),
                ("untraced", &untraced),
                ("untraced, a and b in f32", &wide_keys),
            ];
            for case in SIDES.map(|side| case.on(side)) {
                let expected = scalar::run(&case, &weights);
                for (form, operator) in forms {
                    let found = run(operator, &case, dtype);
                    let what = format!("{form} {dtype:?} {dims:?} {:?} side", case.side);
                    // A gradient is rounded in both calls and in their sum: bf16 keeps it to 2⁻⁹ each time.
                    assert_close(&found, &expected, (5e-3, 6e-3), &what);
                }
            }
        }
    }
}

/// The gradients are the sum of what each output says, whichever of them the loss looks at.
#[test]
fn custom_operation_any_output_alone() {
    let case = Case::random([2, 21, 2, 16], 4, Decay::Mixed, Rate::Random, Keys::Random);
    let weights = case.output_gradients();
    let device = Device::default().autodiff();
    let read = [case.on(Side::Value), case.on(Side::Key)];
    for (used, case) in [(0, &case), (1, &case), (2, &read[0]), (2, &read[1])] {
        let mut only = weights.clone();
        for (i, weights) in only.iter_mut().enumerate() {
            if i != used {
                weights.fill(0.0);
            }
        }
        let expected = scalar::run(case, &only);
        let inputs = case.tensors(DType::F32, &device).map(Tensor::require_grad);
        let output = call(&public, inputs.clone(), case.side)[used].clone();
        let d = TensorData::new(weights[used].clone(), output.dims());
        let grads = (output * Tensor::from_data(d, (&device, DType::F32)))
            .sum()
            .backward();
        for (i, name) in NAMES.iter().enumerate() {
            let found = inputs[i]
                .grad(&grads)
                .map_or(vec![0.0; case.values[i].len()], values);
            let error = relative_error(&found, &expected[3 + i].1);
            assert!(error < 1e-4, "output {used} alone, d{name}: {error:e}");
        }
    }
}

/// Where the oracle runs: a software GPU driver would compile kernels for minutes.
fn slow_device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(not(feature = "flex"))]
    Device::default()
}

/// As in Meta-State, where the query is made of y; and the states may be read more than once, on both sides.
#[test]
fn custom_operation_reads_with_queries_from_y() {
    let case = Case::random([2, 33, 2, 16], 6, Decay::Mixed, Rate::Random, Keys::Random);
    let weights = case.output_gradients();
    type Loss<'a> = &'a dyn Fn(Wkv7Input, Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;
    let gradients = |device: Device, operator: Loss| {
        let device = device.autodiff();
        let inputs = case.tensors(DType::F32, &device).map(Tensor::require_grad);
        let [r, log_w, k, v, a, b, s0, x] = inputs.clone();
        let weight = TensorData::new(weights[2].clone(), case.dims);
        let weight = Tensor::from_data(weight, (&device, DType::F32));
        let out = operator(input([r, log_w, k, v, a, b]), s0, x, weight);
        let grads = out.sum().backward();
        inputs.map(|x| values(x.grad(&grads).unwrap()))
    };
    let found = gradients(Device::default(), &|input, s0, x, weight| {
        let (y, _, trace) = wkv7_traced(input, s0);
        let z = sse(y * x.clone(), &trace, Side::Value);
        let again = sse(z.clone() + x, &trace, Side::Key);
        (z * weight.clone()) + again * weight
    });
    let expected = gradients(slow_device(), &|input, s0, x, weight| {
        let (y, _, states) = oracle::wkv7_traced(input, s0);
        let z = oracle::sse(y * x.clone(), &states, Side::Value);
        let again = oracle::sse(z.clone() + x, &states, Side::Key);
        (z * weight.clone()) + again * weight
    });
    for ((name, found), expected) in NAMES.iter().zip(found).zip(expected) {
        let error = relative_error(&found, &expected);
        assert!(error < 1e-4, "d{name}: {error:e}");
    }
}

/// Where values and keys differ in size: outputs and gradients against the oracle.
#[test]
fn values_may_be_longer_or_shorter_than_keys() {
    let chunked = by_chunks(chunked::CHUNK);
    for (time, value, key, side) in [
        (1, 32, 16, Side::Key),
        (33, 32, 16, Side::Value),
        (33, 32, 16, Side::Key),
        (17, 16, 32, Side::Value),
        (33, 16, 32, Side::Key),
    ] {
        let [v, k] = [value, key].map(|size| [2, time, 2, size]);
        let (x, z) = match side {
            Side::Value => (v, k),
            Side::Key => (k, v),
        };
        // r, log_w, k, a, b; v; S0; x. The larger case's rows are cut off: its keys are no unit vectors then, only short.
        let whole = Case::random(
            [2, time, 2, 32],
            9,
            Decay::Mixed,
            Rate::Random,
            Keys::Random,
        );
        let shapes = [k, k, k, v, k, k, [2, 2, value, key], x];
        let weights = [v, [2, 2, value, key], z];
        let results = |operator: Operator, device: Device| {
            let device = device.autodiff();
            let mut at = 0;
            let inputs = whole.tensors(DType::F32, &device).map(|whole| {
                let shape = shapes[at];
                at += 1;
                whole.slice(shape.map(|size| 0..size)).require_grad()
            });
            let outputs = call(operator, inputs.clone(), side);
            assert_eq!(outputs.clone().map(|x| x.dims()), weights);
            let waves = outputs.clone().map(|x| {
                let (shape, count) = (x.shape(), x.shape().num_elements());
                let wave = (0..count).map(|i| (0.7 * i as f64).sin()).collect();
                let wave = Tensor::<4>::from_data(TensorData::new(wave, shape), &device);
                (x * wave).sum()
            });
            let grads = waves.into_iter().reduce(|a, b| a + b).unwrap().backward();
            let gradients = inputs.map(|x| values(x.grad(&grads).unwrap()));
            outputs.map(values).into_iter().chain(gradients)
        };
        let expected: Vec<_> = results(&by_oracle, slow_device()).collect();
        let names = ["y", "state", "z"].into_iter().chain(NAMES);
        for (form, operator) in [("custom", &public as Operator), ("chunked", &chunked)] {
            let found = results(operator, Device::default());
            for ((name, found), expected) in names.clone().zip(found).zip(&expected) {
                let error = relative_error(&found, expected);
                let what = format!("{form}, {time} tokens, {value} by {key}, {side:?} side");
                assert!(error < 1e-4, "{what}, {name}: {error:e}");
            }
        }
    }
}

/// Constants get no gradient, and nothing breaks.
#[test]
fn custom_operation_with_constants() {
    let case = Case::random([1, 20, 2, 16], 6, Decay::Mixed, Rate::Random, Keys::Random);
    let device = Device::default().autodiff();
    for case in SIDES.map(|side| case.on(side)) {
        let expected = scalar::run(&case, &case.output_gradients().map(|d| vec![1.0; d.len()]));
        for tracked in [0, 3, 6, 7] {
            let mut inputs = case.tensors(DType::F32, &device);
            inputs[tracked] = inputs[tracked].clone().require_grad();
            let [y, state, z] = call(&public, inputs.clone(), case.side);
            let grads = (y.sum() + state.sum() + z.sum()).backward();
            let found = values(inputs[tracked].grad(&grads).unwrap());
            let error = relative_error(&found, &expected[3 + tracked].1);
            let name = NAMES[tracked];
            assert!(error < 1e-4, "d{name}, {:?} side: {error:e}", case.side);
        }
    }
}
