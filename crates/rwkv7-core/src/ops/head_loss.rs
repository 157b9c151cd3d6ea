//! The head and its loss together, for logits that would not fit: [`ROWS`] tokens at a time, the gradients beside the losses.
//!
//! ```text
//! logits = x W        loss = Σ weight ⊙ cross_entropy(logits, target)
//! dx = dlogits Wᵀ     dW = Σ xᵀ dlogits
//! ```
//!
//! A part's logits are gone when the next part's are computed. The gradients are those of the loss itself; the backward pass
//! multiplies them with the gradient that arrives.

#[cfg(feature = "gpu")]
use burn::backend::Dispatch;
use burn::tensor::{FloatDType, Int, Tensor};

#[cfg(feature = "gpu")]
use super::{backends::LossRowOps, takes_loss_kernel};
use super::{is_cpu, reference, widen};
use crate::MatmulPrecision;

/// Tokens whose logits are there at a time.
const ROWS: usize = 4096;

/// Results of [`head_loss`].
pub(crate) struct HeadLoss {
    /// The weighted sum of the tokens' losses, `[1]`.
    pub loss: Tensor<1>,
    /// 1 for each token whose largest logit is the target's, else 0, `[rows]`; outside autodiff.
    pub hits: Tensor<1>,
}

/// `Σ weights ⊙ cross_entropy(x W, targets)` for `x [rows, C]`, `W [C, V]`, targets and weights `[rows]`, the weights constant.
/// The gradient of each row's largest logit gets `pull` times that logit besides.
pub(crate) fn head_loss(
    x: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<1>,
    pull: f64,
    precision: MatmulPrecision,
) -> HeadLoss {
    head_loss_in_parts(x, weight, targets, weights, pull, precision, ROWS)
}

/// [`head_loss`] in parts of so many tokens.
pub(crate) fn head_loss_in_parts(
    x: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<1>,
    pull: f64,
    precision: MatmulPrecision,
    rows: usize,
) -> HeadLoss {
    let tracked = x.is_autodiff();
    let (targets, weights) = (targets.inner(), weights.inner());
    let parts = Parts::new(x.clone().inner(), weight.clone().inner(), precision);
    let found = parts.run(rows, targets, weights, pull, tracked);
    let Some((dx, dw)) = found.gradients else {
        return HeadLoss {
            loss: found.loss,
            hits: found.hits,
        };
    };
    let loss = Tensor::from_inner(found.loss);
    HeadLoss {
        loss: loss + slope(x, dx) + slope(weight, dw),
        hits: found.hits,
    }
}

/// 0, whose gradient by `x` is `gradient`.
fn slope(x: Tensor<2>, gradient: Tensor<2>) -> Tensor<1> {
    let gradient = widen(gradient);
    let sum = (widen(x) * Tensor::from_inner(gradient)).sum();
    sum.clone() - sum.detach()
}

/// Head and hidden states outside autodiff, in the type that they are multiplied in.
struct Parts {
    x: Tensor<2>,
    weight: Tensor<2>,
    precision: MatmulPrecision,
}

/// Results of all parts, outside autodiff.
struct Found {
    loss: Tensor<1>,
    hits: Tensor<1>,
    gradients: Option<(Tensor<2>, Tensor<2>)>,
}

impl Parts {
    fn new(x: Tensor<2>, weight: Tensor<2>, precision: MatmulPrecision) -> Self {
        // The CPU's products round by themselves.
        if precision == MatmulPrecision::F32 || is_cpu(&x.device()) {
            return Self {
                x,
                weight,
                precision,
            };
        }
        let [x, weight] = [x, weight].map(|x| x.cast(FloatDType::BF16));
        Self {
            x,
            weight,
            precision: MatmulPrecision::F32,
        }
    }

    fn run(
        &self,
        rows_of_part: usize,
        targets: Tensor<1, Int>,
        weights: Tensor<1>,
        pull: f64,
        tracked: bool,
    ) -> Found {
        let rows = self.x.dims()[0];
        let (mut losses, mut hits, mut dx) = (Vec::new(), Vec::new(), Vec::new());
        let mut dw: Option<Tensor<2>> = None;
        for from in (0..rows).step_by(rows_of_part) {
            let count = rows_of_part.min(rows - from);
            let x = self.x.clone().narrow(0, from, count);
            let logits = self.precision.matmul(x.clone(), self.weight.clone());
            let part = loss_rows(
                logits,
                weights.clone().narrow(0, from, count),
                targets.clone().narrow(0, from, count),
                pull,
                tracked,
            );
            losses.push(part.losses);
            hits.push(part.hits);
            if let Some(gradient) = part.gradient {
                let back = self.weight.clone().transpose();
                dx.push(self.precision.matmul(gradient.clone(), back));
                let share = widen(self.precision.matmul(x.transpose(), gradient));
                dw = Some(match dw {
                    Some(sum) => sum + share,
                    None => share,
                });
            }
        }
        Found {
            loss: (joined(losses) * weights).sum(),
            hits: joined(hits),
            gradients: dw.map(|dw| (joined(dx), dw)),
        }
    }
}

/// The parts one after another.
fn joined<const D: usize>(mut parts: Vec<Tensor<D>>) -> Tensor<D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

/// Losses and hits of rows, `[rows]`, and the gradient of the weighted losses by the logits if wanted; outside autodiff.
pub(crate) struct LossRows {
    pub losses: Tensor<1>,
    pub hits: Tensor<1>,
    pub gradient: Option<Tensor<2>>,
}

/// [`LossRows`] of `logits [rows, V]`, in one pass where the device has a kernel.
pub(crate) fn loss_rows(
    logits: Tensor<2>,
    weights: Tensor<1>,
    targets: Tensor<1, Int>,
    pull: f64,
    with_gradient: bool,
) -> LossRows {
    #[cfg(feature = "gpu")]
    if with_gradient && takes_loss_kernel(&logits) && !is_cpu(&logits.device()) {
        let rows = Dispatch::loss_rows(
            logits.into_dispatch(),
            weights.into_dispatch(),
            targets.into_dispatch(),
            pull as f32,
        );
        let [losses, hits, gradient] = rows.into_array();
        return LossRows {
            losses: Tensor::from_dispatch(losses),
            hits: Tensor::from_dispatch(hits),
            gradient: Some(Tensor::from_dispatch(gradient)),
        };
    }
    reference::loss_rows(logits, weights, targets, pull, with_gradient)
}
