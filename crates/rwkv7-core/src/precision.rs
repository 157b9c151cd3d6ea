//! How a model multiplies with its weight matrices.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops;

/// Arithmetic of the products with weight matrices, forward and backward.
///
/// Parameters, activations, the operator and the optimizer stay in f32 either way, as in PyTorch's autocast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// In the dtype of the model.
    #[default]
    F32,
    /// Both factors are rounded to bf16, and sums are f32: twice the arithmetic a second on processors with AVX-512 BF16,
    /// and tensor cores on GPUs that have them. GPUs round the result to bf16 as well, the CPU does not.
    Bf16,
}

/// The device has no bf16 products.
#[derive(Debug, thiserror::Error)]
#[error(
    "{device}: has no bf16 products (processors need AVX-512 BF16, GPUs bf16 tensors); set matmul_precision to f32"
)]
pub struct MatmulPrecisionError {
    /// The device.
    pub device: String,
}

impl MatmulPrecision {
    /// Whether the device multiplies like this.
    ///
    /// # Errors
    ///
    /// [`MatmulPrecisionError`] names the device.
    pub fn check(self, device: &Device) -> Result<(), MatmulPrecisionError> {
        if self == Self::F32 || ops::has_bf16_matmul(device) {
            return Ok(());
        }
        Err(MatmulPrecisionError {
            device: crate::device::kind(device),
        })
    }

    /// `x w` for `x [rows, in]` and `w [in, out]`.
    ///
    /// # Panics
    ///
    /// If the device does not multiply like this: [`check`](Self::check) before.
    pub fn matmul(self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        match self {
            Self::F32 => x.matmul(weight),
            Self::Bf16 => {
                if let Err(error) = self.check(&x.device()) {
                    panic!("{error}");
                }
                ops::matmul_bf16(x, weight)
            }
        }
    }
}
