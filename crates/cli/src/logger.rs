//! The messages of the libraries, on standard error.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

/// Prints the bare message of every record of this project's crates; other crates log for their authors.
struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let own = ["metastate", "meta_state", "rwkv7_core"];
        own.iter().any(|name| metadata.target().starts_with(name))
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
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
