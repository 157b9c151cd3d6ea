//! `metastate models`: the zoo.

use serde_json::json;
use zoo::ModelConfig;

use crate::{Outcome, cli::Models};

use super::report;

/// Lists every model that can be named.
pub fn run(args: Models) -> Outcome {
    let mut models = Vec::new();
    for name in zoo::names() {
        let trained = zoo::find(name).is_some_and(|entry| entry.recipe().is_some());
        models.push((name, zoo::config(name)?, trained));
    }
    let object = models.iter().map(|(name, config, trained)| {
        json!({
            "name": name, "trained": trained, "parameters": config.num_params(),
            "state_values": config.num_state_values(), "config": config,
        })
    });
    let object = json!(object.collect::<Vec<_>>());
    report(args.json, object, || {
        let longest = models
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let mut lines = vec![format!(
            "{:longest$}  {:11} {:>6} {:>5} {:>5} {:>15} {:>15}  weights",
            "name", "architecture", "layers", "width", "heads", "parameters", "state values"
        )];
        lines.extend(
            models
                .iter()
                .map(|(name, config, trained)| line(name, config, *trained, longest)),
        );
        lines.push(String::new());
        lines.push(
            "Train one: train --recipe text --data … --set model.preset=NAME; one with weights also runs: --model NAME."
                .into(),
        );
        lines.join("\n")
    });
    Ok(())
}

fn line(name: &str, config: &ModelConfig, trained: bool, longest: usize) -> String {
    let dims = config.dims();
    format!(
        "{name:longest$}  {:12} {:>6} {:>5} {:>5} {:>15} {:>15}  {}",
        config.architecture(),
        dims.n_layer,
        dims.n_embd,
        dims.n_head(),
        config.num_params(),
        config.num_state_values(),
        if trained { "yes" } else { "" }
    )
}
