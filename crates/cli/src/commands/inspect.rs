//! `metastate inspect`: what a checkpoint is.

use serde_json::json;
use zoo::{AnyConfig, Source, for_architecture};

use crate::{Outcome, cli::Inspect};

use super::report;

/// Prints architecture, dimensions, parameter count and dtype without loading the tensors.
pub fn run(args: Inspect) -> Outcome {
    let path = args.path;
    let source = Source::find(&path)?;
    let checkpoint = source.open()?;
    let config = AnyConfig::of(&checkpoint)?;
    for_architecture!(AnyConfig, &config, config => checkpoint.tensors(config).map(drop))?;
    let stored = checkpoint.num_values();
    let dtypes = checkpoint.dtypes();
    let object = json!({
        "path": path.to_string_lossy(), "architecture": config.architecture(), "format": checkpoint.format(), "config": config,
        "parameters": config.num_params(), "stored_values": stored, "dtypes": dtypes,
        "state_values": config.num_state_values(),
    });
    report(args.json, object, || {
        let base = config.base();
        let unused = stored.saturating_sub(config.num_params());
        let mut lines = vec![
            source.to_string(),
            format!(
                "  architecture      {}, {}",
                config.architecture(),
                checkpoint.format()
            ),
            format!("  layers            {}", base.n_layer),
            format!(
                "  width             {} ({} heads of {})",
                base.n_embd,
                config.dims().n_head(),
                base.head_size
            ),
            match &config {
                AnyConfig::Rwkv7(config) => {
                    format!("  feed-forward      {}", config.ffn.ffn_size)
                }
                AnyConfig::MetaState(config) => {
                    format!("  Meta-State        {}", json!(config.ffn))
                }
            },
            format!("  vocabulary        {}", base.vocab_size),
            format!(
                "  low-rank widths   decay {}, in-context rate {}, value {}, gate {}",
                base.decay_rank, base.in_context_rank, base.value_rank, base.gate_rank
            ),
            format!("  parameters        {}", config.num_params()),
            format!("  dtype             {}", dtypes.join(", ")),
            format!(
                "  state             {} values, whatever the length of the text",
                config.num_state_values()
            ),
        ];
        if unused > 0 {
            lines.push(format!(
                "  unused values     {unused} (layer 0 has no value residual)"
            ));
        }
        lines.join("\n")
    });
    Ok(())
}
