//! What a device's panic says. Burn's operations return no errors: a device that has no memory left, or is lost, panics, often in a
//! thread of its own and long after the operation that asked for too much.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{Arc, Mutex, PoisonError},
};

use crate::messages::of_panic;

/// A device that could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFailure {
    /// The memory of the device is full.
    #[error("the device has no memory left{}", .bytes.map(|bytes| format!(" for {bytes} bytes more")).unwrap_or_default())]
    OutOfMemory {
        /// Bytes that were asked for, where the driver says it.
        bytes: Option<u64>,
    },
    /// One tensor is larger than the device allows for one buffer.
    #[error("a tensor{} is larger than the device allows", .bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default())]
    TensorTooLarge {
        /// Bytes of the tensor, where the driver says it.
        bytes: Option<u64>,
    },
    /// The driver has given up the device: it was reset or unplugged, or a kernel ended in an error.
    #[error("the device is lost: {reason}")]
    Lost {
        /// The message of the driver.
        reason: String,
    },
    /// The driver refuses a kernel.
    #[error("the driver does not compile a kernel: {reason}")]
    Compilation {
        /// The message of the compiler.
        reason: String,
    },
}

/// Parts of the messages of CubeCL, wgpu and the drivers for memory that is full.
const OUT_OF_MEMORY: [&str; 8] = [
    "out of device memory",
    "out-of-memory error",
    "out of memory",
    "not enough memory",
    "outofmemory",
    "out_of_memory",
    "out_of_device_memory",
    "every page size the memory tracks still holds",
];

/// For a buffer that no memory would be enough for.
const TOO_LARGE: [&str; 4] = [
    "can't allocate buffer of size",
    "greater than the maximum buffer size",
    "max_storage_buffer_binding_size",
    "max_buffer_size",
];

/// For a device that is gone.
const LOST: [&str; 9] = [
    "the device is poisoned",
    "device is lost",
    "device lost",
    "devicelost",
    "device_lost",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "cuda_error_launch_timeout",
    "cuda_error_ecc_uncorrectable",
];

/// For a kernel that is refused.
const COMPILATION: [&str; 3] = [
    "caused the compilation to fail",
    "a compilation error happened",
    "nvrtc_error",
];

impl DeviceFailure {
    /// The failure that a panic's message, or an error's, tells of; none if the message is not a device's.
    pub fn from_message(message: &str) -> Option<Self> {
        let lower = message.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        if has(&TOO_LARGE) {
            return Some(Self::TensorTooLarge {
                bytes: bytes(&lower),
            });
        }
        if has(&OUT_OF_MEMORY) {
            return Some(Self::OutOfMemory {
                bytes: bytes(&lower),
            });
        }
        let reason = || reason(message);
        if has(&LOST) {
            return Some(Self::Lost { reason: reason() });
        }
        has(&COMPILATION).then(|| Self::Compilation { reason: reason() })
    }
}

/// The number of bytes in a message of CubeCL or wgpu, in lower case.
fn bytes(message: &str) -> Option<u64> {
    let starts = [
        "buffer of size: ",
        "out of device memory allocating ",
        "buffer size ",
        "can't allocate ",
    ];
    starts.iter().find_map(|start| {
        let (_, rest) = message.split_once(start)?;
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    })
}

/// The innermost cause in a message of CubeCL, without the backtrace, on one line.
fn reason(message: &str) -> String {
    let mut lines = Vec::new();
    for line in message.lines().map(str::trim) {
        if line.starts_with("Backtrace") {
            break;
        }
        if line.starts_with("Caused by") {
            lines.clear();
        } else if !line.is_empty() {
            lines.push(line);
        }
    }
    match lines.is_empty() {
        true => "the driver gives no reason".into(),
        false => lines.join(" "),
    }
}

/// Runs `work`. A panic that a device caused becomes its failure and is not printed; any other panic goes on as ever.
///
/// The hook for panics, of which a process has one, is replaced meanwhile. So calls of this function and of [`first_panic`] may lie
/// within one another, and not overlap in two threads.
///
/// # Errors
///
/// [`DeviceFailure`].
pub fn watch<T>(work: impl FnOnce() -> T) -> Result<T, DeviceFailure> {
    let failure = |messages: &[String]| {
        let mut messages = messages.iter();
        messages.find_map(|message| DeviceFailure::from_message(message))
    };
    let (result, messages) = caught(work, move |message, earlier| {
        DeviceFailure::from_message(message).is_some()
            || is_echo(message) && failure(earlier).is_some()
    });
    result.map_err(|panic| {
        let own = of_panic(panic.as_ref()).unwrap_or_default();
        // Panics of before may be ones that were got over, as a kernel that tuning tries in vain.
        let told = match is_echo(&own) {
            true => failure(&messages),
            false => DeviceFailure::from_message(&own),
        };
        told.unwrap_or_else(|| panic::resume_unwind(panic))
    })
}

