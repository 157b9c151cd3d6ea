//! `metastate logits`: the last position's logits.

use serde_json::json;
use zoo::{AnyModel, Source, for_architecture, row};

use crate::{Outcome, cli::Logits, device};

use super::report;

/// Prints the logits after the given tokens.
pub fn run(args: Logits) -> Outcome {
    let device = device::open(args.on.device.as_deref())?;
    let model = AnyModel::load(Source::find(&args.model)?.open()?, &device)?;
    let tokens = row(&args.tokens, model.vocab_size(), &device)?;
    let logits = for_architecture!(AnyModel, model, model => model.network.prefill(tokens, None).0);
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
