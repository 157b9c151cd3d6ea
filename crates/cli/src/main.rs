//! `metastate`: trains, grows, evaluates, converts and runs RWKV-7 and Meta-State models.

mod cli;
mod commands;
mod device;
mod logger;
mod memory;
mod output;

use std::{error::Error, process::ExitCode};

use clap::Parser;

/// The result of a command. An error is printed with its causes.
type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::keep_pages();
    logger::install();
    match commands::run(cli::Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Prints an error and its causes. A cause that the lines above contain already is left out.
fn complain(error: &(dyn Error + 'static)) {
    let mut said = error.to_string();
    log::error!("error: {said}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            log::error!("  because: {text}");
            said += &text;
        }
        cause = error.source();
    }
}
