//! `metastate grow`: a larger model that computes what the smaller one does.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{Checkpoint, Format},
    files,
};
use scaling::{Embedding, Growable, Growth, Method, Plan, ScalingError};
use serde_json::{Value, json};
use zoo::{AnyConfig, Source, changed, for_architecture, row};

use crate::{Outcome, cli::Grow, device, output};

use super::report;

/// Tokens of a text that both models read for the comparison.
const TOKENS: usize = 512;

/// Bytes of a text that are read for these tokens.
const BEGINNING: u64 = 1 << 20;

/// Bytes of the largest file that `--to` takes.
const LARGEST_TARGET: u64 = 1 << 20;

/// Errors of the command line.
#[derive(Debug, thiserror::Error)]
enum GrowError {
    #[error("--to {given}: {reason}")]
    Target { given: String, reason: String },
    #[error("--text {}: {reason}", path.display())]
    Text { path: PathBuf, reason: String },
    #[error("--to {given}: the model is that already, so nothing would grow{note}")]
    Nothing { given: String, note: &'static str },
    #[error("{0}; --inexact grows it all the same")]
    Inexact(ScalingError),
    #[error("{error}{}", if *half { ", as in --dtype f32" } else { "; --no-verify compares nothing" })]
    NotLossless { error: ScalingError, half: bool },
}

/// Grows a checkpoint file.
pub fn run(args: Grow) -> Outcome {
    let source = Source::find(&args.input)?;
    let checkpoint = source.open()?;
    let to = target(&args.to)?;
    let from = AnyConfig::of(&checkpoint)?;
    for_architecture!(AnyConfig, from, from => {
        let larger = changed(&from, &to).map_err(|error| GrowError::Target {
            given: args.to.clone(),
            reason: error.reason,
        })?;
        let plan = plan(&args, &from, &larger, &to)?;
        grow(&args, &source, checkpoint, plan)
    })
}

/// The value of `--to`: the name of a model, or a JSON object, given or in a file.
fn target(given: &str) -> Result<Value, GrowError> {
    let wrong = |reason: String| GrowError::Target {
        given: given.to_string(),
        reason,
    };
    let text = if given.trim_start().starts_with('{') {
        given.to_string()
    } else if Path::new(given).is_file() {
        files::read_text(given.as_ref(), LARGEST_TARGET)
            .map_err(|error| wrong(error.to_string()))?
    } else {
        return match zoo::config(given) {
            Ok(_) => Ok(given.into()),
            Err(error) => Err(wrong(format!("no such file, and {error}"))),
        };
    };
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// The plan of the growth of `from` to `larger`; `to` is the value of `--to`.
fn plan<S: Growable>(
    args: &Grow,
    from: &Rwkv7Config<S>,
    larger: &Rwkv7Config<S>,
    to: &Value,
) -> Outcome<Plan<S>> {
    let embedding = match args.paired {
        true => Embedding::Paired,
        false => Embedding::Lift,
    };
    let plan =
        Plan::new(from, larger, args.method, embedding)?.with_new_blocks(&args.new_blocks)?;
    // This method changes all values, even of a model that does not grow.
    if plan.to == plan.from && args.method != Method::ShrinkPerturb {
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
    output::check_model(source, &args.output, Format::Official)?;
    if let Some(path) = &args.state_out {
        output::check_file(source, path)?;
    }
    let device = device::open(args.on.device.as_deref())?;
    let mut growth = Growth::new(&plan).seed(args.seed).dtype(args.dtype);
    if let (Some(from), Some(to)) = (&args.state_in, &args.state_out) {
        let zero = plan.from.init(&device).zero_state(1, &device);
        let (state, unread) = zero.load(from, &plan.from)?;
        let plan = &plan;
        growth = growth.alongside(move || Ok(plan.grow_state(state).save(to, &plan.to, unread)?));
    }
    growth = match &args.text {
        _ if args.no_verify => growth,
        None => growth.verify(&device),
        Some(path) => {
            let ids = text(args, path, source, plan.from.vocab_size)?;
            growth.verify_on(row(&ids, plan.from.vocab_size, &device)?)
        }
    };
    let difference = growth
        .run(checkpoint, &args.output)
        .map_err(|error| match error {
            error @ ScalingError::NotLossless { half, largest, .. } => {
                // Another dtype makes no logit finite.
                let half = half && largest.is_finite();
                GrowError::NotLossless { error, half }.into()
            }
            error => Box::<dyn std::error::Error + Send + Sync>::from(error),
        })?;
    let parameters = [plan.from.num_params(), plan.to.num_params()];
    let object = json!({
        "input": args.input.to_string_lossy(), "output": args.output.to_string_lossy(), "parameters": parameters,
        "difference": difference,
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

/// The beginning of the text in a file, up to a whole character.
fn beginning(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    files::open(path)?.take(BEGINNING).read_to_end(&mut bytes)?;
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && bytes.len() as u64 == BEGINNING
    {
        bytes.truncate(error.valid_up_to());
    }
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The first tokens of the text in the file `path`.
fn text(args: &Grow, path: &Path, source: &Source, vocab_size: usize) -> Outcome<Vec<u32>> {
    let wrong = |reason: String| GrowError::Text {
        path: path.to_path_buf(),
        reason,
    };
    let text = beginning(path).map_err(|error| wrong(error.to_string()))?;
    let (_, tokenizer) = source.tokenizer(args.tokenizer.as_deref(), vocab_size)?;
    let mut ids = tokenizer.encode(&text)?;
    ids.truncate(TOKENS);
    if ids.is_empty() {
        return Err(wrong("the file is empty".into()).into());
    }
    Ok(ids)
}
