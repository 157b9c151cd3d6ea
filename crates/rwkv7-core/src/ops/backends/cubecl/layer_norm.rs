//! Layer norm on GPUs.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{LayerNormOps, LayerNormTensors},
    gpu::{
        layer_norm::{backward_kernel, forward_kernel},
        rows::Cut,
    },
};

impl LayerNormOps for CubeBackend {
    fn layer_norm(inputs: LayerNormTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let [x, gamma, beta] = contiguous(inputs.into_array());
        let call = Rows::new(&x, gamma.meta.shape().num_elements());
        let cut = Cut::whole(call.rows, call.channels, false);
        let y = call.like(&x);
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&x),
            buffer(&gamma),
            buffer(&beta),
            buffer(&y),
            epsilon,
            call.channels,
            cut.work(),
            cut.turns(),
            call.element(),
        );
        y
    }

    fn layer_norm_backward(
        inputs: LayerNormTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormTensors<Self> {
        let [x, gamma, beta] = contiguous(inputs.into_array());
        let [gradient] = contiguous([gradient]);
        let call = Rows::new(&x, gamma.meta.shape().num_elements());
        let cut = Cut::whole(call.rows, call.channels, true);
        let d_x = call.like(&x);
        let partial = call.partial::<2>(&cut);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&x),
            buffer(&gamma),
            buffer(&gradient),
            buffer(&d_x),
            buffer(&partial),
            epsilon,
            call.channels,
            cut.work(),
            cut.turns(),
            call.element(),
        );
        let [gamma, beta] = call.totals(&cut, partial, [&gamma, &beta]);
        LayerNormTensors {
            x: d_x,
            gamma,
            beta,
        }
    }
}
