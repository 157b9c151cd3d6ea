//! The scale and shift of a normalisation.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

use crate::fused;

/// Scale, shift and epsilon of a layer norm, or of the group norm over each head.
///
/// Checkpoint files know it by the name of Burn's own struct.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale, `[C]`.
    pub gamma: Param<Tensor<1>>,
    /// Shift, `[C]`.
    pub beta: Param<Tensor<1>>,
    /// Added to the variance.
    pub epsilon: f64,
}

impl LayerNorm {
    /// The layer norm over the last axis of `x [batch, time, C]`, in the dtype of `x`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        fused::layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}
