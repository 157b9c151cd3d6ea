//! `metastate grow`: a larger model that computes what the smaller one does.

use std::{io, path::Path};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use recipes::{model::ModelConfig, zoo};
use rwkv7_core::{
    Rwkv7Config, atomic,
    checkpoint::{Checkpoint, CheckpointError, Format},
    config::ConfigError,
};
use scaling::{Difference, Growable, Method, Plan};
use serde_json::{Value, json};

use crate::{
    Outcome,
    cli::{self, Grow},
    device,
    model::Source,
};

use super::report;

/// Tokens that both models read for the comparison.
const TOKENS: usize = 64;

/// Largest difference of a lossless growth in f32, in standard deviations of the logits.
const TOLERANCE: f64 = 1e-3;

/// What can be wrong with a growth, besides what `scaling` says.
#[derive(Debug, thiserror::Error)]
enum GrowError {
    #[error("--to {given}: {reason}")]
    Target { given: String, reason: String },
    #[error(
        "{output}: the larger model's logits differ from the smaller one's by up to {largest:.1e} standard deviations, which is \
         not lossless; nothing was written. Half-precision values that had to be scaled are rounded: try --dtype f32"
    )]
    NotLossless { output: String, largest: f64 },
}

/// Grows a checkpoint file.
pub fn run(args: Grow) -> Outcome {
    let source = Source::find(&args.input)?;
    let checkpoint = source.open()?;
    let from = ModelConfig::of(&checkpoint)?;
    let to = target(&args.to, &from)?;
    match (from, to) {
        (ModelConfig::Rwkv7(from), ModelConfig::Rwkv7(to)) => grow(&args, &source, checkpoint, &from, &to),
        (ModelConfig::MetaState(from), ModelConfig::MetaState(to)) => {
            grow(&args, &source, checkpoint, &from, &to)
        }
        (from, to) => Err(GrowError::Target {
            given: args.to.clone(),
            reason: format!(
                "a model of architecture {}, and {source} is one of architecture {}; `convert --arch` changes it",
                to.architecture(),
                from.architecture()
            ),
        }
        .into()),
    }
}

/// The configuration that `--to` means: by name, or the model's own with some fields changed.
fn target(
    given: &str,
    from: &ModelConfig,
) -> Result<ModelConfig, Box<dyn std::error::Error + Send + Sync>> {
    let wrong = |reason: String| GrowError::Target {
        given: given.to_string(),
        reason,
    };
    let text = if given.trim_start().starts_with('{') {
        given.to_string()
    } else if Path::new(given).is_file() {
        std::fs::read_to_string(given).map_err(|error| wrong(error.to_string()))?
    } else {
        return zoo::config(given).map_err(|error| {
            let hint = match &error {
                ConfigError::UnknownPreset { .. } => "no such file, and ",
                _ => "",
            };
            wrong(format!("{hint}{error}")).into()
        });
    };
    let changes: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let Value::Object(changes) = changes else {
        return Err(wrong("expected a JSON object".into()).into());
    };
    let mut config = json!(from);
    for (key, value) in changes {
        match (&mut config[key.as_str()], value) {
            (Value::Object(part), Value::Object(changes)) => part.extend(changes),
            (place, value) => *place = value,
        }
    }
    serde_json::from_value(config).map_err(|error| wrong(error.to_string()).into())
}

fn grow<S: Growable>(
    args: &Grow,
    source: &Source,
    checkpoint: Checkpoint,
    from: &Rwkv7Config<S>,
    to: &Rwkv7Config<S>,
) -> Outcome {
    let method = match args.method {
        cli::Method::Lossless => Method::Lossless,
        cli::Method::Stack => Method::Stack,
    };
    let plan = Plan::new(from, to, method)?;
    if args.plan {
        report(false, Value::Null, || {
            plan.to_string().trim_end().to_string()
        });
        return Ok(());
    }
    let dtype = match args.dtype {
        Some(cli::Dtype::F32) => Some(DType::F32),
        Some(cli::Dtype::F16) => Some(DType::F16),
        Some(cli::Dtype::Bf16) => Some(DType::BF16),
        None if plan.scale() != 1.0 => Some(DType::F32),
        None => None,
    };
    let device = device::open(args.on.device.as_deref())?;
    let mut difference = None;
    // The larger model gets its name only when it has been compared.
    let mut failed = None;
    let written = atomic::replace(&args.output, |temporary| {
        let made = write(args, source, &checkpoint, &plan, dtype, &device, temporary);
        match made {
            Ok(found) => {
                difference = found;
                Ok(())
            }
            Err(error) => {
                failed = Some(error);
                Err(io::Error::other("the growth failed"))
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written.map_err(|source| CheckpointError::Write {
        path: args.output.clone(),
        source,
    })?;
    let parameters = [from.num_params(), plan.to.num_params()];
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
) -> Result<Option<Difference>, Box<dyn std::error::Error + Send + Sync>> {
    eprintln!("writing {} tensors", plan.steps.len());
    scaling::grow(checkpoint, plan, path, Format::Official, dtype, args.seed)?;
    if args.no_verify {
        return Ok(None);
    }
    eprintln!("comparing both models on {TOKENS} tokens");
    let vocab = plan.from.vocab_size;
    let ids: Vec<i32> = (0..TOKENS).map(|i| (i * 7919 % vocab) as i32).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, TOKENS]), device);
    let (_, small) = source.open()?.load::<S>(device)?;
    let (_, large) = Checkpoint::open(path)?.load::<S>(device)?;
    let difference = Difference::between(&small, &large, tokens);
    // NaN is not lossless either.
    let lossless = difference.largest.is_finite() && difference.largest <= TOLERANCE;
    if args.method == cli::Method::Lossless && !lossless {
        return Err(GrowError::NotLossless {
            output: args.output.display().to_string(),
            largest: difference.largest,
        }
        .into());
    }
    Ok(Some(difference))
}
