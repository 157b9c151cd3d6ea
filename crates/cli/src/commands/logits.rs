//! `metastate logits`: the last position's logits.

use serde_json::json;
use zoo::{AnyModel, Source, for_architecture, row};

use crate::{Outcome, cli::Logits, device};

use super::report;

/// A logit that is not a finite number.
#[derive(Debug, thiserror::Error)]
#[error(
    "{model}: the logit of token {token} is {value}, and {count} of {all} logits are not finite: the model's weights are too large \
     for f32 on these tokens; check the file, or the training run that made it"
)]
struct NotFinite {
    model: String,
    token: usize,
    value: f32,
    count: usize,
    all: usize,
}

/// Prints the logits after the given tokens.
pub fn run(args: Logits) -> Outcome {
    let device = device::open(args.on.device.as_deref())?;
    let source = Source::find(&args.model)?;
    let model = AnyModel::load(source.open()?, &device)?;
    let tokens = row(&args.tokens, model.vocab_size(), &device)?;
    let logits = for_architecture!(AnyModel, model, model => model.network.prefill(tokens, None).0);
    let logits = logits.try_into_vec_as::<f32>()?;
    let mut wrong = logits.iter().enumerate().filter(|(_, x)| !x.is_finite());
    if let Some((token, &value)) = wrong.next() {
        return Err(NotFinite {
            model: source.to_string(),
            token,
            value,
            count: 1 + wrong.count(),
            all: logits.len(),
        }
        .into());
    }
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
