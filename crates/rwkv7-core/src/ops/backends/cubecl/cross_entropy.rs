//! Cross-entropy on GPUs.

use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use cubecl::ir::{ElemType, IntKind, UIntKind};

use super::{argument, element};
use crate::ops::{
    backends::{CrossEntropyOps, LossRowOps, LossRowTensors},
    gpu::cross_entropy,
};

impl CrossEntropyOps for CubeBackend {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let weights = empty(&logits, Shape::new([1]), DType::F32);
        rows(logits, targets, weights, 0.0, false).losses
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        rows(logits, targets, gradient, 0.0, true).gradient
    }
}

impl LossRowOps for CubeBackend {
    fn loss_rows(
        logits: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        targets: IntTensor<Self>,
        pull: f32,
    ) -> LossRowTensors<Self> {
        rows(logits, targets, weights, pull, true)
    }
}

/// Launches the kernel; without a gradient the field is the logits.
fn rows(
    logits: CubeTensor,
    targets: CubeTensor,
    weights: CubeTensor,
    pull: f32,
    with_gradient: bool,
) -> LossRowTensors<CubeBackend> {
    let [logits, targets, weights] = [logits, targets, weights].map(into_contiguous);
    let [count, classes] = logits.shape().dims();
    let [losses, hits] = [0; 2].map(|_| empty(&logits, Shape::new([count]), DType::F32));
    let gradient = with_gradient.then(|| empty(&logits, logits.shape(), logits.dtype));
    cross_entropy::rows(
        &logits.client,
        [count, classes],
        [element(logits.dtype), integer(targets.dtype)],
        argument(&logits),
        argument(&targets),
        argument(&weights),
        argument(&losses),
        argument(&hits),
        gradient.as_ref().map(argument),
        pull,
    );
    LossRowTensors::from_array([losses, hits, gradient.unwrap_or(logits)])
}

fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape, dtype)
}

fn integer(dtype: DType) -> ElemType {
    match dtype {
        DType::I64 => ElemType::Int(IntKind::I64),
        DType::U32 => ElemType::UInt(UIntKind::U32),
        _ => ElemType::Int(IntKind::I32),
    }
}
