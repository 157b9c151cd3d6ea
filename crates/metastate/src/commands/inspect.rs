//! `metastate inspect`: what a checkpoint is.

use rwkv7_core::checkpoint::Checkpoint;
use serde_json::json;

use crate::{Outcome, cli::Inspect};

use super::report;

/// Prints architecture, dimensions, parameter count and dtype without loading the tensors.
pub fn run(args: Inspect) -> Outcome {
    let path = args.path;
    let checkpoint = Checkpoint::open(&path)?;
    let config = checkpoint.config()?;
    let stored = checkpoint.num_values();
    let dtypes = checkpoint.dtypes();
    let object = json!({
        "path": path, "architecture": "rwkv7", "format": checkpoint.format(), "config": config,
        "parameters": config.num_params(), "stored_values": stored, "dtypes": dtypes,
        "state_values": config.num_state_values(),
    });
    report(args.json, object, || {
        let unused = stored - config.num_params();
        let mut lines = vec![
            format!("{}", path.display()),
            format!("  architecture      RWKV-7, {}", checkpoint.format()),
            format!("  layers            {}", config.n_layer),
            format!(
                "  width             {} ({} heads of {})",
                config.n_embd,
                config.n_head(),
                config.head_size
            ),
            format!("  feed-forward      {}", config.second_half.ffn_size),
            format!("  vocabulary        {}", config.vocab_size),
            format!(
                "  low-rank widths   decay {}, in-context rate {}, value {}, gate {}",
                config.decay_rank, config.in_context_rank, config.value_rank, config.gate_rank
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
