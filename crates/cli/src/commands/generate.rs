//! `metastate generate`: continues a prompt, printing text as it comes.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Instant,
};

use burn::tensor::Device;
use rwkv7_core::{
    config::ChannelMixerConfig,
    sampling::{Sampler, SamplerConfig},
    tokenizer::{StreamDecoder, Tokenizer},
};
use serde_json::json;
use zoo::{AnyModel, Model, Source, for_architecture, row};

use crate::{Outcome, cli::Generate, device, output, state};

use super::report;

/// Prompt tokens per forward pass: bounds the memory that a long prompt takes.
const PROMPT_CHUNK: usize = 1024;

/// A state of an earlier version, and no prompt to go on with.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: the state does not name the token that is read next, as it was saved by an earlier version; give the text that goes on \
     with --prompt",
    .0.display()
)]
struct NothingToRead(PathBuf);

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
    let source = Source::find(&args.model)?;
    if let Some(path) = &args.state_out {
        output::check_file(&source, path)?;
    }
    let device: Device = device::open(args.on.device.as_deref())?;
    let model = AnyModel::load(source.open()?, &device)?;
    let (_, tokenizer) = source.tokenizer(args.tokenizer.as_deref(), model.vocab_size())?;
    let tokenizer = tokenizer.as_ref();
    for_architecture!(AnyModel, model, model => generate(&args, &model, tokenizer, sampler, &device))
}

/// [`run`] with a model of this architecture.
fn generate<S: ChannelMixerConfig>(
    args: &Generate,
    model: &Model<S>,
    tokenizer: &dyn Tokenizer,
    mut sampler: Sampler,
    device: &Device,
) -> Outcome {
    let end = tokenizer.end_of_text();
    let vocab_size = model.config.vocab_size;

    let asked = tokenizer.encode(&args.prompt)?;
    let zero = model.network.zero_state(1, device);
    let (mut state, first) = match &args.state_in {
        // Training text has an end of text before every document; a model that starts from nothing should see one.
        None => (zero, Some(end)),
        Some(path) => {
            let (state, unread) = state::load(&zero, path, &model.config)?;
            if unread.is_none() && asked.is_empty() {
                return Err(NothingToRead(path.clone()).into());
            }
            (state, unread)
        }
    };
    let mut prompt: Vec<u32> = first.into_iter().chain(asked).collect();
    let prompt_tokens = prompt.len();
    // The last token is read when the one after it is wanted.
    let Some(mut unread) = prompt.pop() else {
        unreachable!("a prompt has at least one token");
    };

    let started = Instant::now();
    for chunk in prompt.chunks(PROMPT_CHUNK) {
        let tokens = row(chunk, vocab_size, device)?;
        (_, state) = model.network.read(tokens, Some(state));
    }
    device.sync()?;
    let prompt_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text = String::new();
    let mut count = 0;
    let mut heard = true;
    while heard && count < args.max_tokens {
        let tokens = row(&[unread], vocab_size, device)?;
        let (logits, next) = model.network.read(tokens, Some(state));
        state = next;
        let logits = logits.try_into_vec_as::<f32>()?;
        // Models have a few more logits than the tokenizer has ids; those stand for no text.
        let known = tokenizer.vocab_size().min(logits.len());
        unread = sampler.sample(&logits[..known])?;
        count += 1;
        if unread == end {
            break;
        }
        let piece = decoder.push(unread)?;
        text.push_str(&piece);
        heard = args.json || print(&piece)?;
    }
    let rest = decoder.finish();
    let seconds = started.elapsed().as_secs_f64();
    text.push_str(&rest);
    if heard && !args.json {
        print(&format!("{rest}\n"))?;
    }

    if let Some(path) = &args.state_out {
        state::save(&state, Some(unread), path, &model.config)?;
    }
    let speed = count as f64 / seconds.max(1e-9);
    if args.json {
        let object = json!({
            "prompt": args.prompt, "text": text, "prompt_tokens": prompt_tokens, "tokens": count,
            "prompt_seconds": prompt_seconds, "tokens_per_second": speed,
        });
        report(true, object, String::new);
    } else {
        log::info!(
            "{prompt_tokens} prompt tokens in {prompt_seconds:.2} s, {count} tokens at {speed:.1} tokens/s, state of {} values",
            state.num_values()
        );
    }
    Ok(())
}

/// Prints a piece of text and says whether anybody reads on.
fn print(piece: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true),
    }
}
