//! Training on burn-train: a recipe becomes a run in an output folder.
//!
//! | in the output folder | |
//! |---|---|
//! | `recipe.json` | the effective recipe |
//! | `run.json` | checksums of the settings, the data and the tokenizer |
//! | `run.lock` | locked while a process trains in the folder |
//! | `tokenizer.json`, `vocabulary.txt` | a copy of the tokenizer's file, if there is one |
//! | `checkpoints/{epoch}/` | model, optimizer and schedule to go on from, and a manifest with their checksums |
//! | `metrics.jsonl` | every number of every step |
//! | `start.json` | the configuration of the model that the run started from, where the recipe says `start` |
//! | `model.safetensors`, `config.json` | the model of the epoch with the lowest validation loss, official names |
//! | `before-growth.safetensors` | the smaller model, where a growth changed the loss and the run ended |
//! | `report.json` | the final evaluation |

mod checkpoints;
mod data;
mod error;
mod growth;
mod identity;
mod lock;
mod manifest;
mod metrics;
mod metrics_log;
mod output;
mod progress;
mod record;
mod run;
mod run_dir;
mod schedule;
mod step;
mod verify;

#[cfg(test)]
mod tests;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use rwkv7_core::{checkpoint::Checkpoint, tokenizer};
use serde::{Serialize, Serializer};
use zoo::{AnyConfig, Source, for_architecture};

use crate::{
    evaluate::{ReverseReport, TextReport},
    recipe::Recipe,
};

use run::Run;
use run_dir::RunDir;

pub use error::TrainError;
pub use growth::{FrozenEntries, GrowthHook, Stage};
pub use metrics::{LmMetric, StepMetrics};
pub use output::{StepNumbers, StepOutput};
pub use step::{LmStep, StepSettings};
pub use verify::DamagedCheckpoint;

/// How a run is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on from the newest checkpoint in the output folder.
    pub resume: bool,
    /// Plain progress even on a terminal.
    pub plain: bool,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The trained model.
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,
    /// The epoch it is from: the one with the lowest validation loss.
    pub epoch: usize,
    /// Its number of parameters.
    pub parameters: usize,
    /// The sizes that it went through.
    pub stages: Vec<Stage>,
    /// Seconds of training, without evaluation.
    pub training_seconds: f64,
    /// Evaluation of a text model on the validation text.
    pub text: Option<TextReport>,
    /// Evaluation of a reversing model on held-out numbers.
    pub reverse: Option<ReverseReport>,
}

/// A path as JSON holds it, whatever its bytes.
fn as_text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Trains by a recipe into the folder `out`.
///
/// Recipe, model and data are checked before anything is written. No other process may train in the folder at the same time.
///
/// ```
/// use burn::tensor::Device;
/// use metastate_recipes::{Recipe, train::{Options, train}};
///
/// let small = ["model.n_layer=1", "model.n_embd=32", "max_digits=3", "batch_size=4", "steps=4", "steps_per_epoch=2",
///     "learning_rate.warmup_steps=1", "validation_batches=1"];
/// let recipe = Recipe::load("reverse")?.with_overrides(&small.map(String::from))?;
/// let out = tempfile::tempdir()?;
/// let options = Options { plain: true, ..Options::default() };
/// let report = train(&recipe, out.path(), &Device::flex(), options)?;
/// assert!(report.model.ends_with("model.safetensors"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`TrainError`].
pub fn train(
    recipe: &Recipe,
    out: &Path,
    device: &Device,
    options: Options,
) -> Result<Report, TrainError> {
    recipe.validate()?;
    recipe.matmul_precision.check(device)?;
    let recipe = &recipe.with_absolute_paths()?;
    let tokenizer = tokenizer::load(&recipe.tokenizer)?;
    let dir = RunDir::open(out, recipe, options.resume)?;
    let (config, start) = first_model(recipe, tokenizer.vocab_size(), &dir)?;
    let plain = options.plain || cfg!(not(feature = "tui")) || !std::io::stdout().is_terminal();
    for_architecture!(AnyConfig, config, config => {
        let run = Run::prepare(recipe, config, start.is_some(), tokenizer, dir, device, plain)?;
        let learner = run.build(start)?;
        let (model, seconds) = run.launch(learner)?;
        run.report(model, seconds)
    })
}

/// The configuration of the model that the run begins with, and its weights where a run without checkpoints starts from a trained
/// model.
fn first_model(
    recipe: &Recipe,
    vocab_size: usize,
    dir: &RunDir,
) -> Result<(AnyConfig, Option<Checkpoint>), TrainError> {
    let Some(start) = &recipe.start else {
        let config = recipe.model.config(recipe.arch, vocab_size)?;
        return Ok((config.scaled_down(recipe.scale_down)?, None));
    };
    // The model that the run started from may be gone by now.
    if dir.has_checkpoints()
        && let Some(config) = dir.started_from()?
    {
        return Ok((config, None));
    }
    let checkpoint = Source::find(Path::new(start))?.open()?;
    let config = AnyConfig::of(&checkpoint)?;
    let found = config.base().vocab_size;
    if found < vocab_size {
        return Err(TrainError::Vocabulary {
            start: start.clone(),
            found,
            expected: vocab_size,
        });
    }
    Ok((config, (!dir.has_checkpoints()).then_some(checkpoint)))
}
