//! The custom operations around the recurrence, on the default device, against the formulas in tensor operations: outputs and
//! all gradients.

use std::io::Write;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};

use crate::ops::{
    self, KeyPreparation, Path, ReadOut, backends::Activation, is_cpu, narrow, reference,
    takes_kernel, widen,
};

fn device() -> Device {
    Device::default().autodiff()
}

/// A tracked tensor of any values.
fn draw<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &device()).require_grad()
}

/// Outputs, and the gradients by the inputs of a weighted sum of them.
fn results<const D: usize>(
    outputs: Vec<Tensor<D>>,
    gradients: impl Fn(&burn::tensor::Gradients) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let weighted = outputs.iter().enumerate().map(|(i, x)| {
        let n = x.shape().num_elements();
        let weights: Vec<f32> = (0..n)
            .map(|j| ((j * 37 + i * 11) % 19) as f32 / 9.0 - 1.0)
            .collect();
        let weights = Tensor::<D>::from_data(TensorData::new(weights, x.dims()), &device());
        (widen(x.clone()) * weights).sum()
    });
    let loss = weighted.reduce(|a, b| a + b).unwrap();
    let mut all: Vec<Vec<f32>> = outputs.into_iter().map(values).collect();
    all.extend(gradients(&loss.backward()));
    all
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    widen(x).into_data().try_to_vec().unwrap()
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_within(2e-5, found, expected, "f32");
}

fn assert_within(limit: f32, found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected.iter().fold(1e-6_f32, |m, x| m.max(x.abs()));
        assert_eq!(found.len(), expected.len());
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() < limit * scale,
                "{what}: result {i}, element {at}: {a} and {b}, of {scale}"
            );
        }
    }
}

/// What computes an operation, and the type of its inputs.
#[derive(Clone, Copy)]
enum Way {
    Kernel(DType),
    /// In f32, of the same rounded numbers.
    Formula(DType),
}

impl Way {
    fn give<const D: usize>(self, x: &Tensor<D>) -> Tensor<D> {
        match self {
            Self::Kernel(dtype) => narrow(x.clone(), dtype),
            Self::Formula(dtype) => widen(narrow(x.clone(), dtype)),
        }
    }

    fn pick<F>(self, kernel: F, formula: F) -> F {
        match self {
            Self::Kernel(_) => kernel,
            Self::Formula(_) => formula,
        }
    }
}

