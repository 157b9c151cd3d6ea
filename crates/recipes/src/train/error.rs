//! Why a run fails.

use std::{path::PathBuf, sync::Arc};

use burn::train::TrainingError;
use rwkv7_core::{
    checkpoint::CheckpointError, config::ConfigError, precision::MatmulPrecisionError,
    tokenizer::TokenizerError,
};
use scaling::ScalingError;
use zoo::{SourceError, TargetError};

use super::verify::DamagedCheckpoint;
use crate::{data::DataError, evaluate::EvaluateError, recipe::RecipeError};

/// Why a run did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The model's dimensions.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device does not multiply in this precision.
    #[error("recipe: `matmul_precision`: {0}")]
    MatmulPrecision(#[from] MatmulPrecisionError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The final evaluation.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// The trained model cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A growth that is impossible.
    #[error("recipe: `grow`")]
    Growth(#[from] ScalingError),
    /// A growth to something that is no model.
    #[error("recipe: `grow`")]
    Target(#[from] TargetError),
    /// A model to start from that is not there or has no weights.
    #[error("recipe: `start`")]
    Start(#[from] SourceError),
    /// A model to start from that has fewer ids than the tokenizer.
    #[error(
        "recipe: `start` {start}: the model knows {found} ids, and the tokenizer has {expected}; train it with its own tokenizer"
    )]
    Vocabulary {
        /// The model.
        start: String,
        /// Its vocabulary.
        found: usize,
        /// The tokenizer's.
        expected: usize,
    },
    /// The output folder holds a run already.
    #[error("{}: holds another run; go on with it by --resume, or choose another folder by --out", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// Another process trains in the output folder.
    #[error(
        "{}: {holder} trains in this folder; wait until it ends or end it, or choose another folder by --out",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process, and for how long.
        holder: String,
    },
    /// The run to resume had other data or another tokenizer.
    #[error(
        "{}: the {what} of the run was {before} and is {now} now, by its content; resume the run with the {what} that it was started with, \
         or start another one",
        path.display()
    )]
    OtherData {
        /// The run's file with the fingerprints.
        path: PathBuf,
        /// `data` or `tokenizer`.
        what: &'static str,
        /// The fingerprint that the run was started with.
        before: String,
        /// The fingerprint now.
        now: String,
    },
    /// A growth that should change nothing changed the loss.
    #[error(
        "recipe: `grow`: the growth after {step} steps should change nothing, and the validation loss went from {before:.4} to {after:.4}; the \
         run ended. The smaller model is in {path}: start another run from it by --set start={path} with another growth, of other sizes or \
         another `method`",
        path = path.display()
    )]
    GrowthChanges {
        /// Steps before the growth.
        step: usize,
        /// Validation loss of the smaller model, nats.
        before: f64,
        /// Validation loss of the larger model, nats.
        after: f64,
        /// The smaller model.
        path: PathBuf,
    },
    /// There is nothing to resume.
    #[error("{}: no run to resume; start one without --resume", path.display())]
    NothingToResume {
        /// The folder.
        path: PathBuf,
    },
    /// The run to resume has another recipe.
    #[error(
        "{}: the run was started with another recipe:\n  {}\nresume it with the same one; only `steps` may grow, and `keep_checkpoints` may change",
        path.display(),
        differences.join("\n  ")
    )]
    OtherRecipe {
        /// The run's recipe file.
        path: PathBuf,
        /// One line a key.
        differences: Vec<String>,
    },
    /// A file of the run cannot be read or written.
    #[error("{}: cannot be read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A run that ended within an epoch cannot become longer: its next epochs would begin at other steps.
    #[error(
        "{}: the run is of {steps} steps and ends within an epoch of {per_epoch}, so it cannot go on to more; resume it with \
         --set steps={steps}, or start another one",
        path.display()
    )]
    EndedWithinEpoch {
        /// The run's recipe file.
        path: PathBuf,
        /// Its steps.
        steps: usize,
        /// Steps of its epochs.
        per_epoch: usize,
    },
    /// No checkpoint of the run to resume can be read.
    #[error("{0}; no other checkpoint can be read either, start another run")]
    Damaged(#[from] DamagedCheckpoint),
    /// The loss or a layer's measurement became infinite or not a number.
    #[error(
        "the {what} is {value} at step {step}; start again with a lower learning_rate.peak or more \
         learning_rate.warmup_steps (diagnostics=true measures every layer of meta-state)"
    )]
    NotFinite {
        /// The metric: `loss`, or the layer and its measurement.
        what: String,
        /// The optimizer step, from 1.
        step: usize,
        /// The value.
        value: f64,
    },
    /// Training was stopped, in the dashboard or because the log cannot be written.
    #[error(
        "training stopped: {}; --resume goes on from the end of the last whole epoch",
        reason.trim_end_matches('.')
    )]
    Stopped {
        /// Why.
        reason: String,
    },
    /// burn-train failed.
    #[error("training failed")]
    Failed {
        /// The cause.
        source: Arc<TrainingError>,
    },
}
