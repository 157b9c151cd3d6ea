//! The removal key on GPUs.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{RemovalKeyOps, RemovalKeyTensors, RemovalTensors},
    gpu::{
        removal_key::{backward_kernel, forward_kernel},
        rows::Cut,
    },
};

impl RemovalKeyOps for CubeBackend {
    fn removal_key(inputs: RemovalKeyTensors<Self>) -> RemovalTensors<Self> {
        let [z, rate, bias] = contiguous(inputs.into_array());
        let [_, _, heads, head_size] = z.meta.shape().dims();
        let call = Rows::new(&z, heads * head_size);
        let cut = Cut::heads(call.rows, heads, head_size, false);
        let [a, b] = [(); 2].map(|()| call.empty(z.meta.shape().clone(), DType::F32));
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&z),
            buffer(&rate),
            buffer(&bias),
            buffer(&a),
            buffer(&b),
            cut.work(),
            call.element(),
        );
        RemovalTensors { a, b }
    }

    fn removal_key_backward(
        inputs: RemovalKeyTensors<Self>,
        gradients: RemovalTensors<Self>,
    ) -> RemovalKeyTensors<Self> {
        let [z, rate, bias] = contiguous(inputs.into_array());
        let [d_a, d_b] = contiguous(gradients.into_array());
        let [_, _, heads, head_size] = z.meta.shape().dims();
        let call = Rows::new(&z, heads * head_size);
        let cut = Cut::heads(call.rows, heads, head_size, true);
        let (d_z, d_rate) = (call.like(&z), call.like(&rate));
        let partial = call.partial::<1>(&cut);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&z),
            buffer(&rate),
            buffer(&bias),
            buffer(&d_a),
            buffer(&d_b),
            buffer(&d_z),
            buffer(&d_rate),
            buffer(&partial),
            cut.work(),
            call.element(),
        );
        let [bias] = call.totals(&cut, partial, [&bias]);
        RemovalKeyTensors {
            z: d_z,
            rate: d_rate,
            bias,
        }
    }
}
