//! `metastate models`: the zoo.

use serde_json::json;
use zoo::Entry;

use crate::{Outcome, cli::Models};

use super::report;

/// Lists every model that has a name.
pub fn run(args: Models) -> Outcome {
    let models = zoo::entries();
    let object = models.iter().map(|entry| {
        let config = entry.config();
        json!({
            "name": entry.name, "trained": entry.is_trained(), "parameters": config.num_params(),
            "state_values": config.num_state_values(), "config": config,
        })
    });
    let object = json!(object.collect::<Vec<_>>());
    report(args.json, object, || {
        let longest = models
            .iter()
            .map(|entry| entry.name.len())
            .max()
            .unwrap_or(0);
        let mut lines = vec![format!(
            "{:longest$} {:>15}  {:12} {:>6} {:>5} {:>5} {:>12}  weights",
            "name", "parameters", "architecture", "layers", "width", "heads", "state values"
        )];
        lines.extend(models.iter().map(|entry| line(entry, longest)));
        lines.push(String::new());
        lines.push(
            "Train one: train --recipe text --data … --set model.preset=NAME; one with weights also runs: --model NAME."
                .into(),
        );
        lines.join("\n")
    });
    Ok(())
}

fn line(entry: &Entry, longest: usize) -> String {
    let config = entry.config();
    let dims = config.dims();
    format!(
        "{:longest$} {:>15}  {:12} {:>6} {:>5} {:>5} {:>12}  {}",
        entry.name,
        grouped(config.num_params()),
        config.architecture(),
        dims.n_layer,
        dims.n_embd,
        dims.n_head(),
        grouped(config.num_state_values()),
        if entry.is_trained() { "yes" } else { "" }
    )
}

/// A number with its digits in groups of three: 504,402,432.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
