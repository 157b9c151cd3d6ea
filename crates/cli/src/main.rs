//! `metastate`: trains, evaluates, converts and runs RWKV-7 models.

mod cli;
mod commands;
mod device;
mod memory;
mod model;
mod output;

use std::{error::Error, process::ExitCode};

use clap::Parser;

/// What a command returns: the error is printed with its causes.
type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::keep_pages();
    match commands::run(cli::Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::say(format!("error: {error}"));
            let mut cause = error.source();
            while let Some(error) = cause {
                commands::say(format!("  because: {error}"));
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
