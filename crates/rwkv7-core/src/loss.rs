//! Losses of language modelling.

use burn::tensor::{Int, Tensor};

/// Mean cross-entropy in nats over the counted tokens.
///
/// # Shapes
///
/// - `logits`: `[batch, time, V]`, computed in f32 whatever their dtype
/// - `targets`: `[batch, time]`
/// - `mask`: `[batch, time]`, 1 for tokens that count and 0 for others; `None` counts all
/// - output: `[1]`
pub fn cross_entropy(
    logits: Tensor<3>,
    targets: Tensor<2, Int>,
    mask: Option<Tensor<2>>,
) -> Tensor<1> {
    let losses = token_losses(logits, targets);
    match mask {
        None => losses.mean(),
        Some(mask) => (losses * mask.clone()).sum() / mask.sum().clamp_min(1.0),
    }
}

/// Cross-entropy of every token in nats, `[batch, time]`.
pub fn token_losses(logits: Tensor<3>, targets: Tensor<2, Int>) -> Tensor<2> {
    let [batch, time, vocab] = logits.dims();
    let logits = crate::ops::widen(logits).reshape([batch * time, vocab]);
    let losses = crate::ops::cross_entropy(logits, targets.reshape([batch * time]));
    losses.reshape([batch, time])
}

/// L2Wrap of the official training code: a term of value 0 whose gradient pulls the largest logit of every token
/// towards 0, by 1e-4/(batch · time) of its value.
pub fn l2_wrap(logits: Tensor<3>) -> Tensor<1> {
    let [batch, time, _] = logits.dims();
    let largest = crate::ops::widen(logits).max_dim(2);
    let penalty = largest.square().sum() * (0.5e-4 / (batch * time) as f64);
    penalty.clone() - penalty.detach()
}
