//! Devices by name.

use burn::tensor::{Device, Tensor};
use rwkv7_core::device::{self, Support};

use crate::kernels;

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
    /// There are fewer adapters.
    #[error("device `{name}`: there is no such adapter; {found}")]
    NoAdapter {
        /// The given name.
        name: String,
        /// The adapters that there are.
        found: String,
    },
    /// The driver finds no such device, or the device computes nonsense.
    #[error("device `{name}` cannot be used: {reason}; `metastate devices` lists what there is")]
    Absent {
        /// The given name.
        name: String,
        /// The message of the backend.
        reason: String,
    },
}

/// The names of all devices, also of those that are not compiled in.
pub const NAMES: &str = "flex, wgpu, vulkan, webgpu, metal, cuda, rocm";

/// The device called `name`, or the best one compiled in, checked to be there. Its compiled kernels are kept.
pub fn open(name: Option<&str>) -> Result<Device, DeviceError> {
    kernels::keep();
    let Some(name) = name else {
        return match std::env::var("BURN_DEVICE") {
            Ok(asked) => attempt(&asked, Device::default),
            Err(_) => best(),
        };
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
    match index {
        None => {
            let open = first(kind).ok_or_else(|| not_compiled(name, kind))?;
            attempt(name, open)
        }
        Some(_) if kind == "flex" => Err(DeviceError::Index {
            name: name.into(),
            hint: "; the CPU is one device and has none",
        }),
        Some(index) => {
            let adapters = adapters(kind)?;
            match adapters.get(index) {
                Some(device) => attempt(name, || device.clone()),
                None => Err(DeviceError::NoAdapter {
                    name: name.into(),
                    found: in_words(kind, &adapters),
                }),
            }
        }
    }
}

/// The device that Burn prefers, but the processor's own backend where the only adapters are software drivers, which run on the
/// processor too and far slower.
fn best() -> Result<Device, DeviceError> {
    #[cfg(feature = "flex")]
    {
        let backends = ["vulkan", "wgpu", "webgpu"].into_iter();
        let mut found = backends.filter_map(|backend| Some((backend, adapters(backend).ok()?)));
        if ["cuda", "rocm", "metal"]
            .iter()
            .all(|name| first(name).is_none())
            && let Some((backend, adapters)) = found.next()
            && adapters
                .iter()
                .all(|adapter| device::kind(adapter) == device::SOFTWARE_DRIVER)
        {
            log::info!("there is no GPU; --device {backend} tries a software driver");
            return attempt("flex", Device::flex);
        }
    }
    attempt("default", Device::default)
}

/// The best device of a backend; none if the backend is not compiled in.
fn first(backend: &str) -> Option<fn() -> Device> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex),
        #[cfg(feature = "cuda")]
        "cuda" => Some(|| Device::cuda(0)),
        #[cfg(feature = "rocm")]
        "rocm" => Some(|| Device::rocm(0)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(|| Device::vulkan(Default::default())),
        #[cfg(feature = "metal")]
        "metal" => Some(|| Device::metal(Default::default())),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(|| Device::wgpu(Default::default())),
        // The API of that name is the browser's. Outside one, its kernels run on whatever wgpu finds.
        #[cfg(feature = "webgpu")]
        "webgpu" => Some(|| Device::wgpu(Default::default())),
        _ => None,
    }
}

/// The adapters of a backend, in the order of their indices. Finds them without opening one.
pub fn adapters(backend: &str) -> Result<Vec<Device>, DeviceError> {
    use burn::tensor::DeviceType;

    let of_type = match backend {
        #[cfg(feature = "flex")]
        "flex" => DeviceType::Flex,
        #[cfg(feature = "cuda")]
        "cuda" => DeviceType::Cuda,
        #[cfg(feature = "rocm")]
        "rocm" => DeviceType::Rocm,
        #[cfg(feature = "vulkan")]
        "vulkan" => DeviceType::Vulkan,
        #[cfg(feature = "metal")]
        "metal" => DeviceType::Metal,
        #[cfg(feature = "wgpu")]
        "wgpu" => DeviceType::Wgpu,
        #[cfg(feature = "webgpu")]
        "webgpu" => DeviceType::Wgpu,
        _ => return Err(not_compiled(backend, backend)),
    };
    device::first_panic(|| Device::enumerate(of_type).into_iter().collect()).map_err(|reason| {
        DeviceError::Absent {
            name: backend.into(),
            reason,
        }
    })
}

/// `there are wgpu:0 (discrete GPU), …`
fn in_words(backend: &str, adapters: &[Device]) -> String {
    if adapters.is_empty() {
        return format!("{backend} finds none on this machine");
    }
    let list = adapters.iter().enumerate();
    let list: Vec<String> = list
        .map(|(index, device)| format!("{backend}:{index} ({})", device::kind(device)))
        .collect();
    format!("there is {}", list.join(", "))
}

fn not_compiled(name: &str, kind: &str) -> DeviceError {
    match NAMES.split(", ").any(|known| known == kind) {
        true => DeviceError::NotCompiled {
            name: name.into(),
            feature: kind.into(),
        },
        false => DeviceError::Unknown { name: name.into() },
    }
}

/// Opens a device and runs a first operation: backends find out late, and by a panic, that there is no hardware.
fn attempt(name: &str, open: impl FnOnce() -> Device) -> Result<Device, DeviceError> {
    let absent = |reason: String| DeviceError::Absent {
        name: name.into(),
        reason: without_dump(&reason),
    };
    let (device, support) = device::first_panic(|| {
        let device = open();
        let support = Support::of(&device);
        (device, support)
    })
    .map_err(absent)?;
    kernels::opened(support.keeps_kernels);
    if support.runtime != "flex" {
        // A driver that crashes over a kernel takes the program with it, so its name comes first.
        log::info!("device {name}: {}, {}", support.hardware, support.runtime);
    }
    let sum = device::first_panic(|| Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>());
    match sum {
        Ok(2.0) => Ok(device),
        Ok(sum) => Err(absent(format!("it computes 1 + 1 = {sum}"))),
        Err(reason) => Err(absent(reason)),
    }
}

/// The sentence in a message of wgpu's, which is a dump of a Rust value with everything that is known of each adapter.
fn without_dump(reason: &str) -> String {
    let inner = match reason.split_once("message: \"") {
        Some((_, inner)) => inner,
        None => return reason.trim_end_matches('.').into(),
    };
    let end = [", adapters [", "\" }"]
        .iter()
        .filter_map(|end| inner.find(end))
        .min();
    inner[..end.unwrap_or(inner.len())].into()
}
