//! Both forms of the operator against golden values, against each other, and against finite differences.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Wkv7Input, chunked, oracle};

const NAMES: [&str; 7] = ["r", "log_w", "k", "v", "a", "b", "s0"];

/// r, log_w, k, v, a, b `[batch, time, heads, size]` and S0 `[batch, heads, size, size]`, in row-major order.
#[derive(Clone)]
struct Case {
    dims: [usize; 4],
    values: [Vec<f64>; 7],
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

    /// Keys of length 1 as RWKV-7 makes them; `decay` and `rate` draw the decay pre-activation and the in-context rate.
    fn random(
        dims: [usize; 4],
        seed: u64,
        decay: impl Fn(&mut StdRng) -> f64,
        rate: impl Fn(&mut StdRng) -> f64,
        repeat_keys: bool,
    ) -> Self {
        let [batch, time, heads, size] = dims;
        let mut rng = StdRng::seed_from_u64(seed);
        let count = batch * time * heads * size;
        let mut uniform =
            |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let [r, k, v] = [uniform(count), uniform(count), uniform(count)];
        let s0 = uniform(batch * heads * size * size);
        let mut unit = uniform(count);
        for row in unit.chunks_mut(size) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        if repeat_keys {
            let first = unit[..size].to_vec();
            unit.chunks_mut(size)
                .for_each(|row| row.copy_from_slice(&first));
        }
        let log_w = (0..count)
            .map(|_| -0.606_530_659_712_633_4 / (1.0 + (-decay(&mut rng)).exp()))
            .collect();
        let a = unit.iter().map(|x| -x).collect();
        let b = unit.iter().map(|x| x * rate(&mut rng)).collect();
        Self {
            dims,
            values: [r, log_w, k, v, a, b, s0],
        }
    }

    fn tensors(&self, dtype: DType, device: &Device) -> [Tensor<4>; 7] {
        std::array::from_fn(|i| {
            let data = TensorData::new(self.values[i].clone(), self.shape(i));
            Tensor::from_data(data, (device, dtype))
        })
    }
}

type Operator<'a> = &'a dyn Fn(Wkv7Input, Tensor<4>) -> (Tensor<4>, Tensor<4>);

fn call(operator: Operator, tensors: [Tensor<4>; 7]) -> (Tensor<4>, Tensor<4>) {
    let [r, log_w, k, v, a, b, s0] = tensors;
    operator(
        Wkv7Input {
            r,
            log_w,
            k,
            v,
            a,
            b,
        },
        s0,
    )
}

/// Outputs, final state and the gradients of `Σ y ⊙ dy + Σ S ⊙ ds` by all seven inputs.
fn run(
    operator: Operator,
    case: &Case,
    dy: &[f64],
    ds: &[f64],
    dtype: DType,
) -> Vec<(String, Vec<f64>)> {
    let device = Device::default().autodiff();
    let inputs = case.tensors(dtype, &device).map(Tensor::require_grad);
    let (y, state) = call(operator, inputs.clone());
    let weigh = |x: Tensor<4>, d: &[f64]| {
        let d = TensorData::new(d.to_vec(), x.dims());
        (x * Tensor::from_data(d, (&device, dtype))).sum()
    };
    let loss = weigh(y.clone(), dy) + weigh(state.clone(), ds);
    let grads = loss.backward();
    let values = |x: Tensor<4>| x.into_data_dtype(DType::F64).try_to_vec::<f64>().unwrap();
    let mut out = vec![("y".into(), values(y)), ("state".into(), values(state))];
    for (name, input) in NAMES.iter().zip(&inputs) {
        out.push((format!("d{name}"), values(input.grad(&grads).unwrap())));
    }
    out
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

fn output_gradients(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let mut rng = StdRng::seed_from_u64(99);
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    (draw(case.values[3].len()), draw(case.values[6].len()))
}

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
        ],
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
    let dy = [1.0, -1.0, 0.5, 2.0, -0.25, 0.75];
    let ds = [1.0, 0.0, 0.0, -1.0];
    let forms: [(&str, Operator); 2] = [
        ("oracle", &oracle::wkv7),
        ("chunked", &|i, s| chunked::wkv7(i, s, chunked::CHUNK)),
    ];
    for (form, operator) in forms {
        let found = run(operator, &case, &dy, &ds, DType::F32);
        for ((name, found), (expected_name, expected)) in found.iter().zip(&expected) {
            assert_eq!(name, expected_name);
            let error = relative_error(found, expected);
            assert!(error < 1e-5, "{form} {name}: relative error {error:e}");
        }
    }
}

