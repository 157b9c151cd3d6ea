//! Losses of language modelling.

use burn::tensor::{Int, Tensor};

use crate::{Rwkv7, layers::ChannelMixer, ops};

/// The share of its largest logit by which [`l2_wrap`] pulls each token's logits, before the mean over the tokens.
const L2_WRAP: f64 = 1e-4;

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
    let logits = logits.reshape([batch * time, vocab]);
    let losses = ops::cross_entropy(logits, targets.reshape([batch * time]));
    losses.reshape([batch, time])
}

/// L2Wrap of the official training code: a term of value 0 whose gradient pulls the largest logit of every token
/// towards 0, by 1e-4/(batch · time) of its value.
pub fn l2_wrap(logits: Tensor<3>) -> Tensor<1> {
    let [batch, time, _] = logits.dims();
    let largest = ops::widen(logits).max_dim(2);
    let penalty = largest.square().sum() * (0.5 * L2_WRAP / (batch * time) as f64);
    penalty.clone() - penalty.detach()
}

/// A model's loss on a batch.
pub struct ModelLoss {
    /// Mean cross-entropy in nats over the counted tokens, `[1]`, with the gradient of [`l2_wrap`] if that was asked for.
    pub loss: Tensor<1>,
    /// How many of the counted tokens have their largest logit at the target, `[1]`; outside autodiff.
    pub correct: Tensor<1>,
}

impl<M: ChannelMixer> Rwkv7<M> {
    /// The loss of sequences from their first token on. Where the device has kernels for the loss, the logits of all tokens never
    /// exist at once, and the gradients of the head are computed beside the loss; elsewhere this is [`cross_entropy`] of
    /// [`forward`](Self::forward)'s logits.
    ///
    /// # Shapes
    ///
    /// - `tokens`, `targets`: `[batch, time]`
    /// - `mask`: `[batch, time]`, 1 for tokens that count and 0 for others; `None` counts all
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn loss(
        &self,
        tokens: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        mask: Option<Tensor<2>>,
        with_l2_wrap: bool,
    ) -> ModelLoss {
        let [batch, time] = tokens.dims();
        if ops::has_head_loss(&self.head.weight.val()) && self.head.bias.is_none() {
            let x = self.before_head(tokens);
            let width = x.dims()[2];
            let rows = batch * time;
            let mask = mask.map(|mask| mask.inner().reshape([rows]));
            let weights = match &mask {
                Some(mask) => mask.clone() / mask.clone().sum().clamp_min(1.0),
                None => Tensor::full([rows], 1.0 / rows as f64, &x.device().inner()),
            };
            let found = ops::head_loss(
                x.reshape([rows, width]),
                self.head.weight.val(),
                targets.inner().reshape([rows]),
                weights,
                if with_l2_wrap {
                    L2_WRAP / rows as f64
                } else {
                    0.0
                },
                self.precision(),
            );
            let hits = match mask {
                Some(mask) => found.hits * mask,
                None => found.hits,
            };
            return ModelLoss {
                loss: found.loss,
                correct: hits.sum(),
            };
        }
        let (logits, _) = self.forward(tokens, None);
        let loss = cross_entropy(logits.clone(), targets.clone(), mask.clone());
        let best = logits.clone().inner().argmax(2).reshape([batch, time]);
        let hits = best.equal(targets.inner()).float();
        let hits = match mask {
            Some(mask) => hits * mask.inner(),
            None => hits,
        };
        ModelLoss {
            loss: if with_l2_wrap {
                loss + l2_wrap(logits)
            } else {
                loss
            },
            correct: hits.sum(),
        }
    }
}
