//! Key preparation and the removal key of Meta-State: their tensors and their traits.

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};
#[cfg(feature = "gpu")]
use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};

#[cfg(feature = "gpu")]
use super::of_inputs;
use super::tensors;

tensors! {
    /// The tensors of [`KeyPreparation`](crate::ops::KeyPreparation).
    KeyPreparationTensors {
        /// Projected key.
        k,
        /// Decay before its bias and sigmoid.
        w,
        /// In-context learning rate before its bias and sigmoid.
        a,
        /// Decay bias.
        w0,
        /// In-context learning rate bias.
        a0,
        /// Scale of the removal key.
        k_k,
        /// How much the in-context learning rate scales the replacement key.
        k_a,
    }
}

tensors! {
    /// The tensors of [`Keys`](crate::ops::Keys).
    KeyTensors {
        /// Log decay.
        log_w,
        /// Replacement key.
        k,
        /// Removal direction.
        a,
        /// Removal weight.
        b,
    }
}

/// [`key_preparation`](crate::ops::key_preparation).
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait KeyPreparationOps: Backend {
    /// `[batch, time, heads, head_size]` each.
    #[fusion(meta = keys_meta)]
    fn key_preparation(
        #[extension_type] inputs: KeyPreparationTensors<Self>,
        head_size: usize,
    ) -> KeyTensors<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = |inputs: &KeyPreparationTensorsMetadata, _: &KeyTensorsMetadata, _: &usize| inputs.clone())]
    fn key_preparation_backward(
        #[extension_type] inputs: KeyPreparationTensors<Self>,
        #[extension_type] gradients: KeyTensors<Self>,
        head_size: usize,
    ) -> KeyPreparationTensors<Self>;
}

#[cfg(feature = "gpu")]
fn keys_meta(inputs: &KeyPreparationTensorsMetadata, head_size: &usize) -> KeyTensorsMetadata {
    let [batch, time, channels] = inputs.k.shape.dims();
    let shape = Shape::new([batch, time, channels / head_size, *head_size]);
    let [log_w, k, a, b] = [DType::F32, inputs.k.dtype, DType::F32, DType::F32]
        .map(|dtype| TensorSpec::new(shape.clone(), dtype));
    KeyTensorsMetadata { log_w, k, a, b }
}

tensors! {
    /// Inputs of the removal key.
    RemovalKeyTensors {
        /// Key of any length, `[batch, time, heads, head_size]`.
        z,
        /// In-context learning rate before its bias and sigmoid, `[batch, time, C]`.
        rate,
        /// Bias of the rate, `[1, 1, C]`.
        bias,
    }
}

tensors! {
    /// Outputs of the removal key, `[batch, time, heads, head_size]`.
    RemovalTensors {
        /// Removal direction.
        a,
        /// Removal weight.
        b,
    }
}

/// [`removal_key`](crate::ops::removal_key).
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait RemovalKeyOps: Backend {
    /// Of the shape of z each.
    #[fusion(meta = removal_meta)]
    fn removal_key(#[extension_type] inputs: RemovalKeyTensors<Self>) -> RemovalTensors<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = of_inputs)]
    fn removal_key_backward(
        #[extension_type] inputs: RemovalKeyTensors<Self>,
        #[extension_type] gradients: RemovalTensors<Self>,
    ) -> RemovalKeyTensors<Self>;
}

#[cfg(feature = "gpu")]
fn removal_meta(inputs: &RemovalKeyTensorsMetadata) -> RemovalTensorsMetadata {
    let [a, b] = [(); 2].map(|()| TensorSpec::new(inputs.z.shape.clone(), DType::F32));
    RemovalTensorsMetadata { a, b }
}
