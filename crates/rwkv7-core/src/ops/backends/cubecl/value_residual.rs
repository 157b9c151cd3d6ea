//! The value residual on GPUs.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{ValueResidualOps, ValueResidualTensors},
    gpu::{
        rows::Cut,
        value_residual::{backward_kernel, forward_kernel},
    },
};

impl ValueResidualOps for CubeBackend {
    fn value_residual(inputs: ValueResidualTensors<Self>) -> FloatTensor<Self> {
        let [v, first, s, v0] = contiguous(inputs.into_array());
        let call = Rows::new(&v, v0.meta.shape().num_elements());
        let cut = Cut::free(call.rows, call.channels, false);
        let output = call.like(&v);
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&v),
            buffer(&first),
            buffer(&s),
            buffer(&v0),
            buffer(&output),
            cut.work(),
            call.element(),
        );
        output
    }

    fn value_residual_backward(
        inputs: ValueResidualTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> ValueResidualTensors<Self> {
        let [v, first, s, v0] = contiguous(inputs.into_array());
        let [gradient] = contiguous([gradient]);
        let call = Rows::new(&v, v0.meta.shape().num_elements());
        let cut = Cut::free(call.rows, call.channels, true);
        let [d_v, d_first, d_s] = [&v, &first, &s].map(|x| call.like(x));
        let partial = call.partial::<1>(&cut);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            cut.vector,
            buffer(&v),
            buffer(&first),
            buffer(&s),
            buffer(&v0),
            buffer(&gradient),
            buffer(&d_v),
            buffer(&d_first),
            buffer(&d_s),
            buffer(&partial),
            cut.work(),
            call.element(),
        );
        let [v0] = call.totals(&cut, partial, [&v0]);
        ValueResidualTensors::from_array([d_v, d_first, d_s, v0])
    }
}
