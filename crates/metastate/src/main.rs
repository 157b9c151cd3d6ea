//! `metastate`: trains, evaluates, converts and runs RWKV-7 models.

mod cli;
mod commands;
mod device;
mod memory;
mod model;

use std::{error::Error, process::ExitCode};

use clap::Parser;

/// What a command returns: the error is printed with its causes.
type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::keep_pages();
    match commands::run(cli::Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
