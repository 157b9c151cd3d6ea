//! What a program with a GPU needs beside Burn's [`Device`](burn::tensor::Device): compiled kernels that are kept for the next
//! start, words for what a device supports, and errors in place of a device's panics.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use rwkv7_core::device::{self, CompilationLog, Support};
//!
//! // Before the first device is opened.
//! device::keep_kernels(CompilationLog::Off);
//! let device = Device::flex();
//! assert!(Support::of(&device).recurrence.contains("custom"));
//! let sum = device::watch(|| Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>())?;
//! assert_eq!(sum, 2.0);
//! # Ok::<(), device::DeviceFailure>(())
//! ```

mod failure;
mod kernels;
mod support;

pub use failure::{DeviceFailure, first_panic, watch};
pub use kernels::{COMPILATION_TARGET, CompilationLog, KernelCache, NotKept, keep_kernels};
pub use support::{SOFTWARE_DRIVER, Support, kind};
