//! Token shift on GPUs.

use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::rows::{Rows, buffer, contiguous, list};
use crate::ops::{
    backends::{SixTensors, SixTokenShiftTensors, TokenShiftOps, TokenShiftTensors},
    gpu::{
        rows::Cut,
        token_shift::{backward_kernel, forward_kernel},
    },
};

impl TokenShiftOps for CubeBackend {
    fn token_shift(inputs: TokenShiftTensors<Self>) -> FloatTensor<Self> {
        let [h, last, mu] = contiguous(inputs.into_array());
        let [output] = forward(h, last, [mu]);
        output
    }

    fn token_shift_backward(
        inputs: TokenShiftTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> TokenShiftTensors<Self> {
        let [h, last, mu] = contiguous(inputs.into_array());
        let (h, last, [mu]) = backward(h, last, [mu], contiguous([gradient]));
        TokenShiftTensors { h, last, mu }
    }

    fn six_token_shifts(inputs: SixTokenShiftTensors<Self>) -> SixTensors<Self> {
        let [h, last, mus @ ..] = contiguous(inputs.into_array());
        SixTensors::from_array(forward(h, last, mus))
    }

    fn six_token_shifts_backward(
        inputs: SixTokenShiftTensors<Self>,
        gradients: SixTensors<Self>,
    ) -> SixTokenShiftTensors<Self> {
        let [h, last, mus @ ..] = contiguous(inputs.into_array());
        let gradients = contiguous(gradients.into_array());
        let (h, last, [r, w, k, v, a, g]) = backward(h, last, mus, gradients);
        SixTokenShiftTensors::from_array([h, last, r, w, k, v, a, g])
    }
}

fn forward<const M: usize>(
    h: CubeTensor,
    last: CubeTensor,
    mus: [CubeTensor; M],
) -> [CubeTensor; M] {
    let [_, time, channels] = h.shape().dims();
    let call = Rows::new(&h, channels);
    let cut = Cut::free(call.rows, channels, false);
    let outputs = std::array::from_fn(|_| call.like(&h));
    forward_kernel::launch(
        &call.client,
        cut.count(),
        cut.dim(),
        cut.vector,
        buffer(&h),
        buffer(&last),
        list(&mus),
        list(&outputs),
        time,
        cut.work(),
        M,
        call.element(),
    );
    outputs
}

fn backward<const M: usize>(
    h: CubeTensor,
    last: CubeTensor,
    mus: [CubeTensor; M],
    gradients: [CubeTensor; M],
) -> (CubeTensor, CubeTensor, [CubeTensor; M]) {
    let [_, time, channels] = h.shape().dims();
    let call = Rows::new(&h, channels);
    let cut = Cut::free(call.rows, channels, true);
    let (d_h, d_last) = (call.like(&h), call.like(&last));
    let partial = call.partial::<M>(&cut);
    backward_kernel::launch(
        &call.client,
        cut.count(),
        cut.dim(),
        cut.vector,
        buffer(&h),
        buffer(&last),
        list(&mus),
        list(&gradients),
        buffer(&d_h),
        buffer(&d_last),
        buffer(&partial),
        time,
        cut.work(),
        M,
        call.element(),
    );
    let d_mus = call.totals(&cut, partial, mus.each_ref());
    (d_h, d_last, d_mus)
}
