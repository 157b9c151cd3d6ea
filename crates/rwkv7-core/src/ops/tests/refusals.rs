//! What does not fit is refused, and the message names it.

use super::{
    case::{Case, Decay, Keys, Rate},
    *,
};

fn small() -> [Tensor<4>; 8] {
    let case = Case::random([1, 4, 2, 16], 1, Decay::Mixed, Rate::Random, Keys::Random);
    case.tensors(DType::F32, &Device::default())
}

#[test]
#[should_panic(expected = "wkv7: k has shape [1, 4, 2, 8], r has [1, 4, 2, 16]")]
fn a_wrong_shape_is_named() {
    let [r, log_w, _, v, a, b, s0, _] = small();
    let k = Tensor::zeros([1, 4, 2, 8], &r.device());
    wkv7(input([r, log_w, k, v, a, b]), s0);
}

#[test]
#[should_panic(expected = "wkv7: S0 has shape [1, 2, 16, 8], expected [1, 2, 16, 16]")]
fn a_wrong_state_is_named() {
    let [r, log_w, k, v, a, b, _, _] = small();
    let s0 = Tensor::zeros([1, 2, 16, 8], &r.device());
    wkv7(input([r, log_w, k, v, a, b]), s0);
}

#[test]
#[should_panic(expected = "wkv7: v is F64, r is F32")]
fn a_wrong_dtype_is_named() {
    let [r, log_w, k, v, a, b, s0, _] = small();
    wkv7(input([r, log_w, k, v.cast(DType::F64), a, b]), s0);
}

#[test]
#[should_panic(expected = "read_states: x is F64, the traced call computed in F32")]
fn a_query_of_a_wrong_dtype_is_named() {
    let [r, log_w, k, v, a, b, s0, x] = small();
    let (_, _, trace) = wkv7_traced(input([r, log_w, k, v, a, b]), s0);
    read_states(x.cast(DType::F64), &trace, Side::Value);
}

#[test]
#[should_panic(expected = "wkv7: r has shape [0, 4, 2, 16], an axis of which is empty")]
fn an_empty_batch_is_refused() {
    let device = Device::default();
    let [r, log_w, k, v, a, b] = [(); 6].map(|()| Tensor::zeros([0, 4, 2, 16], &device));
    let s0 = Tensor::zeros([0, 2, 16, 16], &device);
    wkv7(input([r, log_w, k, v, a, b]), s0);
}

#[test]
#[should_panic(
    expected = "read_states: x has shape [1, 4, 2, 8], the traced call expects [1, 4, 2, 16]"
)]
fn a_wrong_query_is_named() {
    let [r, log_w, k, v, a, b, s0, x] = small();
    let (_, _, trace) = wkv7_traced(input([r, log_w, k, v, a, b]), s0);
    read_states(x.narrow(3, 0, 8), &trace, Side::Value);
}

#[test]
#[should_panic(
    expected = "read_states: x has shape [1, 4, 2, 16], the traced call expects [1, 4, 2, 32]"
)]
fn a_query_of_the_other_side_is_named() {
    let device = Device::default();
    let zeros = |size| Tensor::<4>::zeros([1, 4, 2, size], &device);
    let tokens = input([
        zeros(32),
        zeros(32),
        zeros(32),
        zeros(16),
        zeros(32),
        zeros(32),
    ]);
    let (_, _, trace) = wkv7_traced(tokens, Tensor::zeros([1, 2, 16, 32], &device));
    read_states(zeros(16), &trace, Side::Key);
}
