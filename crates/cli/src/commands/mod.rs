//! One module a command.

mod cache;
mod convert;
mod devices;
mod eval;
mod generate;
mod grow;
mod inspect;
mod logits;
mod models;
mod train;

use std::io::{self, Write};

use crate::{Outcome, cli::Command};

/// Runs a command.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Grow(args) => grow::run(args),
        Command::Models(args) => models::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Devices(args) => devices::run(args),
    }
}

/// Prints a result on standard output: an object as JSON, or lines for people.
fn report(json: bool, object: serde_json::Value, text: impl FnOnce() -> String) {
    let text = if json { object.to_string() } else { text() };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => {}
        // A reader such as `head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            log::error!("error: standard output cannot be written: {error}");
            std::process::exit(1);
        }
    }
}
