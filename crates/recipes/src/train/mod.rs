//! Training on burn-train: a recipe becomes a run in an output folder.
//!
//! | in the output folder | |
//! |---|---|
//! | `recipe.json` | the effective recipe |
//! | `checkpoints/{epoch}/` | model, optimizer and schedule to go on from |
//! | `metrics.jsonl`, `train/`, `valid/` | every number of every step; burn-train's own logs |
//! | `model.safetensors`, `config.json` | the trained model, official names |
//! | `report.json` | the final evaluation |

mod checkpoints;
mod metrics;
mod progress;
mod trainee;

use std::{
    io::IsTerminal,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use burn::{
    module::Module,
    optim::lr_scheduler::{
        LrSchedulerConfig,
        cosine::CosineAnnealingLrSchedulerConfig,
        linear::LinearLrSchedulerConfig,
        module_lr_scheduler::{ModuleLrScheduler, ModuleLrSchedulerConfig},
        sequential::SequentialLrSchedulerConfig,
    },
    tensor::Device,
    train::{
        Interrupter, Learner, SupervisedTraining, TrainingError,
        checkpoint::{
            ComposedCheckpointingStrategy, KeepLastNCheckpoints, MetricCheckpointingStrategy,
        },
        logger::FileMetricLogger,
        metric::{
            LearningRateMetric, LossMetric,
            store::{Aggregate, Direction, Split},
        },
    },
};
use rwkv7_core::{
    Rwkv7Config, Rwkv7Lm, atomic,
    checkpoint::{self, CheckpointError},
    config::ConfigError,
    optimizer,
    tokenizer::{self, Tokenizer, TokenizerError},
};
use serde::Serialize;

use crate::{
    data::{
        DataError,
        loader::{BatchSource, Loader},
        reverse::Reverse,
        tokens::{self, Corpus, TokenFile},
        windows::{TrainingWindows, ValidationWindows},
    },
    evaluate::{self, ReverseReport, TextReport},
    recipe::{LearningRate, Recipe, RecipeError, Task},
};

use metrics::Track;
use progress::{JsonLines, PlainProgress};
use trainee::{NormSlot, StepSettings, Trainee};

/// How a run is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on from the newest checkpoint in the output folder.
    pub resume: bool,
    /// Plain progress even on a terminal.
    pub plain: bool,
}

/// What came out of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The trained model.
    pub model: PathBuf,
    /// Its number of parameters.
    pub parameters: usize,
    /// Seconds of training, without evaluation.
    pub training_seconds: f64,
    /// Evaluation of a text model on the validation text.
    pub text: Option<TextReport>,
    /// Evaluation of a reversing model on held-out numbers.
    pub reverse: Option<ReverseReport>,
}

/// Why a run did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The model's dimensions.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The trained model cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The output folder holds a run already.
    #[error("{}: holds another run; go on with it by --resume, or choose another folder by --out", path.display())]
    Occupied {
        /// The folder.
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
        "{}: the run was started with another recipe:\n  {}\nresume it with the same one; only `steps` may grow",
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
    /// Training was stopped: by the user, or because the loss is not a number.
    #[error(
        "training stopped: {reason}; what was reached is in the newest checkpoint, --resume goes on from there"
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
    /// Burn does not accept the learning-rate schedule.
    #[error("training cannot be set up: {reason}")]
    Setup {
        /// What Burn says.
        reason: String,
    },
}

/// Where training and validation batches come from.
struct Data {
    training: Arc<dyn BatchSource>,
    validation: Arc<dyn BatchSource>,
    validation_batches: usize,
    evaluation: Evaluation,
}

enum Evaluation {
    Reverse(Reverse),
    Text {
        tokens: TokenFile,
        range: Range<usize>,
        tokenizer: Box<dyn Tokenizer>,
    },
}

