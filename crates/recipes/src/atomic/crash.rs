//! Ends the process at a chosen change of the file system, so that a test can look at what is left.
//!
//! Programs without debug assertions, such as release builds, have none of it.

#[cfg(debug_assertions)]
use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(debug_assertions)]
static PASSED: AtomicUsize = AtomicUsize::new(0);

/// A moment right before or after a change of the file system. The process ends here, as if killed, where
/// `METASTATE_ABORT_AT` is the number of this moment, counted from 1.
#[cfg(debug_assertions)]
pub fn point() {
    static WANTED: LazyLock<Option<usize>> = LazyLock::new(|| {
        let wanted = std::env::var("METASTATE_ABORT_AT").ok()?;
        wanted.parse().ok()
    });
    let passed = 1 + PASSED.fetch_add(1, Ordering::Relaxed);
    if *WANTED == Some(passed) {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn point() {}

/// The number of moments so far.
#[cfg(all(test, debug_assertions))]
pub fn points_passed() -> usize {
    PASSED.load(Ordering::Relaxed)
}

/// None.
#[cfg(all(test, not(debug_assertions)))]
pub fn points_passed() -> usize {
    0
}
