//! Devices by name.

use std::panic::{self, AssertUnwindSafe};

use burn::tensor::{Device, Tensor};

/// A device that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device has this name.
    #[error("unknown device `{name}`; expected one of {NAMES}, with an index as in cuda:1")]
    Unknown {
        /// The given name.
        name: String,
    },
    /// The backend is not part of this binary.
    #[error(
        "device `{name}` is not compiled in; build with `cargo build --release --features {feature}`"
    )]
    NotCompiled {
        /// The given name.
        name: String,
        /// The cargo feature that adds it.
        feature: String,
    },
    /// The index is not a number, or the device takes none.
    #[error("device `{name}`: expected NAME or NAME:INDEX, with an index from 0{hint}")]
    Index {
        /// The given name.
        name: String,
        /// A remark on the index.
        hint: &'static str,
    },
    /// The driver finds no such device.
    #[error("device `{name}` cannot be used: {reason}")]
    Absent {
        /// The given name.
        name: String,
        /// The message of the backend.
        reason: String,
    },
}

/// The names of all devices, also of those that are not compiled in.
pub const NAMES: &str = "flex, wgpu, vulkan, webgpu, metal, cuda, rocm";

/// The device called `name`, or the best one compiled in, checked to be there.
pub fn open(name: Option<&str>) -> Result<Device, DeviceError> {
    let Some(name) = name else {
        return attempt("default", Device::default);
    };
    let (kind, index) = match name.split_once(':') {
        None => (name, None),
        Some((kind, index)) => {
            let index = index.parse::<usize>().map_err(|_| DeviceError::Index {
                name: name.into(),
                hint: "",
            })?;
            (kind, Some(index))
        }
    };
    match kind {
        #[cfg(feature = "flex")]
        "flex" => match index {
            None => Ok(Device::flex()),
            Some(_) => Err(DeviceError::Index {
                name: name.into(),
                hint: "; the CPU is one device and has none",
            }),
        },
        #[cfg(feature = "cuda")]
        "cuda" => attempt(name, || Device::cuda(index.unwrap_or(0))),
        #[cfg(feature = "rocm")]
        "rocm" => attempt(name, || Device::rocm(index.unwrap_or(0))),
        #[cfg(feature = "wgpu")]
        "wgpu" => attempt(name, || listed(index, DeviceType::Wgpu, Device::wgpu)),
        #[cfg(feature = "vulkan")]
        "vulkan" => attempt(name, || listed(index, DeviceType::Vulkan, Device::vulkan)),
        #[cfg(feature = "webgpu")]
        "webgpu" => attempt(name, || listed(index, DeviceType::WebGpu, Device::webgpu)),
        #[cfg(feature = "metal")]
        "metal" => attempt(name, || listed(index, DeviceType::Metal, Device::metal)),
        _ if NAMES.split(", ").any(|known| known == kind) => Err(DeviceError::NotCompiled {
            name: name.into(),
            feature: kind.into(),
        }),
        _ => Err(DeviceError::Unknown { name: name.into() }),
    }
}

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "webgpu",
    feature = "metal"
))]
use burn::tensor::{DeviceKind, DeviceType};

/// The adapter at `index` among those of its kind, or the default one.
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "webgpu",
    feature = "metal"
))]
fn listed(
    index: Option<usize>,
    of_type: DeviceType,
    default: impl Fn(DeviceKind) -> Device,
) -> Device {
    match index {
        None => default(DeviceKind::DefaultDevice),
        Some(index) => {
            let devices: Vec<Device> = Device::enumerate(of_type).into_iter().collect();
            match devices.get(index) {
                Some(device) => device.clone(),
                None => panic!(
                    "there are {} adapters, counted from 0: {devices:?}",
                    devices.len()
                ),
            }
        }
    }
}

/// Opens a device and runs a first operation: backends find out late, and by a panic, that there is no hardware.
fn attempt(name: &str, open: impl FnOnce() -> Device) -> Result<Device, DeviceError> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let device = open();
        let sum = Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>();
        (device, sum)
    }));
    panic::set_hook(hook);
    match result {
        Ok((device, 2.0)) => Ok(device),
        Ok((_, sum)) => Err(DeviceError::Absent {
            name: name.into(),
            reason: format!("it computes 1 + 1 = {sum}"),
        }),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(DeviceError::Absent {
                name: name.into(),
                reason: text.unwrap_or("the driver gave no reason").trim().into(),
            })
        }
    }
}
