//! Token by token, as the equations read: slow, simple, and what every other form is compared with.

use burn::tensor::Tensor;

use super::{Side, Wkv7Input};

/// The recurrence of the [module](super), one token at a time; differentiable by autodiff.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let (y, state, _) = run(input, s0, false);
    (y, state)
}

/// [`wkv7`] and the states after each token, `[batch, time, heads, value, key]`.
pub fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, Tensor<5>) {
    let (y, state, states) = run(input, s0, true);
    (y, state, Tensor::cat(states, 1))
}

/// `z_t = x_t S_t` or `z_t = S_t x_t` for the states of [`wkv7_traced`].
pub fn sse(x: Tensor<4>, states: &Tensor<5>, side: Side) -> Tensor<4> {
    let states = match side {
        Side::Value => states.clone(),
        Side::Key => states.clone().transpose(),
    };
    x.unsqueeze_dim::<5>(3).matmul(states).squeeze_dim(3)
}

fn run(input: Wkv7Input, s0: Tensor<4>, keep: bool) -> (Tensor<4>, Tensor<4>, Vec<Tensor<5>>) {
    let time = input.r.dims()[1];
    // One token as rows [batch, heads, 1, size]; transposed, as columns.
    let row = |x: &Tensor<4>, t: usize| x.clone().narrow(1, t, 1).swap_dims(1, 2);
    let mut state = s0; // [batch, heads, value, key]
    let mut states = Vec::new();
    let mut outputs = Vec::with_capacity(time);
    for t in 0..time {
        let [r, log_w, k, v, a, b] = input.named().map(|(_, x)| row(x, t));
        let sa = state.clone().matmul(a.transpose()); // [batch, heads, value, 1]
        state = state * log_w.exp() + sa * b + v.transpose() * k;
        outputs.push(state.clone().matmul(r.transpose()).permute([0, 3, 1, 2]));
        if keep {
            states.push(state.clone().unsqueeze_dim::<5>(1));
        }
    }
    (Tensor::cat(outputs, 1), state, states)
}
