//! `metastate logits`: the last position's logits.

use serde_json::json;

use crate::{Outcome, cli::Logits, device, model::Model};

use super::report;

/// Prints the logits after the given tokens.
pub fn run(args: Logits) -> Outcome {
    let device = device::open(args.on.device.as_deref())?;
    let model = Model::load(&args.model, &device)?;
    let tokens = model.row(&args.tokens, &device)?;
    let (logits, _) = model.network.read(tokens, None);
    let logits = logits.try_into_vec_as::<f32>()?;
    let object = json!({ "tokens": args.tokens, "logits": logits });
    report(args.json, object, || {
        let lines: Vec<String> = logits
            .iter()
            .enumerate()
            .map(|(id, logit)| format!("{id}\t{logit}"))
            .collect();
        lines.join("\n")
    });
    Ok(())
}
