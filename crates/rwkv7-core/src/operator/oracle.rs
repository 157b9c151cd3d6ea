//! Token by token, as the equations read: slow, simple, and what every other form is compared with.

use burn::tensor::Tensor;

use super::Wkv7Input;

/// The recurrence of the [module](super), one token at a time; differentiable by autodiff.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let time = input.r.dims()[1];
    // One token as rows [batch, heads, 1, size]; transposed, as columns.
    let row = |x: &Tensor<4>, t: usize| x.clone().narrow(1, t, 1).swap_dims(1, 2);
    let mut state = s0; // [batch, heads, value, key]
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let [r, log_w, k, v, a, b] = [
            &input.r,
            &input.log_w,
            &input.k,
            &input.v,
            &input.a,
            &input.b,
        ]
        .map(|x| row(x, t));
        let sa = state.clone().matmul(a.transpose()); // [batch, heads, value, 1]
        state = state * log_w.exp() + sa * b + v.transpose() * k;
        outputs.push(state.clone().matmul(r.transpose()).permute([0, 3, 1, 2]));
    }
    (Tensor::cat(outputs, 1), state)
}
