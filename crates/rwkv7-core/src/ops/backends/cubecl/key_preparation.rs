//! Key preparation on GPUs.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;

use super::rows::{Rows, buffer, contiguous};
use crate::ops::{
    backends::{KeyPreparationOps, KeyPreparationTensors, KeyTensors},
    gpu::{
        key_preparation::{backward_kernel, forward_kernel},
        rows::Cut,
    },
};

impl KeyPreparationOps for CubeBackend {
    fn key_preparation(inputs: KeyPreparationTensors<Self>, head_size: usize) -> KeyTensors<Self> {
        let [k, w, a, w0, a0, k_k, k_a] = contiguous(inputs.into_array());
        let [batch, time, channels] = k.meta.shape().dims();
        let heads = channels / head_size;
        let call = Rows::new(&k, channels);
        let cut = Cut::heads(call.rows, heads, head_size, false);
        let output = |dtype| call.empty([batch, time, heads, head_size].into(), dtype);
        let keys = KeyTensors {
            log_w: output(DType::F32),
            k: output(k.dtype),
            a: output(DType::F32),
            b: output(DType::F32),
        };
        forward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&k),
            buffer(&w),
            buffer(&a),
            buffer(&w0),
            buffer(&a0),
            buffer(&k_k),
            buffer(&k_a),
            buffer(&keys.log_w),
            buffer(&keys.k),
            buffer(&keys.a),
            buffer(&keys.b),
            cut.work(),
            call.element(),
        );
        keys
    }

    fn key_preparation_backward(
        inputs: KeyPreparationTensors<Self>,
        gradients: KeyTensors<Self>,
        head_size: usize,
    ) -> KeyPreparationTensors<Self> {
        let [k, w, a, w0, a0, k_k, k_a] = contiguous(inputs.into_array());
        let [d_log_w, d_k_tilde, d_removal, d_weight] = contiguous(gradients.into_array());
        let [_, _, channels] = k.meta.shape().dims();
        let call = Rows::new(&k, channels);
        let cut = Cut::heads(call.rows, channels / head_size, head_size, true);
        let [d_k, d_w, d_a] = [&k, &w, &a].map(|x| call.like(x));
        let partial = call.partial::<4>(&cut);
        backward_kernel::launch(
            &call.client,
            cut.count(),
            cut.dim(),
            buffer(&k),
            buffer(&w),
            buffer(&a),
            buffer(&w0),
            buffer(&a0),
            buffer(&k_k),
            buffer(&k_a),
            buffer(&d_log_w),
            buffer(&d_k_tilde),
            buffer(&d_removal),
            buffer(&d_weight),
            buffer(&d_k),
            buffer(&d_w),
            buffer(&d_a),
            buffer(&partial),
            cut.work(),
            call.element(),
        );
        let [w0, a0, k_k, k_a] = call.totals(&cut, partial, [&w0, &a0, &k_k, &k_a]);
        KeyPreparationTensors::from_array([d_k, d_w, d_a, w0, a0, k_k, k_a])
    }
}
