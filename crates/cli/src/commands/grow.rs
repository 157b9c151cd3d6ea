//! `metastate grow`: a larger model that computes what the smaller one does.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use burn::tensor::{DType, Device, Int, Tensor};
use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError, Format},
};
use scaling::{Difference, Embedding, Growable, Method, Plan, ScalingError};
use serde_json::{Value, json};
use zoo::{ModelConfig, Source, atomic, for_architecture, model::changed};

use crate::{
    Outcome,
    cli::{self, Grow},
    device,
    model::{row, tokenizer},
    output,
};

use super::{report, say};

/// Tokens that both models read for the comparison, of a text and without one.
const TOKENS: (usize, usize) = (512, 64);

/// Largest difference of a lossless growth in f32, in standard deviations of the logits.
const TOLERANCE: f64 = 1e-3;

/// Time between lines of progress.
const INTERVAL: Duration = Duration::from_secs(5);

/// What can be wrong with a growth, besides what `scaling` says.
#[derive(Debug, thiserror::Error)]
enum GrowError {
    #[error("--to {given}: {reason}")]
    Target { given: String, reason: String },
    #[error("--text {}: {reason}", path.display())]
    Text { path: PathBuf, reason: String },
    #[error(
        "{output}: the larger model's logits differ from the smaller one's by up to {largest:.1e} standard deviations, which is \
         not lossless; nothing was written. Half-precision values that had to be scaled are rounded: try --dtype f32"
    )]
    NotLossless { output: String, largest: f64 },
    #[error("--to {given}: the model is that already, so nothing would grow{note}")]
    Nothing { given: String, note: &'static str },
    #[error("{0}; --inexact grows it all the same")]
    Inexact(ScalingError),
}

/// Grows a checkpoint file.
pub fn run(args: Grow) -> Outcome {
    let source = Source::find(&args.input)?;
    let checkpoint = source.open()?;
    let to = target(&args.to)?;
    let from = ModelConfig::of(&checkpoint)?;
    for_architecture!(ModelConfig, from, from => {
        let larger = changed(&from, &to).map_err(|error| GrowError::Target {
            given: args.to.clone(),
            reason: error.reason,
        })?;
        let plan = plan(&args, &from, &larger, &to)?;
        grow(&args, &source, checkpoint, plan)
    })
}

