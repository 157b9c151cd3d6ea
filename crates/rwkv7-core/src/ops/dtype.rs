//! Half precision is widened before arithmetic that needs f32, and narrowed after.

use burn::tensor::{DType, FloatDType, Tensor};

/// f16 and bf16 become f32; f32 and f64 stay.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}

/// `x` in this dtype.
pub fn narrow<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype {
        x
    } else {
        x.cast(FloatDType::from(dtype))
    }
}
