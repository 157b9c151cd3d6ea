//! The messages of the libraries, on standard error.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};
use rwkv7_core::device::COMPILATION_TARGET;

use crate::kernels;

/// Prints the bare message of every record of this project's crates; other crates log for their authors. Of the kernels that
/// CubeCL compiles only the count is shown.
struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let own = ["metastate", "meta_state", "rwkv7_core"];
        let target = metadata.target();
        target == COMPILATION_TARGET || own.iter().any(|name| target.starts_with(name))
    }

    fn log(&self, record: &Record) {
        if record.target() == COMPILATION_TARGET {
            kernels::compiled();
        } else if self.enabled(record.metadata()) {
            // A closed standard error is no reason to stop the work.
            let _ = writeln!(io::stderr(), "{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts to print informative messages, warnings and errors.
pub fn install() {
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
