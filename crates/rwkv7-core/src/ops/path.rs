//! The one decision which path computes an operation.

use std::sync::OnceLock;

#[cfg(any(feature = "flex", feature = "gpu"))]
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};

#[cfg(feature = "gpu")]
use super::backends;
use super::{Wkv7Input, wkv7};

/// What computes an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Custom,
    Chunked,
    Reference,
}

impl Path {
    /// The path that the environment asks for, and whether GPU kernels shall take as few storage buffers as in browsers.
    pub fn asked() -> (Option<Self>, bool) {
        static ASKED: OnceLock<(Option<Path>, bool)> = OnceLock::new();
        *ASKED.get_or_init(|| {
            let names = ["RWKV7_OP", "RWKV7_OPERATOR"];
            let Some((name, asked)) = names
                .iter()
                .find_map(|name| Some((name, std::env::var(name).ok()?)))
            else {
                return (None, false);
            };
            match asked.as_str() {
                "chunked" => (Some(Self::Chunked), false),
                "reference" | "oracle" => (Some(Self::Reference), false),
                "custom" => (None, false),
                "packed" => (None, true),
                _ => panic!(
                    "{name} is `{asked}`, expected custom, packed, chunked or reference (or oracle)"
                ),
            }
        })
    }

    /// The path of the recurrence.
    pub fn of_wkv7(input: &Wkv7Input) -> Self {
        if let (Some(asked), _) = Self::asked() {
            asked
        } else if input.r.dtype() != DType::F64 && wkv7::is_custom(input) {
            Self::Custom
        } else if input.r.dims()[1] == 1 {
            Self::Reference
        } else {
            Self::Chunked
        }
    }
}

/// Whether an operation that has a kernel for the CPU alone runs it on this tensor, which is f32 and on the CPU then.
pub fn takes_cpu_kernel<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_cpu(&x.device()) && Path::asked().0.is_none()
}

/// Whether an operation has a kernel for this tensor on its device, given the types of its other tensors. On a GPU the kernels
/// may need no more than this many storage buffers.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
pub fn takes_kernel<const D: usize, const N: usize>(
    x: &Tensor<D>,
    others: [DType; N],
    buffers: usize,
) -> bool {
    if Path::asked().0.is_some() || others.iter().any(|other| *other != x.dtype()) {
        return false;
    }
    let device = x.device().inner();
    match (device.as_dispatch(), x.dtype()) {
        #[cfg(feature = "flex")]
        (DispatchDevice::Flex(_), DType::F32) => true,
        #[cfg(feature = "gpu")]
        (cube @ DispatchDevice::Cube(_), DType::F32 | DType::F16 | DType::BF16) => {
            device.supports_dtype(x.dtype())
                && backends::cubecl::supports(cube, buffers, x.shape().num_elements())
        }
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Whether the device has kernels for heads of this size.
pub fn takes_heads(device: &Device, size: usize) -> bool {
    is_cpu(device) || size.is_multiple_of(16) && size <= 128
}

/// Whether the device is the CPU backend that has custom operations.
pub fn is_cpu(device: &Device) -> bool {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    }
}
