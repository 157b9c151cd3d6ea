//! Allocator settings of the program.

use std::ffi::c_int;

/// `mi_option_purge_delay` of `mimalloc.h`, for which the bindings have no name.
const PURGE_DELAY: c_int = 15;

/// Keeps freed memory mapped, in large pages where the system has them.
///
/// A training step frees and allocates the same large tensors over and over. Fetching their pages from the system each
/// time takes longer than computing what is in them: see `docs/src/performance.md`.
#[allow(unsafe_code)]
pub fn keep_pages() {
    // SAFETY: both set one number, before the program starts a thread.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        libmimalloc_sys::mi_option_set(libmimalloc_sys::mi_option_large_os_pages, 1);
    }
}
