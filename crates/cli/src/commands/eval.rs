//! `metastate eval`: how well a model predicts a text, or does the task `reverse`.

use burn::tensor::Device;
use recipes::{
    data::{cache::Cache, corpus::Corpus, reverse::Reverse},
    evaluate,
};
use serde_json::json;
use zoo::{AnyModel, Source, for_architecture};

use crate::{
    Outcome,
    cli::{Eval, Task},
    device,
};

use super::report;

/// Numbers of task `reverse`, and how many of them are asked at a time.
const NUMBERS: (usize, usize) = (512, 64);

/// Measures the model.
pub fn run(args: Eval) -> Outcome {
    let device = device::open(args.on.device.as_deref())?;
    let source = Source::find(&args.model)?;
    let model = AnyModel::load(source.open()?, &device)?;
    match args.task {
        Task::Perplexity => perplexity(&args, &source, &model, &device),
        Task::Reverse => reverse(&args, &source, &model, &device),
    }
}

/// The loss on a text, with the state carried from its beginning to its end.
fn perplexity(args: &Eval, source: &Source, model: &AnyModel, device: &Device) -> Outcome {
    let (_, tokenizer) = source.tokenizer(args.tokenizer.as_deref(), model.vocab_size())?;
    let corpus = Corpus {
        paths: &args.data,
        text_field: &args.text_field,
        tokenizer: tokenizer.as_ref(),
    };
    let text = corpus.tokenize(Cache::of_user().folder())?;
    let tokenizer = tokenizer.as_ref();
    let result = for_architecture!(AnyModel, model, model => {
        evaluate::stream(&model.network, device, &text, args.context, tokenizer)?
    });
    let object = json!({
        "task": "perplexity", "model": args.model.to_string_lossy(), "loss": result.loss, "perplexity": result.perplexity,
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

/// The accuracy on numbers that training never showed.
fn reverse(args: &Eval, source: &Source, model: &AnyModel, device: &Device) -> Outcome {
    source.tokenizer(Some("byte"), model.vocab_size())?;
    let digits = usize::from(args.digits);
    let (numbers, rows) = NUMBERS;
    let task = Reverse {
        min_digits: digits,
        max_digits: digits,
        numbers,
        seed: 0,
        held_out: true,
    };
    let result = for_architecture!(AnyModel, model, model => {
        evaluate::reverse(&model.network, device, &task, rows)?
    });
    let object = json!({
        "task": "reverse", "model": args.model.to_string_lossy(), "digits": digits, "numbers": result.numbers,
        "digit_accuracy": result.digit_accuracy, "answer_accuracy": result.answer_accuracy,
    });
    report(args.json, object, || {
        let (number, answer) = &result.example;
        format!(
            "numbers of {digits} digits: {:.2} % of digits, {:.2} % of answers right, of {}\nexample: {number} -> {answer}",
            100.0 * result.digit_accuracy,
            100.0 * result.answer_accuracy,
            result.numbers
        )
    });
    Ok(())
}
