//! `metastate convert`: another format or dtype, tensor by tensor.

use burn::tensor::DType;
use rwkv7_core::checkpoint::{Checkpoint, Format};
use serde_json::json;

use crate::{Outcome, cli};

use super::report;

/// Converts a checkpoint file.
pub fn run(args: cli::Convert) -> Outcome {
    let input = args.input;
    let checkpoint = Checkpoint::open(&input)?;
    let format = match args.format {
        cli::Format::Blinkdl => Format::Official,
        cli::Format::Hf => Format::Fla,
        cli::Format::Burn => Format::Burn,
    };
    let dtype = args.dtype.map(|dtype| match dtype {
        cli::Dtype::F32 => DType::F32,
        cli::Dtype::F16 => DType::F16,
        cli::Dtype::Bf16 => DType::BF16,
    });
    let tensors = checkpoint.len();
    checkpoint.save(&args.output, format, dtype)?;
    let object = json!({ "input": input, "output": args.output, "tensors": tensors });
    report(false, object, || {
        format!("{tensors} tensors -> {}", args.output.display())
    });
    Ok(())
}
