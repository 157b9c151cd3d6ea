//! Errors of growths.

use std::path::PathBuf;

use rwkv7_core::{checkpoint::CheckpointError, config::ConfigError};

/// A growth that is impossible, or not exact where it must be.
#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    /// A dimension would become smaller.
    #[error("`{field}` is {from} in the model and {to} in the target; a model can only grow")]
    Shrinks {
        /// The dimension.
        field: &'static str,
        /// The model's.
        from: usize,
        /// The target's.
        to: usize,
    },
    /// Growth cannot change this field.
    #[error("`{field}` is {from} in the model and {to} in the target; {reason}")]
    Differs {
        /// The field.
        field: &'static str,
        /// The model's.
        from: String,
        /// The target's.
        to: String,
        /// The reason and the remedy.
        reason: &'static str,
    },
    /// The larger model would compute something else.
    #[error("{tensor} cannot grow without changing what the model computes: {reason}")]
    NotExact {
        /// The tensor, by its name in a block.
        tensor: &'static str,
        /// The reason and the remedy.
        reason: String,
    },
    /// There cannot be new blocks at these positions.
    #[error("no new blocks at these positions: {reason}")]
    NewBlocks {
        /// The problem.
        reason: String,
    },
    /// The embedding cannot get channels in pairs.
    #[error("no paired channels for this embedding: {reason}")]
    Paired {
        /// The reason and the remedy.
        reason: &'static str,
    },
    /// The optimizer's state belongs to another model or another optimizer.
    #[error("the optimizer's state is not that of this model: {reason}")]
    Optimizer {
        /// The problem.
        reason: String,
    },
    /// The larger model was compared with the smaller one and computes something else.
    #[error(
        "{}: the larger model's logits differ from the smaller one's by up to {largest:.1e} standard deviations, which is not \
         lossless; nothing was written. {}",
        output.display(),
        not_lossless(*largest, *half)
    )]
    NotLossless {
        /// The file that was to be written.
        output: PathBuf,
        /// Largest difference of a logit, in standard deviations of the smaller model's logits.
        largest: f64,
        /// Whether the larger model's values are in half precision.
        half: bool,
    },
    /// A value of the larger model would be NaN or infinite.
    #[error(
        "{tensor}: {count} of {of} values of the larger model would be no finite numbers in {dtype}: {reason}"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The number of such values.
        count: usize,
        /// The number of all its values.
        of: usize,
        /// The dtype to write.
        dtype: &'static str,
        /// The reason and the remedy.
        reason: &'static str,
    },
    /// The target is no model.
    #[error("the target: {0}")]
    Target(#[from] ConfigError),
    /// Reading the model or writing the larger one failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Why a growth was not lossless, in a sentence.
fn not_lossless(largest: f64, half: bool) -> &'static str {
    if !largest.is_finite() {
        "Logits that are no finite numbers, or whose squares are too large for f32, cannot be compared"
    } else if half {
        "Half-precision values that had to be scaled are rounded: try f32"
    } else {
        "The model's values differ so much in size that rounding changes its outputs"
    }
}