/// Outputs and states to 1e-5, gradients to 1e-4 of the oracle's largest value.
fn compare(case: &Case, chunk: usize, what: &str) {
    let (dy, ds) = output_gradients(case);
    let expected = run(&oracle::wkv7, case, &dy, &ds, DType::F32);
    let found = run(
        &|i, s| chunked::wkv7(i, s, chunk),
        case,
        &dy,
        &ds,
        DType::F32,
    );
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        let error = relative_error(found, expected);
        let limit = if name.starts_with('d') { 1e-4 } else { 1e-5 };
        assert!(
            error < limit,
            "{what}, T = {}, chunk {chunk}, {name}: relative error {error:e}",
            case.dims[1]
        );
    }
}

const LENGTHS: [usize; 6] = [1, 15, 16, 17, 64, 200];

#[test]
fn chunked_agrees_with_the_oracle() {
    for time in LENGTHS {
        let case = Case::random(
            [2, time, 3, 16],
            time as u64,
            |r| r.random_range(-6.0..3.0),
            |r| r.random(),
            false,
        );
        compare(&case, chunked::CHUNK, "random");
    }
}

#[test]
fn every_chunk_length_agrees() {
    let case = Case::random(
        [2, 70, 2, 16],
        7,
        |r| r.random_range(-6.0..3.0),
        |r| r.random(),
        false,
    );
    for chunk in [2, 4, 8, 32, 64] {
        compare(&case, chunk, "random");
    }
}

#[test]
fn strongest_and_slowest_decay() {
    for time in LENGTHS {
        for (what, decay) in [("strongest decay", 40.0), ("slowest decay", -20.0)] {
            let case = Case::random([1, time, 2, 16], 3, |_| decay, |r| r.random(), false);
            compare(&case, chunked::CHUNK, what);
        }
    }
}

/// With one key repeated and rate 1 the powers of the triangular matrix explode: the inverse must not be built of them.
#[test]
fn repeated_keys() {
    for time in LENGTHS {
        for (what, rate) in [("repeated keys, a = 1", 1.0), ("repeated keys, a = 0", 0.0)] {
            let case = Case::random([1, time, 2, 16], 5, |_| -20.0, |_| rate, true);
            compare(&case, chunked::CHUNK, what);
            compare(&case, 64, what);
        }
    }
}

/// In f64, every gradient of both forms against central differences of the oracle.
#[cfg(feature = "flex")]
#[test]
fn gradients_against_finite_differences() {
    let case = Case::random(
        [1, 19, 2, 4],
        11,
        |r| r.random_range(-6.0..3.0),
        |r| r.random(),
        false,
    );
    let (dy, ds) = output_gradients(&case);
    let device = Device::flex();
    let loss = |case: &Case| -> f64 {
        let (y, state) = call(&oracle::wkv7, case.tensors(DType::F64, &device));
        let sum = |x: Tensor<4>, d: &[f64]| -> f64 {
            x.into_data()
                .try_to_vec::<f64>()
                .unwrap()
                .iter()
                .zip(d)
                .map(|(x, d)| x * d)
                .sum()
        };
        sum(y, &dy) + sum(state, &ds)
    };
    let forms: [(&str, Operator); 2] = [
        ("oracle", &oracle::wkv7),
        ("chunked", &|i, s| chunked::wkv7(i, s, 8)),
    ];
    for (form, operator) in forms {
        let found = run(operator, &case, &dy, &ds, DType::F64);
        for (i, name) in NAMES.iter().enumerate() {
            let gradient = &found[2 + i].1;
            for j in (0..gradient.len()).step_by(7) {
                let step = 1e-5;
                let shifted = |by: f64| {
                    let mut case = case.clone();
                    case.values[i][j] += by;
                    loss(&case)
                };
                let expected = (shifted(step) - shifted(-step)) / (2.0 * step);
                let error = (gradient[j] - expected).abs() / expected.abs().max(1.0);
                assert!(
                    error < 1e-7,
                    "{form} d{name}[{j}]: {} against {expected}",
                    gradient[j]
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "wkv7: k has shape [1, 4, 2, 8], r has [1, 4, 2, 16]")]
fn a_wrong_shape_is_named() {
    let device = Device::default();
    let case = Case::random([1, 4, 2, 16], 1, |_| 0.0, |_| 0.5, false);
    let [r, log_w, _, v, a, b, s0] = case.tensors(DType::F32, &device);
    let k = Tensor::zeros([1, 4, 2, 8], &device);
    super::wkv7(
        Wkv7Input {
            r,
            log_w,
            k,
            v,
            a,
            b,
        },
        s0,
    );
}