/// Runs `work` and prints none of its panics. As in [`watch`], the process's hook for panics is replaced meanwhile.
///
/// # Errors
///
/// The message of the first panic, in whichever thread, if `work` panics. The panic of `work` itself often says no more than that
/// another thread has ended.
pub fn first_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let (result, messages) = caught(work, |_, _| true);
    result.map_err(|panic| {
        let own = of_panic(panic.as_ref());
        let told = messages.into_iter().find(|message| !is_echo(message));
        match told.or(own.filter(|message| !is_echo(message))) {
            Some(message) => reason(&message),
            None => "the thread of its driver has ended without a word".into(),
        }
    })
}

/// Whether a panic only says that another thread is gone.
fn is_echo(message: &str) -> bool {
    ["RecvError", "SendError", "PoisonError"]
        .iter()
        .any(|name| message.contains(name))
}

/// Runs `work`. A panic is not printed if `silent` says so of its message and the messages before. Beside the result, the messages
/// of all panics, oldest first.
fn caught<T>(
    work: impl FnOnce() -> T,
    silent: impl Fn(&str, &[String]) -> bool + Send + Sync + 'static,
) -> (Result<T, Box<dyn Any + Send>>, Vec<String>) {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let previous = Arc::new(panic::take_hook());
    panic::set_hook({
        let (messages, previous) = (messages.clone(), previous.clone());
        Box::new(move |info| {
            let message = of_panic(info.payload()).unwrap_or_default();
            let mut messages = messages.lock().unwrap_or_else(PoisonError::into_inner);
            let silent = silent(&message, &messages);
            messages.push(message);
            drop(messages);
            if !silent {
                previous(info);
            }
        })
    });
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    // Without the hook of this call the one before it has a single owner, and can go back as it was.
    drop(panic::take_hook());
    panic::set_hook(match Arc::try_unwrap(previous) {
        Ok(hook) => hook,
        Err(shared) => Box::new(move |info: &PanicHookInfo<'_>| shared(info)),
    });
    let mut messages = messages.lock().unwrap_or_else(PoisonError::into_inner);
    (result, std::mem::take(&mut *messages))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Messages as CubeCL 0.11.3, wgpu and CUDA write them.
    #[test]
    fn messages_of_devices_become_failures() {
        let failure = |message| DeviceFailure::from_message(message).unwrap();
        let full = "called `Result::unwrap()` on an `Err` value: The bytes were never written (failure #3, still claiming 2 \
            buffer(s))\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory allocating 4294967296 bytes\n\
            Backtrace:\n   0: cubecl";
        assert_eq!(
            failure(full),
            DeviceFailure::OutOfMemory {
                bytes: Some(4_294_967_296)
            }
        );
        let error = failure(full).to_string();
        assert!(error.contains("4294967296 bytes"), "{error}");
        for message in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "An out-of-memory error happened during launch\nCaused by:\n  hipErrorOutOfMemory",
            "wgpu error: Out of Memory",
            "Not enough memory left.",
        ] {
            assert_eq!(
                failure(message),
                DeviceFailure::OutOfMemory { bytes: None },
                "{message}"
            );
        }
        assert_eq!(
            failure(
                "An IO error happened\nCaused by:\n  can't allocate buffer of size: 268435456\n"
            ),
            DeviceFailure::TensorTooLarge {
                bytes: Some(268_435_456)
            }
        );
        assert_eq!(
            failure(
                "The device is poisoned\nCaused by:\n  CUDA_ERROR_ILLEGAL_ADDRESS in sync\nBacktrace:\n  0: main"
            ),
            DeviceFailure::Lost {
                reason: "CUDA_ERROR_ILLEGAL_ADDRESS in sync".into()
            }
        );
        assert!(matches!(
            failure(
                "A compilation error happened during launch\nCaused by:\n  NVRTC_ERROR_COMPILATION"
            ),
            DeviceFailure::Compilation { .. }
        ));
        assert_eq!(
            DeviceFailure::from_message("index out of bounds: the len is 3 but the index is 4"),
            None
        );
    }

    /// One test, for the hook is the process's.
    #[test]
    fn panics_of_devices_are_errors_and_others_stay_panics() {
        assert_eq!(watch(|| 3), Ok(3));
        // The thread of the device says what happened, the caller only that the thread is gone.
        let lost = || {
            let device =
                std::thread::spawn(|| panic!("The device is poisoned\nCaused by:\n  reset"));
            let _ = device.join();
            panic!("called `Result::unwrap()` on an `Err` value: RecvError");
        };
        let expected = DeviceFailure::Lost {
            reason: "reset".into(),
        };
        assert_eq!(watch(lost), Err::<(), _>(expected));
        assert_eq!(first_panic(lost), Err::<(), _>("reset".into()));
        let echo = first_panic(|| panic!("RecvError")).unwrap_err();
        assert!(!echo.contains("RecvError"), "{echo}");
        let panic = panic::catch_unwind(|| {
            let _ = watch(|| panic!("a broken invariant"));
        });
        assert_eq!(
            of_panic(panic.unwrap_err().as_ref()).unwrap(),
            "a broken invariant"
        );
    }
}