/// What `--to` says: a name, or a JSON object, given or in a file.
fn target(given: &str) -> Result<Value, GrowError> {
    let wrong = |reason: String| GrowError::Target {
        given: given.to_string(),
        reason,
    };
    let text = if given.trim_start().starts_with('{') {
        given.to_string()
    } else if Path::new(given).is_file() {
        std::fs::read_to_string(given).map_err(|error| wrong(error.to_string()))?
    } else {
        return match zoo::config(given) {
            Ok(_) => Ok(given.into()),
            Err(error) => Err(wrong(format!("no such file, and {error}"))),
        };
    };
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// The growth of `from` to `larger`, which is what `to` says.
fn plan<S: Growable>(
    args: &Grow,
    from: &Rwkv7Config<S>,
    larger: &Rwkv7Config<S>,
    to: &Value,
) -> Outcome<Plan<S>> {
    let method = match args.method {
        cli::Method::Lossless => Method::Lossless,
        cli::Method::Stack => Method::Stack,
        cli::Method::Paper => Method::Paper,
        cli::Method::PaperRandom => Method::PaperRandom,
        cli::Method::ShrinkPerturb => Method::ShrinkPerturb,
    };
    let embedding = match args.paired {
        true => Embedding::Paired,
        false => Embedding::Lift,
    };
    let plan = Plan::new(from, larger, method, embedding)?.with_new_blocks(&args.new_blocks)?;
    // One that perturbs all values needs no growth to change them.
    if plan.to == plan.from && method != Method::ShrinkPerturb {
        let without = json!(from)["ffn"].get("ffn_size").is_none();
        let note = match to.get("ffn_size") {
            Some(_) if without => "; its channel mixers have no `ffn_size`",
            _ => "",
        };
        return Err(GrowError::Nothing {
            given: args.to.clone(),
            note,
        }
        .into());
    }
    Ok(plan)
}

fn grow<S: Growable>(
    args: &Grow,
    source: &Source,
    checkpoint: Checkpoint,
    plan: Plan<S>,
) -> Outcome {
    if args.plan {
        report(false, Value::Null, || {
            plan.to_string().trim_end().to_string()
        });
        return Ok(());
    }
    let plan = match args.inexact {
        true => plan,
        false => plan.exact().map_err(GrowError::Inexact)?,
    };
    let dtype = match args.dtype {
        Some(cli::Dtype::F32) => Some(DType::F32),
        Some(cli::Dtype::F16) => Some(DType::F16),
        Some(cli::Dtype::Bf16) => Some(DType::BF16),
        None if plan.scale() != 1.0 => Some(DType::F32),
        None => None,
    };
    output::check_model(source, &args.output, Format::Official)?;
    if let Some(path) = &args.state_out {
        output::check_file(source, path)?;
    }
    let device = device::open(args.on.device.as_deref())?;
    let state = match &args.state_in {
        Some(path) => {
            let zero = plan.from.init(&device).zero_state(1, &device);
            Some(zero.load(path, &plan.from)?)
        }
        None => None,
    };
    // The larger model gets its name only when it has been compared and the state is written.
    let make = |temporary: &Path| -> Outcome<Option<Difference>> {
        let difference = write(args, source, &checkpoint, &plan, dtype, &device, temporary)?;
        if let (Some((state, unread)), Some(path)) = (state, &args.state_out) {
            plan.grow_state(state).save(path, &plan.to, unread)?;
        }
        Ok(difference)
    };
    let mut made = Ok(None);
    let written = atomic::replace(&args.output, |temporary| {
        made = make(temporary);
        match made {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the growth failed")),
        }
    });
    let difference = made?;
    written.map_err(|source| CheckpointError::Write {
        path: args.output.clone(),
        source,
    })?;
    let parameters = [plan.from.num_params(), plan.to.num_params()];
    let object = json!({
        "input": args.input, "output": args.output, "parameters": parameters, "difference": difference,
        "blocks": plan.blocks,
    });
    report(args.json, object, || {
        let mut lines = vec![format!(
            "{} -> {} parameters: {}",
            parameters[0],
            parameters[1],
            args.output.display()
        )];
        if let Some(difference) = &difference {
            lines.push(format!(
                "logits differ by at most {:.1e} standard deviations, {:.1e} in the mean; KL {:.1e} nats",
                difference.largest, difference.mean, difference.kl
            ));
            if plan.to.vocab_size > plan.from.vocab_size {
                lines.push(format!(
                    "the larger model gives {:.1e} of its probability to the {} new tokens",
                    difference.new_tokens,
                    plan.to.vocab_size - plan.from.vocab_size
                ));
            }
        }
        lines.join("\n")
    });
    Ok(())
}

/// Writes the larger model and compares it with the smaller one.
fn write<S: Growable>(
    args: &Grow,
    source: &Source,
    checkpoint: &Checkpoint,
    plan: &Plan<S>,
    dtype: Option<DType>,
    device: &Device,
    path: &Path,
) -> Outcome<Option<Difference>> {
    let tokens = match args.no_verify {
        true => None,
        false => Some(tokens(args, source, plan.from.vocab_size, device)?),
    };
    say(format!("writing {} tensors", plan.steps.len()));
    let shown = Mutex::new(Instant::now());
    let progress = move |done: usize, all: usize| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.elapsed() >= INTERVAL {
            *shown = Instant::now();
            say(format!("{} %", 100 * done / all));
        }
    };
    let format = Format::Official;
    let grown = scaling::grow(checkpoint, plan, path, format, dtype, args.seed, progress);
    grown.map_err(|error| match error {
        // The temporary file means nothing to anybody.
        ScalingError::Checkpoint(CheckpointError::Write { source, .. }) => {
            let path = args.output.clone();
            CheckpointError::Write { path, source }.into()
        }
        error => error,
    })?;
    let Some(tokens) = tokens else {
        return Ok(None);
    };
    say(format!(
        "comparing both models on {} tokens",
        tokens.dims()[1]
    ));
    // One after the other, so that only one of them is in memory.
    let logits = |checkpoint: Checkpoint| -> Result<Tensor<3>, CheckpointError> {
        let (_, model) = checkpoint.load::<S>(device)?;
        Ok(model.forward(tokens.clone(), None).0)
    };
    let expected = logits(source.open()?)?;
    let difference = Difference::of(expected, logits(Checkpoint::open(path)?)?);
    // NaN is not lossless either.
    let lossless = difference.largest.is_finite() && difference.largest <= TOLERANCE;
    if plan.method == Method::Lossless && plan.obstacle.is_none() && !lossless {
        return Err(GrowError::NotLossless {
            output: args.output.display().to_string(),
            largest: difference.largest,
        }
        .into());
    }
    Ok(Some(difference))
}

/// What both models read, `[1, time]`: the beginning of a text, or tokens from all over the vocabulary.
fn tokens(
    args: &Grow,
    source: &Source,
    vocab_size: usize,
    device: &Device,
) -> Outcome<Tensor<2, Int>> {
    let (of_text, others) = TOKENS;
    let ids = match &args.text {
        None => (0..others)
            .map(|i| (i * 7919 % vocab_size) as u32)
            .collect(),
        Some(path) => {
            let wrong = |reason: String| GrowError::Text {
                path: path.clone(),
                reason,
            };
            let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
            let (_, tokenizer) = tokenizer(source, args.tokenizer.as_deref(), vocab_size)?;
            let mut ids = tokenizer.encode(&text)?;
            ids.truncate(of_text);
            if ids.is_empty() {
                return Err(wrong("the file is empty".into()).into());
            }
            ids
        }
    };
    Ok(row(&ids, vocab_size, device)?)
}