/// Trains by a recipe into the folder `out`.
///
/// Recipe, model and data are checked before anything is written.
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
    let tokenizer = tokenizer::load(&recipe.tokenizer)?;
    let config = recipe.model.config(tokenizer.vocab_size())?;
    let folder = out.join("checkpoints");
    let done = check_folder(recipe, out, &folder, options.resume)?;
    let data = prepare(recipe, tokenizer)?;
    let schedule = schedule(&recipe.learning_rate, recipe.steps)?;
    let optimizer = recipe.optimizer.init();

    let file_error = |path: PathBuf| move |source| TrainError::File { path, source };
    std::fs::create_dir_all(&folder).map_err(file_error(folder.clone()))?;
    checkpoints::remove_incomplete(&folder).map_err(file_error(folder.clone()))?;
    write_json(&out.join("recipe.json"), &recipe.to_json())?;
    let log = out.join("metrics.jsonl");
    let json_lines = JsonLines::append(&log).map_err(file_error(log))?;

    let device = device.clone().autodiff();
    let trainee = Trainee {
        model: config.init(&device, recipe.seed),
        settings: StepSettings {
            accumulation: recipe.accumulation,
            clip_norm: recipe.clip_norm,
            l2_wrap: recipe.l2_wrap,
        },
        norm: NormSlot::default(),
    };
    let parameters = trainee.num_params();
    eprintln!(
        "{parameters} parameters, epochs {} to {} of {} steps, output in {}",
        done + 1,
        recipe.epochs(),
        recipe.steps_per_epoch,
        out.display()
    );

    let micro_steps = recipe.steps_per_epoch * recipe.accumulation;
    let training = Loader::training(data.training, micro_steps, done, &device);
    let validation = Loader::validation(data.validation, data.validation_batches, &device);
    let interrupter = Interrupter::new();
    let [model_part, optimizer_part, schedule_part] = checkpoints::parts(&folder);
    let mut run = SupervisedTraining::new(out, Arc::new(training), Arc::new(validation))
        .with_interrupter(interrupter.clone())
        .with_application_logger(None)
        .with_metric_logger(FileMetricLogger::new(out))
        .with_metric_logger(json_lines)
        .metrics((
            Track::loss(interrupter),
            Track::perplexity(),
            Track::accuracy(),
        ))
        .metric_train_numeric(LearningRateMetric::new())
        .metric_train_numeric(Track::gradient_norm())
        .metric_train_numeric(Track::speed())
        .with_custom_checkpointers(model_part, optimizer_part, schedule_part)
        .with_checkpointing_strategy(
            ComposedCheckpointingStrategy::builder()
                .add(KeepLastNCheckpoints::new(recipe.keep_checkpoints))
                .add(MetricCheckpointingStrategy::new(
                    &LossMetric::new(),
                    Aggregate::Mean,
                    Direction::Lowest,
                    Split::Valid,
                ))
                .build(),
        )
        .num_epochs(recipe.epochs());
    if recipe.accumulation > 1 {
        run = run.grads_accumulation(recipe.accumulation);
    }
    if done > 0 {
        run = run.checkpoint(done);
    }
    if options.plain || !std::io::stdout().is_terminal() {
        run = run.renderer(Box::new(PlainProgress::new(done + 1)));
    }
    let started = Instant::now();
    let result = run.launch(Learner::new(trainee, optimizer, schedule));
    let training_seconds = started.elapsed().as_secs_f64();
    if let Some(source) = result.error {
        return Err(TrainError::Failed { source });
    }
    if let Some(interruption) = result.interrupted {
        return Err(TrainError::Stopped {
            reason: interruption.reason.unwrap_or_else(|| "by the user".into()),
        });
    }
    drop(result.renderer);

    let network = result.model.model;
    let model = save(out, &config, &network)?;
    let mut report = Report {
        model,
        parameters,
        training_seconds,
        text: None,
        reverse: None,
    };
    let device = device.inner();
    match data.evaluation {
        Evaluation::Reverse(task) => {
            report.reverse = Some(evaluate::reverse(
                &network,
                &device,
                &task,
                recipe.validation_batches,
            ));
        }
        Evaluation::Text {
            tokens,
            range,
            tokenizer,
        } => {
            let size = (recipe.context, recipe.batch_size);
            let tokenizer = tokenizer.as_ref();
            report.text = Some(evaluate::windows(
                &network, &device, &tokens, range, size, tokenizer,
            )?);
        }
    }
    write_json(&out.join("report.json"), &serde_json::json!(report))?;
    Ok(report)
}

/// The epochs that the run in `out` has done; 0 for a new one.
fn check_folder(
    recipe: &Recipe,
    out: &Path,
    folder: &Path,
    resume: bool,
) -> Result<usize, TrainError> {
    let file = out.join("recipe.json");
    let path = out.to_path_buf();
    if !resume {
        let empty = out
            .read_dir()
            .map_or(true, |mut entries| entries.next().is_none());
        return if empty {
            Ok(0)
        } else {
            Err(TrainError::Occupied { path })
        };
    }
    if !file.is_file() {
        return Err(TrainError::NothingToResume { path });
    }
    let text = std::fs::read_to_string(&file).map_err(|source| TrainError::File {
        path: file.clone(),
        source,
    })?;
    let before = Recipe::parse(&file.display().to_string(), &text)?;
    let allowed = Recipe {
        steps: recipe.steps.max(before.steps),
        ..before
    };
    if allowed != *recipe {
        let differences = differences(&allowed.to_json(), &recipe.to_json(), "");
        return Err(TrainError::OtherRecipe {
            path: file,
            differences,
        });
    }
    Ok(checkpoints::complete(folder).last().copied().unwrap_or(0))
}

fn differences(before: &serde_json::Value, now: &serde_json::Value, prefix: &str) -> Vec<String> {
    match (before.as_object(), now.as_object()) {
        (Some(a), Some(b)) => a
            .iter()
            .flat_map(|(key, value)| differences(value, &b[key], &format!("{prefix}{key}.")))
            .collect(),
        _ if before == now => Vec::new(),
        _ => vec![format!(
            "{}: {before} then, {now} now",
            prefix.trim_end_matches('.')
        )],
    }
}

