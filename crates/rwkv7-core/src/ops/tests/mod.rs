//! All paths of the operations against independent ones: of the recurrence and of the reads of its states, against a scalar
//! loop in f64.

pub mod case;
mod custom;
#[cfg(feature = "flex")]
mod fused;
mod loss;
mod parameters;
mod refusals;
pub mod scalar;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Side, Wkv7Input, chunked, read_states, reference, widen, wkv7, wkv7_traced};
use case::{Case, Decay, Keys, LIMITS, Rate, Results, SIDES, assert_close, named};

/// y, S and z.
type Recurrence<'a> = &'a dyn Fn(Wkv7Input, Tensor<4>, (Tensor<4>, Side)) -> [Tensor<4>; 3];

/// What users call: the custom operation where there is one.
fn public(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state, trace) = wkv7_traced(input, s0);
    [y, state, read_states(x, &trace, side)]
}

/// As [`public`], but y and S come from the call that leaves no trace.
fn untraced(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state) = wkv7(input.clone(), s0.clone());
    let (_, _, trace) = wkv7_traced(input, s0);
    [y, state, read_states(x, &trace, side)]
}

/// As [`untraced`], with the removal key in f32, as the layers make it.
fn wide_keys(input: Wkv7Input, s0: Tensor<4>, query: (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let [a, b] = [input.a, input.b].map(widen);
    untraced(Wkv7Input { a, b, ..input }, s0, query)
}

fn by_reference(input: Wkv7Input, s0: Tensor<4>, (x, side): (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    let (y, state, states) = reference::wkv7_traced(input, s0);
    [y, state, reference::read_states(x, &states, side)]
}

fn by_chunks(chunk: usize) -> impl Fn(Wkv7Input, Tensor<4>, (Tensor<4>, Side)) -> [Tensor<4>; 3] {
    move |input, s0, (x, side)| {
        let (y, state, trace) = chunked::wkv7_traced(input, s0, chunk);
        [y, state, chunked::read_states(x, &trace, side)]
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

fn call(operator: Recurrence, tensors: [Tensor<4>; 8], side: Side) -> [Tensor<4>; 3] {
    let [r, log_w, k, v, a, b, s0, x] = tensors;
    operator(input([r, log_w, k, v, a, b]), s0, (x, side))
}

fn values(x: Tensor<4>) -> Vec<f64> {
    x.into_data_dtype(DType::F64).try_to_vec::<f64>().unwrap()
}

/// y, S, z, and the gradients of `Σ y ⊙ dy + Σ S ⊙ ds + Σ z ⊙ dz` by all eight inputs.
fn run(operator: Recurrence, case: &Case, dtype: DType) -> Results {
    let device = Device::default().autodiff();
    let inputs = case.tensors(dtype, &device).map(Tensor::require_grad);
    let outputs = call(operator, inputs.clone(), case.side);
    let weighted = outputs.iter().zip(case.output_gradients()).map(|(x, d)| {
        let d = Tensor::from_data(TensorData::new(d, x.dims()), (&device, x.dtype()));
        (x.clone() * d).cast(DType::F32).sum()
    });
    let grads = weighted.reduce(|a, b| a + b).unwrap().backward();
    let gradients = inputs.map(|x| values(x.grad(&grads).unwrap()));
    named(outputs.map(values), gradients)
}

/// Both tensor forms in f64: outputs, states and all gradients.
#[cfg(feature = "flex")]
#[test]
fn tensor_forms_agree_with_the_scalar_loop_in_f64() {
    let case = Case::random([2, 19, 2, 4], 12, Decay::Mixed, Rate::Random, Keys::Random);
    let forms: [(&str, Recurrence); 3] = [
        ("reference", &by_reference),
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

/// Compares a form with the scalar loop in f32, on both sides.
fn compare(operator: Recurrence, case: &Case, what: &str) {
    for case in SIDES.map(|side| case.on(side)) {
        compare_one(operator, &case, what);
    }
}

fn compare_one(operator: Recurrence, case: &Case, what: &str) {
    let expected = scalar::run(case, &case.output_gradients());
    let found = run(operator, case, DType::F32);
    let what = format!("{what}, {:?}, {:?} side", case.dims, case.side);
    assert_close(&found, &expected, LIMITS, &what);
}

const LENGTHS: [usize; 6] = [1, 15, 16, 17, 64, 200];

#[test]
fn the_reference_is_the_scalar_loop() {
    for time in [1, 17] {
        let case = Case::random(
            [2, time, 3, 16],
            1,
            Decay::Mixed,
            Rate::Random,
            Keys::Random,
        );
        compare(&by_reference, &case, "reference");
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

/// Where values and keys differ in size.
#[test]
fn values_may_be_longer_or_shorter_than_keys() {
    for (time, value, key) in [(1, 32, 16), (33, 32, 16), (17, 16, 32), (33, 16, 32)] {
        for side in SIDES {
            let (dims, decay) = ([2, time, 2, value, key], Decay::Mixed);
            let mut case = Case::rectangular(dims, 9, decay, Rate::Random, Keys::Random);
            if side == Side::Key {
                // Queries in key space: any of that size.
                case.values[7] = case.values[2].iter().map(|k| 1.0 - k).collect();
            }
            case.side = side;
            compare_one(&public, &case, "custom");
            compare_one(&by_chunks(chunked::CHUNK), &case, "chunked");
        }
    }
}
