//! The custom operations on GPUs; the kernels are in [`gpu`](crate::ops::gpu).

mod activation;
mod cross_entropy;
mod key_preparation;
mod layer_norm;
mod read_out;
mod removal_key;
mod rows;
mod token_shift;
mod value_residual;
pub mod wkv7;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{
    ir::{ElemType, FloatKind},
    prelude::TensorArg,
};

pub use rows::supports;

/// Storage buffers that the device offers a kernel.
fn buffers(tensor: &CubeTensor) -> usize {
    tensor.client.properties().hardware.max_bindings as usize
}

/// The type of what a kernel reads and writes.
fn element(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => FloatKind::F32,
    })
}

fn arguments(tensors: &[CubeTensor]) -> Vec<TensorArg> {
    tensors.iter().map(argument).collect()
}

fn argument(tensor: &CubeTensor) -> TensorArg {
    tensor.clone().into_tensor_arg()
}