/// Compares kernels with formulas, in every type that the device's kernels read.
fn compare(run: impl Fn(Way) -> Vec<Vec<f32>>) {
    for (dtype, limit) in [(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let is_half = dtype != DType::F32;
        if is_half && is_cpu(&device().inner()) {
            continue;
        }
        if !device().supports_dtype(dtype) {
            let _ = writeln!(std::io::stderr(), "skipped: the device has no {dtype:?}");
            continue;
        }
        if Path::asked() == (None, false) {
            let probe = narrow(Tensor::<1>::zeros([1], &device()), dtype);
            assert!(takes_kernel(&probe, [], 17), "no kernel for {dtype:?}");
        }
        let (found, expected) = (run(Way::Kernel(dtype)), run(Way::Formula(dtype)));
        assert_within(limit, &found, &expected, &format!("{dtype:?}"));
    }
}

macro_rules! gradients {
    ($($input:expr),+) => {
        |grads| vec![$(values($input.grad(grads).unwrap())),+]
    };
}

/// Channels of one number each, and of four together; blocks of rows that begin and end within a sequence.
#[test]
fn token_shift() {
    for (time, channels) in [(1, 48), (7, 48), (19, 21)] {
        let (h, last) = (draw([3, time, channels]), draw([3, channels]));
        let mu = draw([1, 1, channels]);
        compare(|way| {
            let (h_in, last_in, mu_in) = (way.give(&h), last.clone(), way.give(&mu));
            let output = match way {
                Way::Kernel(_) => ops::token_shift(h_in, last_in, mu_in),
                Way::Formula(dtype) => {
                    let last_in = Way::Formula(dtype).give(&last);
                    let [output] = reference::token_shift(h_in, last_in, [mu_in]);
                    output
                }
            };
            results(vec![output], gradients!(h, last, mu))
        });
    }
}

type SixShifts = fn(Tensor<3>, Tensor<2>, [Tensor<3>; 6]) -> [Tensor<3>; 6];

#[test]
fn six_token_shifts() {
    for (time, channels) in [(13, 32), (1, 1032)] {
        let (h, last) = (draw([2, time, channels]), draw([2, channels]));
        let mus: [Tensor<3>; 6] = std::array::from_fn(|_| draw([1, 1, channels]));
        compare(|way| {
            let f: SixShifts = way.pick(ops::six_token_shifts, reference::token_shift);
            let mus_in = mus.each_ref().map(|mu| way.give(mu));
            let outputs = f(way.give(&h), way.give(&last), mus_in);
            results(outputs.to_vec(), |grads| {
                let mut all = gradients!(h, last)(grads);
                all.extend(mus.iter().map(|mu| values(mu.grad(grads).unwrap())));
                all
            })
        });
    }
}

/// Heads, head sizes; one head more than a cube holds, and heads of more units than add up all numbers each.
const HEADS: [[usize; 2]; 3] = [[3, 16], [9, 64], [1, 128]];

#[test]
fn key_preparation() {
    for [heads, size] in HEADS {
        let channels = heads * size;
        let [k, w, a] = std::array::from_fn(|_| draw([2, 5, channels]));
        let [w0, a0, k_k, k_a] = std::array::from_fn(|_| draw([1, 1, channels]));
        compare(|way| {
            let input = KeyPreparation {
                k: way.give(&k),
                w: way.give(&w),
                a: way.give(&a),
                w0: way.give(&w0),
                a0: way.give(&a0),
                k_k: way.give(&k_k),
                k_a: way.give(&k_a),
            };
            let keys = way.pick(
                ops::key_preparation as fn(_, _) -> _,
                reference::key_preparation,
            )(input, size);
            let outputs = vec![keys.log_w, keys.k, keys.a, keys.b];
            results(outputs, gradients!(k, w, a, w0, a0, k_k, k_a))
        });
    }
}

type RemovalKey = fn(Tensor<4>, Tensor<3>, Tensor<3>) -> (Tensor<4>, Tensor<4>);

#[test]
fn removal_key() {
    for [heads, size] in HEADS {
        let z = draw([2, 5, heads, size]);
        let (rate, bias) = (draw([2, 5, heads * size]), draw([1, 1, heads * size]));
        compare(|way| {
            let f: RemovalKey = way.pick(ops::removal_key, reference::removal_key);
            let (a, b) = f(way.give(&z), way.give(&rate), way.give(&bias));
            results(vec![a, b], gradients!(z, rate, bias))
        });
    }
}

/// As a ReLU makes them.
#[test]
fn keys_of_zeros_give_finite_numbers() {
    let mut numbers = vec![0.0_f32; 32];
    numbers[16..].fill(0.5);
    let data = TensorData::new(numbers, [1, 1, 2, 16]);
    let z = Tensor::<4>::from_data(data, &device()).require_grad();
    let (rate, bias) = (draw([1, 1, 32]), draw([1, 1, 32]));
    let (a, b) = ops::removal_key(z.clone(), rate.clone(), bias.clone());
    let all = results(vec![a, b], gradients!(z, rate, bias));
    assert!(all.iter().flatten().all(|x| x.is_finite()), "{all:?}");
    assert!(all[0][..16].iter().all(|x| *x == 0.0), "{:?}", all[0]);
}

type ValueResidual = fn(Tensor<3>, Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>;

#[test]
fn value_residual() {
    for channels in [48, 21] {
        let [v, first, s] = std::array::from_fn(|_| draw([2, 5, channels]));
        let v0 = draw([1, 1, channels]);
        compare(|way| {
            let f: ValueResidual = way.pick(ops::value_residual, reference::value_residual);
            let [v_in, first_in, s_in, v0_in] = [&v, &first, &s, &v0].map(|x| way.give(x));
            let output = f(v_in, first_in, s_in, v0_in);
            results(vec![output], gradients!(v, first, s, v0))
        });
    }
}

#[test]
fn read_out() {
    for [heads, size] in HEADS {
        let channels = heads * size;
        let [y, r, k, v] = std::array::from_fn(|_| draw([2, 5, heads, size]));
        let gate = draw([2, 5, channels]);
        let r_k = draw([heads, size]);
        let (gamma, beta) = (draw([channels]), draw([channels]));
        compare(|way| {
            let output = way.pick(ops::read_out as fn(_) -> _, reference::read_out)(ReadOut {
                y: way.give(&y),
                r: way.give(&r),
                k: way.give(&k),
                v: way.give(&v),
                gate: way.give(&gate),
                r_k: way.give(&r_k),
                gamma: way.give(&gamma),
                beta: way.give(&beta),
                epsilon: 64e-5,
                prefix: None,
            });
            results(vec![output], gradients!(y, r, k, v, gate, r_k, gamma, beta))
        });
    }
}

type Norm = fn(Tensor<3>, Tensor<1>, Tensor<1>, f64) -> Tensor<3>;

/// Rows that fill a cube, that do not, and that are longer.
#[test]
fn layer_norm() {
    for channels in [48, 21, 1100] {
        let x = draw([2, 5, channels]);
        let (gamma, beta) = (draw([channels]), draw([channels]));
        compare(|way| {
            let f: Norm = way.pick(ops::layer_norm, reference::layer_norm);
            // A mean far from 0 must not cost digits.
            let shifted = way.give(&(x.clone() + 3.0));
            let output = f(shifted, way.give(&gamma), way.give(&beta), 1e-5);
            results(vec![output], gradients!(x, gamma, beta))
        });
    }
}

#[test]
fn activations() {
    let x = draw([9, 21]);
    for activation in [
        Activation::ReluSquared,
        Activation::Sigmoid,
        Activation::Tanh,
    ] {
        compare(|way| {
            let f: fn(Tensor<2>, Activation) -> Tensor<2> =
                way.pick(ops::activation, reference::activation);
            results(vec![f(way.give(&x), activation)], gradients!(x))
        });
    }
}

#[test]
fn cross_entropy() {
    let logits = draw([6, 29]);
    let targets = Tensor::<1, Int>::from_data([3, 0, 28, 7, 7, 11], &device());
    let run = |f: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
        results(vec![f(logits.clone(), targets.clone())], gradients!(logits))
    };
    assert_close(&run(ops::cross_entropy), &run(reference::cross_entropy));
}

/// Outputs that the loss does not depend on have no gradient, and what is not tracked is a constant.
#[test]
fn unused_outputs_and_constants() {
    let (h, last) = (draw([1, 4, 16]), draw([1, 16]).detach());
    let mus: [Tensor<3>; 6] = std::array::from_fn(|_| draw([1, 1, 16]));
    let run = |f: SixShifts| {
        let outputs = f(h.clone(), last.clone(), mus.clone());
        let used = outputs[1].clone();
        results(vec![used], gradients!(h, mus[1]))
    };
    assert_close(&run(ops::six_token_shifts), &run(reference::token_shift));
}

#[test]
fn matmul_bf16() {
    if !ops::has_bf16_matmul(&device()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: this processor has no bf16 products"
        );
        return;
    }
    let (x, weight) = (draw([50, 70]), draw([70, 33]));
    let run = |product: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
        results(
            vec![product(x.clone(), weight.clone())],
            gradients!(x, weight),
        )
    };
    let found = run(ops::matmul_bf16);
    // Factors rounded and products in f32: forward alone, as gradients would not be rounded.
    let expected = run(|x, weight| {
        let [x, weight] = [x, weight].map(|x| x.cast(DType::BF16).cast(DType::F32));
        x.matmul(weight)
    });
    assert_close(&found[..1], &expected[..1]);
    // Everything against f32: 70 products of numbers rounded to 8 bits.
    for (found, expected) in found.iter().zip(run(|x, weight| x.matmul(weight))) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 0.03, "{a} and {b}");
        }
    }
}
