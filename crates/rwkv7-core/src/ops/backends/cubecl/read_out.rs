//! Read-out on GPUs.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{ReadOutOps, ReadOutTensors},
    gpu::{
        read_out::{backward_kernel, forward_kernel},
        rows::Cut,
    },
};

impl ReadOutOps for CubeBackend {
    fn read_out(inputs: ReadOutTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let inputs = ReadOutTensors::<Self>::from_array(contiguous(inputs.into_array()));
        let [heads, head_size] = inputs.r_k.meta.shape().dims();
        let call = Rows::new(&inputs.y, heads * head_size);
        let cut = Cut::heads(call.rows, heads, head_size, false);
        let output = call.like(&inputs.gate);
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&inputs.y),
            buffer(&inputs.r),
            buffer(&inputs.k),
            buffer(&inputs.v),
            buffer(&inputs.gate),
            buffer(&inputs.r_k),
            buffer(&inputs.gamma),
            buffer(&inputs.beta),
            buffer(&output),
            epsilon,
            cut.work(),
            call.element(),
        );
        output
    }

    fn read_out_backward(
        inputs: ReadOutTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> ReadOutTensors<Self> {
        let [y, r, k, v, gate, r_k, gamma, beta] = contiguous(inputs.into_array());
        let [gradient] = contiguous([gradient]);
        let [heads, head_size] = r_k.meta.shape().dims();
        let call = Rows::new(&y, heads * head_size);
        let cut = Cut::heads(call.rows, heads, head_size, true);
        let [d_y, d_r, d_k, d_v, d_gate] = [&y, &r, &k, &v, &gate].map(|x| call.like(x));
        let partial = call.partial::<3>(&cut);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&y),
            buffer(&r),
            buffer(&k),
            buffer(&v),
            buffer(&gate),
            buffer(&r_k),
            buffer(&gamma),
            buffer(&beta),
            buffer(&gradient),
            buffer(&d_y),
            buffer(&d_r),
            buffer(&d_k),
            buffer(&d_v),
            buffer(&d_gate),
            buffer(&partial),
            epsilon,
            cut.work(),
            call.element(),
        );
        let [r_k, gamma, beta] = call.totals(&cut, partial, [&r_k, &gamma, &beta]);
        ReadOutTensors::from_array([d_y, d_r, d_k, d_v, d_gate, r_k, gamma, beta])
    }
}
