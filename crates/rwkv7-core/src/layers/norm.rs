//! The scale and shift of a normalisation.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

use crate::ops;

/// Scale, shift and epsilon of a layer norm, or of the group norm over each head.
///
/// The struct has the name of Burn's own, by which burn-store recognises norms: their parameters are called `weight` and `bias`
/// in checkpoints.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale, `[C]`.
    pub gamma: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub beta: Param<Tensor<1>>,
    /// Added to the variance.
    pub epsilon: f64,
}

/// The layer norm of each head, without scale and shift, over the last axis of `x [batch, time, heads, size]`. Mean and variance
/// are those of the first `prefix` entries, or of all.
pub fn head_norm(x: Tensor<4>, prefix: Option<usize>, epsilon: f64) -> Tensor<4> {
    let [batch, time, heads, size] = x.dims();
    if let Some(prefix) = prefix {
        return ops::prefix_norm(x, prefix, epsilon);
    }
    let (shape, like) = (x.shape(), (&x.device(), x.dtype()));
    let x = x.reshape([batch * time, heads, size]);
    let (one, zero) = (Tensor::ones([size], like), Tensor::zeros([size], like));
    ops::layer_norm(x, one, zero, epsilon).reshape(shape)
}

impl LayerNorm {
    /// The layer norm over the last axis of `x [batch, time, C]`, in the dtype of `x`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}
