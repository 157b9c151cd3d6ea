//! `metastate convert`: another format, dtype or architecture, tensor by tensor.

use rwkv7_core::checkpoint::ConversionReport;
use serde_json::json;
use zoo::{AnyConfig, Arch, Source, for_architecture};

use crate::{Outcome, cli::Convert, output};

use super::report;

/// A checkpoint cannot become a model of this architecture.
#[derive(Debug, thiserror::Error)]
#[error(
    "{input}: a model of architecture {from} cannot become one of architecture {to}; only rwkv7 -> meta-state"
)]
struct NoSuchConversion {
    input: String,
    from: &'static str,
    to: &'static str,
}

/// A layer for a model that gets no new one.
#[derive(Debug, thiserror::Error)]
#[error(
    "--meta-state: {input} stays a model of architecture {architecture} and keeps its layers; only rwkv7 -> meta-state puts in new ones"
)]
struct NoNewLayers {
    input: String,
    architecture: &'static str,
}

/// Converts a checkpoint file.
pub fn run(args: Convert) -> Outcome {
    let source = Source::find(&args.input)?;
    output::check_model(&source, &args.output, args.format)?;
    let checkpoint = source.open()?;
    let config = AnyConfig::of(&checkpoint)?;
    let replaced = match (&config, args.arch) {
        (AnyConfig::Rwkv7(config), Some(Arch::MetaState)) => {
            let layer = args.meta_state.unwrap_or_default();
            checkpoint.save_converted(config, layer, &args.output, args.format, args.dtype)?
        }
        (_, None)
        | (AnyConfig::Rwkv7(_), Some(Arch::Rwkv7))
        | (AnyConfig::MetaState(_), Some(Arch::MetaState)) => {
            if args.meta_state.is_some() {
                return Err(NoNewLayers {
                    input: source.to_string(),
                    architecture: config.architecture(),
                }
                .into());
            }
            for_architecture!(AnyConfig, &config, config => {
                checkpoint.save(config, &args.output, args.format, args.dtype)?;
            });
            ConversionReport::default()
        }
        (AnyConfig::MetaState(_), Some(Arch::Rwkv7)) => {
            return Err(NoSuchConversion {
                input: source.to_string(),
                from: config.architecture(),
                to: "rwkv7",
            }
            .into());
        }
    };
    let tensors = checkpoint.len() - replaced.dropped.len() + replaced.added.len();
    let object = json!({
        "input": args.input.to_string_lossy(), "output": args.output.to_string_lossy(), "tensors": tensors,
        "dropped": replaced.dropped, "added": replaced.added,
    });
    report(false, object, || {
        let mut lines = vec![format!("{tensors} tensors -> {}", args.output.display())];
        for (what, names) in [
            ("dropped", &replaced.dropped),
            ("at initial values", &replaced.added),
        ] {
            if !names.is_empty() {
                lines.push(format!(
                    "{what}: {} tensors: {}",
                    names.len(),
                    names.join(", ")
                ));
            }
        }
        lines.join("\n")
    });
    Ok(())
}
