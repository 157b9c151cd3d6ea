//! The custom operations on GPUs; the kernels are in [`gpu`](crate::ops::gpu).

pub mod wkv7;

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::TensorArg;

/// Storage buffers that the device offers a kernel.
fn buffers(tensor: &CubeTensor) -> usize {
    tensor.client.properties().hardware.max_bindings as usize
}

fn arguments(tensors: &[CubeTensor]) -> Vec<TensorArg> {
    tensors.iter().map(argument).collect()
}

fn argument(tensor: &CubeTensor) -> TensorArg {
    tensor.clone().into_tensor_arg()
}