fn prepare(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Result<Data, TrainError> {
    if recipe.task == Task::Reverse {
        let training = Reverse {
            max_digits: recipe.max_digits,
            rows: recipe.batch_size,
            seed: recipe.seed,
            held_out: false,
        };
        let validation = Reverse {
            held_out: true,
            ..training
        };
        return Ok(Data {
            training: Arc::new(training),
            validation: Arc::new(validation),
            validation_batches: recipe.validation_batches,
            evaluation: Evaluation::Reverse(validation),
        });
    }
    let corpus = |paths: &[PathBuf]| {
        let corpus = Corpus {
            paths,
            text_field: &recipe.text_field,
            tokenizer: tokenizer.as_ref(),
            tokenizer_name: &recipe.tokenizer,
        };
        corpus.tokenize(&tokens::cache_folder())
    };
    let text = corpus(&recipe.data)?;
    let (validation, train_range, range) = if recipe.validation_data.is_empty() {
        let kept = (text.len() as f64 * (1.0 - recipe.validation_fraction)) as usize;
        (text.clone(), 0..kept, kept..text.len())
    } else {
        let validation = corpus(&recipe.validation_data)?;
        let range = 0..validation.len();
        (validation, 0..text.len(), range)
    };
    let (context, rows) = (recipe.context, recipe.batch_size);
    let windows = ValidationWindows::new(validation.clone(), range.clone(), context, rows)?
        .at_most(recipe.validation_batches);
    Ok(Data {
        training: Arc::new(TrainingWindows::new(
            text,
            train_range,
            context,
            rows,
            recipe.seed,
            recipe.sampling,
        )?),
        validation_batches: windows.batches(),
        validation: Arc::new(windows),
        evaluation: Evaluation::Text {
            tokens: validation,
            range,
            tokenizer,
        },
    })
}

/// From 1 % of the peak to all of it, then a cosine down to the final rate, which stays; twice that for the decay bias.
fn schedule(rate: &LearningRate, steps: usize) -> Result<ModuleLrScheduler, TrainError> {
    let base = |factor: f64| -> LrSchedulerConfig {
        let (peak, last) = (rate.peak * factor, rate.r#final * factor);
        let cosine = CosineAnnealingLrSchedulerConfig::new(peak, steps - rate.warmup_steps)
            .with_min_lr(last);
        let mut schedules: Vec<LrSchedulerConfig> = vec![cosine.into(), last.into()];
        let mut milestones = vec![steps];
        if rate.warmup_steps > 0 {
            let warmup = LinearLrSchedulerConfig::new(peak * 0.01, peak, rate.warmup_steps);
            schedules.insert(0, warmup.into());
            milestones.insert(0, rate.warmup_steps);
        }
        SequentialLrSchedulerConfig::new(schedules, milestones).into()
    };
    ModuleLrSchedulerConfig::new(base(1.0))
        .with_group(optimizer::decay_bias(), base(optimizer::DECAY_BIAS_RATE))
        .init()
        .map_err(|reason| TrainError::Setup { reason })
}

/// Writes the trained model and its configuration.
fn save(out: &Path, config: &Rwkv7Config, network: &Rwkv7Lm) -> Result<PathBuf, TrainError> {
    let model = out.join("model.safetensors");
    checkpoint::save(&model, config, network, checkpoint::Format::Official, None)?;
    write_json(&out.join("config.json"), &serde_json::json!(config))?;
    Ok(model)
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<(), TrainError> {
    atomic::write(path, |out| {
        use std::io::Write;
        serde_json::to_writer_pretty(&mut *out, json)?;
        out.write_all(b"\n")
    })
    .map_err(|source| TrainError::File {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::module::ParamId;

    use super::*;

    /// Reference: `lr · (0.5 + f/2 + (0.5 - f/2) cos(π p))` after `lr · (0.01 + 0.99 step / warmup)`.
    #[test]
    fn the_schedule_is_the_official_one_and_the_decay_bias_gets_twice_that() {
        let rate = LearningRate {
            peak: 1e-3,
            r#final: 1e-4,
            warmup_steps: 10,
        };
        let mut schedule = schedule(&rate, 110).unwrap();
        for step in 0..130_usize {
            let current = schedule.step();
            let progress = (step.saturating_sub(10) as f64 / 100.0).min(1.0);
            let f = rate.r#final / rate.peak;
            let cosine = 0.5 + f / 2.0 + (0.5 - f / 2.0) * (std::f64::consts::PI * progress).cos();
            let warmup = if step < 10 {
                0.01 + 0.99 * step as f64 / 10.0
            } else {
                1.0
            };
            let expected = rate.peak * cosine * warmup;
            let close = |found: f64, expected: f64| {
                assert!(
                    (found - expected).abs() < 1e-12,
                    "step {step}: {found}, {expected}"
                )
            };
            close(
                current.lr_from_param(ParamId::new(), Some("model.blocks.1.att.a0")),
                expected,
            );
            close(
                current.lr_from_param(ParamId::new(), Some("model.blocks.1.att.w0")),
                2.0 * expected,
            );
        }
    }
}
