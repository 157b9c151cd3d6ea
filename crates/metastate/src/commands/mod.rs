//! One module a command.

mod convert;
mod eval;
mod generate;
mod grow;
mod inspect;
mod logits;
mod models;
mod train;

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
    }
}

/// Prints a result on standard output: an object as JSON, or lines for people.
#[allow(clippy::print_stdout)]
fn report(json: bool, object: serde_json::Value, text: impl FnOnce() -> String) {
    if json {
        println!("{object}");
    } else {
        println!("{}", text());
    }
}
