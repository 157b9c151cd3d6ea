//! Elementwise functions on GPUs.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{Activation, ActivationOps},
    gpu::{
        activation::{backward_kernel, forward_kernel},
        rows::Cut,
    },
};

impl ActivationOps for CubeBackend {
    fn activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let [x] = contiguous([x]);
        let (call, cut) = rows(&x);
        let y = call.like(&x);
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&x),
            buffer(&y),
            cut.work(),
            activation,
            call.element(),
        );
        y
    }

    fn activation_backward(
        y: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let [y, gradient] = contiguous([y, gradient]);
        let (call, cut) = rows(&y);
        let d_x = call.like(&y);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&y),
            buffer(&gradient),
            buffer(&d_x),
            cut.work(),
            activation,
            call.element(),
        );
        d_x
    }
}

/// The last axis across.
fn rows(x: &CubeTensor) -> (Rows, Cut) {
    let channels = x.meta.shape().last().copied().unwrap_or(1);
    let call = Rows::new(x, channels);
    let cut = Cut::free(call.rows, channels, false);
    (call, cut)
}
