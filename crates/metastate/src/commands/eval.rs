//! `metastate eval`: how well a model predicts a text.

use recipes::{
    data::tokens::{self, Corpus},
    evaluate, for_architecture,
    model::AnyModel,
};
use serde_json::json;

use crate::{
    Outcome,
    cli::{Eval, Task},
    device,
    model::Source,
};

use super::report;

/// Measures the model, the state carried through the whole text.
pub fn run(args: Eval) -> Outcome {
    let Task::Perplexity = args.task;
    let device = device::open(args.on.device.as_deref())?;
    let source = Source::find(&args.model)?;
    let model = AnyModel::load(source.open()?, &device)?;
    let (name, tokenizer) = source.tokenizer(args.tokenizer.as_deref(), model.vocab_size())?;
    let corpus = Corpus {
        paths: &args.data,
        text_field: &args.text_field,
        tokenizer: tokenizer.as_ref(),
        tokenizer_name: &name,
    };
    let text = corpus.tokenize(&tokens::cache_folder())?;
    let tokenizer = tokenizer.as_ref();
    let result = for_architecture!(AnyModel, model, model => {
        evaluate::stream(&model.network, &device, &text, args.context, tokenizer)?
    });
    let object = json!({
        "task": "perplexity", "model": args.model, "loss": result.loss, "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte, "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
    });
    report(args.json, object, || {
        format!(
            "loss {:.4} nats, perplexity {:.3}, {:.4} bits per byte, {} tokens at {:.0} tokens/s",
            result.loss,
            result.perplexity,
            result.bits_per_byte,
            result.tokens,
            result.tokens_per_second
        )
    });
    Ok(())
}
