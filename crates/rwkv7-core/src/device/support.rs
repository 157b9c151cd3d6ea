//! What a device is and what it supports, in words and numbers for the person who chooses one.

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::ops;

/// What a device is and what it supports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Support {
    /// The hardware as its driver names it.
    pub hardware: String,
    /// Kind of hardware, as [`kind`].
    pub kind: String,
    /// What runs its kernels, as in `cuda`, `wgpu<spirv>` or `wgpu<wgsl>`.
    pub runtime: String,
    /// Whether its backend can keep compiled kernels, as [`keep_kernels`](super::keep_kernels) asks for.
    pub keeps_kernels: bool,
    /// Bytes of memory, where the driver says it.
    pub memory: Option<u64>,
    /// Bytes of the largest tensor, where there is a limit.
    pub largest_tensor: Option<u64>,
    /// Floating-point types beside f32 that tensors may have: f16, bf16, f64.
    pub dtypes: Vec<String>,
    /// Factors and sums of the products that matrix units compute, as in `bf16 x bf16 -> f32`; empty where there are none.
    pub matrix_units: Vec<String>,
    /// Fewest and most units that run in step (a warp, wavefront or subgroup) where kernels may exchange values among them.
    pub plane: Option<[u32; 2]>,
    /// Buffers that a kernel may have, where there is a limit.
    pub buffers: Option<u32>,
    /// What computes the recurrence over a sequence, with heads of 64 channels.
    pub recurrence: String,
    /// Whether `matmul_precision=bf16` is possible.
    pub bf16_products: bool,
}

impl Support {
    /// Asks the device, which is opened for it. No kernel runs.
    ///
    /// # Panics
    ///
    /// If the driver cannot open the device.
    pub fn of(device: &Device) -> Self {
        let device = device.clone().inner();
        let dtypes = [
            ("f16", DType::F16),
            ("bf16", DType::BF16),
            ("f64", DType::F64),
        ];
        let supported = dtypes
            .iter()
            .filter(|(_, dtype)| device.supports_dtype(*dtype));
        let cpu = Self {
            hardware: format!("the processor, {} threads", threads()),
            kind: kind(&device),
            runtime: "flex".into(),
            keeps_kernels: false,
            memory: None,
            largest_tensor: None,
            dtypes: supported.map(|(name, _)| name.to_string()).collect(),
            matrix_units: Vec::new(),
            plane: None,
            buffers: None,
            recurrence: ops::recurrence_in_words(&device),
            bf16_products: ops::has_bf16_matmul(&device),
        };
        match device.as_dispatch() {
            #[cfg(feature = "gpu")]
            burn::backend::DispatchDevice::Cube(device) => cpu.with_properties(&device.client()),
            #[allow(unreachable_patterns)]
            _ => cpu,
        }
    }

    /// With what CubeCL knows of a GPU.
    #[cfg(feature = "gpu")]
    fn with_properties(self, client: &cubecl::client::Client) -> Self {
        use std::collections::BTreeSet;

        use cubecl::features::Plane;

        let properties = client.properties();
        let (features, hardware) = (&properties.features, &properties.hardware);
        let matmul = &features.matmul;
        let units: BTreeSet<String> = matmul
            .cmma
            .iter()
            .chain(&matmul.mma)
            .map(|unit| format!("{} x {} -> {}", unit.a_type, unit.b_type, unit.cd_type))
            .collect();
        let plane = [hardware.plane_size_min, hardware.plane_size_max];
        let runtime = client.name().to_string();
        Self {
            hardware: properties.identity.name.clone(),
            keeps_kernels: !runtime.contains("wgsl") && !runtime.contains("wgpu<msl>"),
            runtime,
            memory: properties.memory.max_memory(),
            largest_tensor: Some(properties.memory.max_page_size),
            matrix_units: units.into_iter().collect(),
            plane: features.plane.contains(Plane::Ops).then_some(plane),
            buffers: Some(hardware.max_bindings),
            ..self
        }
    }
}

/// Threads that the processor runs at once, as far as this program may use them.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The [`kind`] of a GPU that a driver computes on the processor.
pub const SOFTWARE_DRIVER: &str = "software driver on the processor";

/// The kind of hardware behind a device, without opening it: `discrete GPU`, `software driver on the processor`, …
pub fn kind(device: &Device) -> String {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "gpu")]
        burn::backend::DispatchDevice::Cube(device) => gpu_kind(device).into(),
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => "processor".into(),
        #[allow(unreachable_patterns)]
        other => format!("{other:?}"),
    }
}

#[cfg(feature = "gpu")]
fn gpu_kind(device: &cubecl::Device) -> &'static str {
    use cubecl::{Device, device::WgpuDeviceKind};

    match device {
        Device::Cuda(_) => "NVIDIA GPU",
        Device::Hip(_) => "AMD GPU",
        Device::Metal(_) => "Apple GPU",
        Device::Wgpu(device) => match device.kind {
            WgpuDeviceKind::DiscreteGpu(_) => "discrete GPU",
            WgpuDeviceKind::IntegratedGpu(_) => "integrated GPU",
            WgpuDeviceKind::VirtualGpu(_) => "virtual GPU",
            WgpuDeviceKind::Cpu => SOFTWARE_DRIVER,
            WgpuDeviceKind::DefaultDevice => "the adapter that wgpu prefers",
            _ => "unknown GPU",
        },
        _ => "processor",
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_processor_runs_the_custom_operation() {
        let found = Support::of(&Device::flex().autodiff());
        assert_eq!(found.kind, "processor");
        assert_eq!(found.runtime, "flex");
        assert!(found.recurrence.contains("custom operation"), "{found:?}");
    }
}
