//! The custom operations around the recurrence, on the CPU, against the formulas in tensor operations: outputs and all
//! gradients.

use std::io::Write;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};

use crate::ops::{self, KeyPreparation, Keys, ReadOut, backends::Activation, reference};

fn device() -> Device {
    Device::flex().autodiff()
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
        (x.clone() * weights).sum()
    });
    let loss = weighted.reduce(|a, b| a + b).unwrap();
    let mut all: Vec<Vec<f32>> = outputs.into_iter().map(values).collect();
    all.extend(gradients(&loss.backward()));
    all
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected.iter().fold(1e-6_f32, |m, x| m.max(x.abs()));
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!(
                (a - b).abs() < 2e-5 * scale,
                "result {i}: {a} and {b}, of {scale}"
            );
        }
    }
}

macro_rules! gradients {
    ($($input:expr),+) => {
        |grads| vec![$(values($input.grad(grads).unwrap())),+]
    };
}

#[test]
fn token_shift() {
    for time in [1, 7] {
        let (h, last, mu) = (draw([3, time, 48]), draw([3, 48]), draw([1, 1, 48]));
        let run = |f: fn(Tensor<3>, Tensor<2>, [Tensor<3>; 1]) -> [Tensor<3>; 1]| {
            let outputs = f(h.clone(), last.clone(), [mu.clone()]);
            results(outputs.to_vec(), gradients!(h, last, mu))
        };
        let custom = run(|h, last, [mu]| [ops::token_shift(h, last, mu)]);
        assert_close(&custom, &run(reference::token_shift));
    }
}

type SixShifts = fn(Tensor<3>, Tensor<2>, [Tensor<3>; 6]) -> [Tensor<3>; 6];

#[test]
fn six_token_shifts() {
    let (h, last) = (draw([2, 5, 32]), draw([2, 32]));
    let mus: [Tensor<3>; 6] = std::array::from_fn(|_| draw([1, 1, 32]));
    let run = |f: SixShifts| {
        let outputs = f(h.clone(), last.clone(), mus.clone());
        results(outputs.to_vec(), |grads| {
            let mut all = vec![
                values(h.grad(grads).unwrap()),
                values(last.grad(grads).unwrap()),
            ];
            all.extend(mus.iter().map(|mu| values(mu.grad(grads).unwrap())));
            all
        })
    };
    assert_close(&run(ops::six_token_shifts), &run(reference::token_shift));
}

#[test]
fn key_preparation() {
    let [k, w, a] = std::array::from_fn(|_| draw([2, 5, 48]));
    let [w0, a0, k_k, k_a] = std::array::from_fn(|_| draw([1, 1, 48]));
    let run = |f: fn(KeyPreparation, usize) -> Keys| {
        let input = KeyPreparation {
            k: k.clone(),
            w: w.clone(),
            a: a.clone(),
            w0: w0.clone(),
            a0: a0.clone(),
            k_k: k_k.clone(),
            k_a: k_a.clone(),
        };
        let keys = f(input, 16);
        let outputs = vec![keys.log_w, keys.k, keys.a, keys.b];
        results(outputs, gradients!(k, w, a, w0, a0, k_k, k_a))
    };
    assert_close(&run(ops::key_preparation), &run(reference::key_preparation));
}

#[test]
fn removal_key() {
    let z = draw([2, 5, 3, 16]);
    let (rate, bias) = (draw([2, 5, 48]), draw([1, 1, 48]));
    let run = |f: fn(Tensor<4>, Tensor<3>, Tensor<3>) -> (Tensor<4>, Tensor<4>)| {
        let (a, b) = f(z.clone(), rate.clone(), bias.clone());
        results(vec![a, b], gradients!(z, rate, bias))
    };
    assert_close(&run(ops::removal_key), &run(reference::removal_key));
}

#[test]
fn value_residual() {
    let [v, first, s] = std::array::from_fn(|_| draw([2, 5, 48]));
    let v0 = draw([1, 1, 48]);
    let run = |f: fn(Tensor<3>, Tensor<3>, Tensor<3>, Tensor<3>) -> Tensor<3>| {
        let output = f(v.clone(), first.clone(), s.clone(), v0.clone());
        results(vec![output], gradients!(v, first, s, v0))
    };
    assert_close(&run(ops::value_residual), &run(reference::value_residual));
}

#[test]
fn read_out() {
    let [y, r, k, v] = std::array::from_fn(|_| draw([2, 5, 3, 16]));
    let gate = draw([2, 5, 48]);
    let r_k = draw([3, 16]);
    let (gamma, beta) = (draw([48]), draw([48]));
    let run = |f: fn(ReadOut) -> Tensor<3>| {
        let output = f(ReadOut {
            y: y.clone(),
            r: r.clone(),
            k: k.clone(),
            v: v.clone(),
            gate: gate.clone(),
            r_k: r_k.clone(),
            gamma: gamma.clone(),
            beta: beta.clone(),
            epsilon: 64e-5,
            prefix: None,
        });
        results(vec![output], gradients!(y, r, k, v, gate, r_k, gamma, beta))
    };
    assert_close(&run(ops::read_out), &run(reference::read_out));
}

#[test]
fn layer_norm() {
    let x = draw([2, 5, 48]);
    let (gamma, beta) = (draw([48]), draw([48]));
    let run = |f: fn(Tensor<3>, Tensor<1>, Tensor<1>, f64) -> Tensor<3>| {
        let output = f(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        results(vec![output], gradients!(x, gamma, beta))
    };
    assert_close(&run(ops::layer_norm), &run(reference::layer_norm));
}

#[test]
fn activations() {
    let x = draw([9, 21]);
    for activation in [
        Activation::ReluSquared,
        Activation::Sigmoid,
        Activation::Tanh,
    ] {
        let run = |f: fn(Tensor<2>, Activation) -> Tensor<2>| {
            results(vec![f(x.clone(), activation)], gradients!(x))
        };
        assert_close(&run(ops::activation), &run(reference::activation));
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
