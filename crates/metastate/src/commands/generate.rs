//! `metastate generate`: continues a prompt, printing text as it comes.

use std::{
    io::{self, Write},
    time::Instant,
};

use burn::tensor::{Device, Tensor};
use recipes::{
    for_architecture,
    model::{AnyModel, Model},
    zoo::Source,
};
use rwkv7_core::{
    config::SecondHalfConfig,
    sampling::{Sampler, SamplerConfig},
    tokenizer::{StreamDecoder, Tokenizer},
};
use serde_json::json;

use crate::{
    Outcome,
    cli::Generate,
    device,
    model::{row, tokenizer},
};

use super::report;

/// Prompt tokens per forward pass: bounds the memory that a long prompt takes.
const PROMPT_CHUNK: usize = 1024;

/// Continues the prompt.
pub fn run(args: Generate) -> Outcome {
    let sampler = SamplerConfig {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        penalty_decay: args.penalty_decay,
        seed: args.seed,
    };
    let sampler = Sampler::new(sampler)?;
    let device: Device = device::open(args.on.device.as_deref())?;
    let source = Source::find(&args.model)?;
    let model = AnyModel::load(source.open()?, &device)?;
    let (_, tokenizer) = tokenizer(&source, args.tokenizer.as_deref(), model.vocab_size())?;
    let tokenizer = tokenizer.as_ref();
    for_architecture!(AnyModel, model, model => generate(&args, &model, tokenizer, sampler, &device))
}

/// [`run`] with a model of this architecture.
fn generate<S: SecondHalfConfig>(
    args: &Generate,
    model: &Model<S>,
    tokenizer: &dyn Tokenizer,
    mut sampler: Sampler,
    device: &Device,
) -> Outcome {
    let end = tokenizer.end_of_text();
    let vocab_size = model.config.vocab_size;

    let mut state = model.network.zero_state(1, device);
    if let Some(path) = &args.state_in {
        state = state.load(path, &model.config)?;
    }
    // Training text has an end of text before every document; a model that starts from nothing should see one.
    let mut prompt = tokenizer.encode(&args.prompt)?;
    if args.state_in.is_none() || prompt.is_empty() {
        prompt.insert(0, end);
    }

    let started = Instant::now();
    let mut logits = None;
    for chunk in prompt.chunks(PROMPT_CHUNK) {
        let tokens = row(chunk, vocab_size, device)?;
        let (last, next) = model.network.read(tokens, Some(state));
        logits = Some(last);
        state = next;
    }
    let mut logits = match logits {
        Some(logits) => logits.try_into_vec_as::<f32>()?,
        None => unreachable!("a prompt has at least the end-of-text token"),
    };
    let prompt_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text = String::new();
    let mut out = io::stdout().lock();
    let mut count = 0;
    while count < args.max_tokens {
        // Models have a few more logits than the tokenizer has ids; those stand for no text.
        let known = tokenizer.vocab_size().min(logits.len());
        let id = sampler.sample(&logits[..known])?;
        count += 1;
        let step = Tensor::from_data([id as i32], device);
        let (next_logits, next) = model.network.step(step, state);
        state = next;
        if id == end {
            break;
        }
        let piece = decoder.push(id)?;
        if args.json {
            text.push_str(&piece);
        } else {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        logits = next_logits.try_into_vec_as::<f32>()?;
    }
    let rest = decoder.finish();
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        text.push_str(&rest);
    } else {
        out.write_all(rest.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    drop(out);

    if let Some(path) = &args.state_out {
        state.save(path, &model.config)?;
    }
    let speed = count as f64 / seconds.max(1e-9);
    if args.json {
        let object = json!({
            "prompt": args.prompt, "text": text, "prompt_tokens": prompt.len(), "tokens": count,
            "prompt_seconds": prompt_seconds, "tokens_per_second": speed,
        });
        report(true, object, String::new);
    } else {
        eprintln!(
            "{} prompt tokens in {prompt_seconds:.2} s, {count} tokens at {speed:.1} tokens/s, state of {} values",
            prompt.len(),
            state.num_values()
        );
    }
    Ok(())
}
