//! `metastate train`: runs a recipe.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use recipes::{
    Recipe,
    train::{Options, train},
};

use crate::{Outcome, cli::Train, device, failure, kernels};

use super::report;

/// Trains, then prints the final evaluation.
pub fn run(args: Train) -> Outcome {
    let mut recipe = Recipe::load(&args.recipe)?;
    if !args.data.is_empty() {
        recipe.data = args.data;
    }
    if let Some(tokenizer) = args.tokenizer {
        recipe.tokenizer = tokenizer;
    }
    let recipe = recipe.with_overrides(&args.set)?;
    let out = args.out.unwrap_or_else(|| {
        let name = Path::new(&args.recipe).file_stem().unwrap_or_default();
        PathBuf::from("runs").join(name)
    });
    let device = device::open(args.on.device.as_deref())?;
    let options = Options {
        resume: args.resume,
        plain: args.no_tui,
    };
    if !args.no_tui && io::stdout().is_terminal() {
        kernels::dashboard();
    }
    let result = failure::training(&recipe, &out, || {
        train(&recipe, &out, &device, options).map_err(Box::new)
    })?;
    let object = serde_json::json!(result);
    report(false, object, || {
        let mut lines = vec![format!(
            "{} parameters, trained in {:.1} s: {}",
            result.parameters,
            result.training_seconds,
            result.model.display()
        )];
        if let Some(text) = &result.text {
            lines.push(format!(
                "validation loss {:.4} nats, perplexity {:.3}, {:.4} bits per byte, {} tokens",
                text.loss, text.perplexity, text.bits_per_byte, text.tokens
            ));
        }
        if let Some(reverse) = &result.reverse {
            lines.push(format!(
                "held-out numbers: {:.2} % of digits, {:.2} % of answers right, of {} numbers",
                100.0 * reverse.digit_accuracy,
                100.0 * reverse.answer_accuracy,
                reverse.numbers
            ));
            let (number, answer) = &reverse.example;
            lines.push(format!("example: {number} -> {answer}"));
        }
        lines.join("\n")
    });
    Ok(())
}
