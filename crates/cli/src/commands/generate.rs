//! `metastate generate`: continues a prompt, printing text as it comes.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Instant,
};

use burn::tensor::Device;
use rwkv7_core::{
    Generator,
    config::ChannelMixerConfig,
    sampling::{Sampler, SamplerConfig},
    tokenizer::Tokenizer,
};
use serde_json::json;
use zoo::{AnyModel, Model, Source, for_architecture};

use crate::{Outcome, cli::Generate, device, output};

use super::report;

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
    sampler: Sampler,
    device: &Device,
) -> Outcome {
    let mut generator = Generator::new(&model.network, sampler).with_max_tokens(args.max_tokens);
    if let Some(path) = &args.state_in {
        let zero = model.network.zero_state(1, device);
        let (state, unread) = zero.load(path, &model.config)?;
        if unread.is_none() && tokenizer.encode(&args.prompt)?.is_empty() {
            return Err(NothingToRead(path.clone()).into());
        }
        generator = generator.with_state(state, unread);
    }

    let started = Instant::now();
    let mut pieces = generator.text(tokenizer, &args.prompt)?;
    device.sync()?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let prompt_tokens = pieces.prompt_tokens();

    let started = Instant::now();
    let mut text = String::new();
    let mut heard = true;
    while heard && let Some(piece) = pieces.next().transpose()? {
        text.push_str(&piece);
        heard = args.json || print(&piece)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if heard && !args.json {
        print("\n")?;
    }

    let count = generator.drawn();
    let (state, unread) = generator.into_state();
    if let Some(path) = &args.state_out {
        state.save(path, &model.config, unread)?;
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
