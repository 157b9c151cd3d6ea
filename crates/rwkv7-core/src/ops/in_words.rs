//! The choices of this module, for people.

use burn::tensor::Device;

use super::Path;

/// What computes the recurrence of heads of 64 channels over a sequence on a device.
pub(crate) fn recurrence_in_words(device: &Device) -> String {
    let form = match Path::asked().0 {
        Some(Path::Reference) => "reference, token by token, as RWKV7_OP asks",
        Some(_) => "chunked tensor operations, as RWKV7_OP asks",
        None => match device.clone().inner().as_dispatch() {
            #[cfg(feature = "flex")]
            burn::backend::DispatchDevice::Flex(_) => "custom operation, SIMD kernels",
            #[cfg(feature = "gpu")]
            burn::backend::DispatchDevice::Cube(device)
                if Path::asked().1 || few_buffers(device) =>
            {
                "custom operation, inputs packed into few buffers"
            }
            #[cfg(feature = "gpu")]
            burn::backend::DispatchDevice::Cube(_) => "custom operation",
            #[allow(unreachable_patterns)]
            _ => "chunked tensor operations",
        },
    };
    form.into()
}

/// Whether the kernels get their inputs packed, as in browsers.
#[cfg(feature = "gpu")]
fn few_buffers(device: &cubecl::Device) -> bool {
    let bindings = device.client().properties().hardware.max_bindings;
    (bindings as usize) < super::backends::cubecl::wkv7::BUFFERS
}
