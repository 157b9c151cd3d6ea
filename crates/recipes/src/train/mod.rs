//! Training on burn-train: a recipe becomes a run in an output folder.
//!
//! | in the output folder | |
//! |---|---|
//! | `recipe.json` | the effective recipe |
//! | `checkpoints/{epoch}/` | model, optimizer and schedule to go on from |
//! | `metrics.jsonl` | every number of every step |
//! | `start.json` | the configuration of the model that the run started from, where the recipe says `start` |
//! | `model.safetensors`, `config.json` | the model of the epoch with the lowest validation loss, official names |
//! | `report.json` | the final evaluation |

mod checkpoints;
mod error;
mod folder;
mod growth;
mod journal;
mod metrics;
mod progress;
mod schedule;
mod trainee;

#[cfg(test)]
mod tests;

use std::{
    io::IsTerminal,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use burn::{
    module::Module,
    tensor::{Device, FloatDType},
    train::{Interrupter, Learner, SupervisedTraining, metric::LearningRateMetric},
};
use rwkv7_core::{
    MatmulPrecision, Rwkv7, Rwkv7Config,
    checkpoint::{self, Checkpoint},
    config::ChannelMixerConfig,
    layers::ChannelMixer,
    tokenizer::{self, Tokenizer},
};
use scaling::Growable;
use serde::Serialize;
use zoo::{AnyConfig, Source, for_architecture, run_folder};

use crate::{
    data::{
        loader::{BatchSource, Loader},
        reverse::Reverse,
        tokens::{self, Corpus, TokenFile},
        windows::{TrainingWindows, ValidationWindows},
    },
    evaluate::{self, ReverseReport, TextReport},
    recipe::{Recipe, RecipeError, Task},
};

use checkpoints::NewestAndBest;
use folder::write_json;
use growth::Stages;
use journal::{Journal, NotFinite, Steps};
use metrics::Track;
use progress::PlainProgress;

pub use checkpoints::Damaged;
pub use error::TrainError;
pub use growth::{Evolution, Held, Stage};
pub use trainee::{StepOutput, StepSettings, Trainee};

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
    recipe.matmul_precision.check(device)?;
    let tokenizer = tokenizer::load(&recipe.tokenizer)?;
    let vocab_size = tokenizer.vocab_size();
    let begun = match options.resume {
        true => folder::begun(out)?,
        false => None,
    };
    let (config, start) = match (&recipe.start, begun) {
        (None, _) => {
            let config = recipe.model.config(recipe.arch, vocab_size)?;
            (config.scaled_down(recipe.scale_down)?, None)
        }
        // The model that it started from may be gone by now.
        (Some(_), Some(config)) => (config, None),
        (Some(start), None) => {
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
            (config, Some(checkpoint))
        }
    };
    for_architecture!(AnyConfig, config, config => {
        fit(recipe, config, start, tokenizer, out, device, options)
    })
}

/// [`train`] for a model of this configuration.
fn fit<S: Growable>(
    recipe: &Recipe,
    config: Rwkv7Config<S>,
    start: Option<Checkpoint>,
    tokenizer: Box<dyn Tokenizer>,
    out: &Path,
    device: &Device,
    options: Options,
) -> Result<Report, TrainError> {
    if recipe.diagnostics && S::Layer::MEASUREMENTS.is_empty() {
        return Err(TrainError::Recipe(RecipeError::Value {
            key: "diagnostics",
            found: "true".into(),
            expected: "false for this architecture, whose layers measure nothing of themselves",
        }));
    }
    let folder = out.join(run_folder::CHECKPOINTS);
    let done = folder::check(recipe, out, &folder, options.resume)?;
    let data = prepare(recipe, tokenizer)?;
    let schedule = schedule::schedule(recipe);
    let mut optimizer = recipe.optimizer.init();
    let interrupter = Interrupter::new();
    let validation = (data.validation.clone(), data.validation_batches);
    let plain = options.plain || cfg!(not(feature = "tui")) || !std::io::stdout().is_terminal();
    let stages = Stages::new(recipe, &config, validation, out, plain, interrupter.clone())?;
    let stages = Arc::new(stages);
    let steps_done = done * recipe.steps_per_epoch;
    // A run that goes on has the size that it had.
    let config = match done {
        0 => config,
        _ => stages.config(steps_done).clone(),
    };
    if done > 0 && recipe.grow.is_empty() {
        folder::check_model(out, &checkpoint::config_json(&config))?;
    }

    let file_error = |path: PathBuf| move |source| TrainError::File { path, source };
    std::fs::create_dir_all(out).map_err(file_error(out.to_path_buf()))?;
    write_json(&out.join("recipe.json"), &recipe.to_json())?;
    if let (Some(_), 0) = (&start, done) {
        write_json(&out.join(folder::START), &checkpoint::config_json(&config))?;
    }
    write_json(&out.join("config.json"), &checkpoint::config_json(&config))?;
    std::fs::create_dir_all(&folder).map_err(file_error(folder.clone()))?;
    checkpoints::remove_incomplete(&folder).map_err(file_error(folder.clone()))?;
    let steps = Steps {
        done,
        per_epoch: recipe.steps_per_epoch,
        accumulation: recipe.accumulation,
    };
    let log = out.join("metrics.jsonl");
    let journal = Journal::open(&log, steps, interrupter.clone()).map_err(file_error(log))?;
    let history = journal.history();

    let device = device.clone().autodiff();
    let settings = StepSettings {
        accumulation: recipe.accumulation,
        clip_norm: recipe.clip_norm,
        l2_wrap: recipe.l2_wrap,
        diagnostics: recipe.diagnostics,
        precision: recipe.matmul_precision,
    };
    let model = match start {
        Some(start) if done == 0 => start.into_model(&config, &device, FloatDType::F32)?,
        _ => config.init_seeded(&device, recipe.seed),
    };
    let grown = match done {
        0 => stages.grow(0, &model, &mut optimizer)?,
        _ => None,
    };
    let model = grown.unwrap_or(model);
    let trainee = Trainee::new(model, settings).in_course(stages.clone(), steps_done);
    let (parameters, epochs) = (trainee.num_params(), recipe.epochs());
    progress::say(&match done < epochs {
        true => format!(
            "{parameters} parameters, epochs {} to {epochs} of {} steps, output in {}",
            done + 1,
            recipe.steps_per_epoch,
            out.display()
        ),
        false => format!("all {epochs} epochs are done, output in {}", out.display()),
    });

    let batches = [recipe.steps_per_epoch, recipe.steps].map(|steps| steps * recipe.accumulation);
    let training = Loader::training(data.training, batches.into(), done, &device);
    let validation = Loader::validation(data.validation, data.validation_batches, &device);
    let growths: Vec<usize> = recipe
        .grow
        .iter()
        .map(|growth| growth.after / recipe.steps_per_epoch)
        .collect();
    let [model_part, optimizer_part, schedule_part] = checkpoints::parts(&folder);
    let mut run = SupervisedTraining::new(out, Arc::new(training), Arc::new(validation))
        .with_interrupter(interrupter.clone())
        .with_application_logger(None)
        .with_metric_logger(journal)
        .metrics((Track::loss(), Track::perplexity(), Track::accuracy()))
        .metric_train_numeric(LearningRateMetric::new())
        .metric_train_numeric(Track::gradient_norm())
        .metric_train_numeric(Track::speed())
        .with_custom_checkpointers(model_part, optimizer_part, schedule_part)
        .with_checkpointing_strategy(NewestAndBest {
            folder: folder.clone(),
            keep: recipe.keep_checkpoints,
            history: history.clone(),
            growths: growths.clone(),
        })
        .num_epochs(epochs);
    if recipe.diagnostics {
        for layer in 0..stages.last().n_layer {
            for (index, name) in S::Layer::MEASUREMENTS.iter().enumerate() {
                let track = Track::measurement(layer, index, name);
                run = run
                    .metric_train_numeric(track.clone())
                    .metric_valid_numeric(track);
            }
        }
    }
    if recipe.accumulation > 1 {
        run = run.grads_accumulation(recipe.accumulation);
    }
    if done > 0 {
        run = run.checkpoint(done);
    }
    if plain {
        run = run.renderer(Box::new(PlainProgress::new(done + 1)));
    }
    let started = Instant::now();
    let result = run.launch(Learner::new(trainee, optimizer, schedule));
    let training_seconds = started.elapsed().as_secs_f64();
    if let Some(error) = stages.failure() {
        return Err(error);
    }
    if let Some(source) = result.error {
        return Err(TrainError::Failed { source });
    }
    if let Some(NotFinite { what, step, value }) = history.not_finite() {
        return Err(TrainError::NotFinite { what, step, value });
    }
    // Not what burn-train says: its dashboard takes back that it was stopped.
    let whole = history.best(&[epochs]).is_some();
    if let Some(reason) = match interrupter.get_message() {
        None if !whole => Some("before the end of its last epoch".into()),
        reason => reason,
    } {
        return Err(TrainError::Stopped { reason });
    }
    drop(result.renderer);

    let device = device.inner();
    let config = stages.last();
    let first = checkpoints::first_of_size(&growths, epochs);
    let mut kept = run_folder::complete(&folder);
    kept.retain(|epoch| *epoch >= first);
    let epoch = history.best(&kept).unwrap_or(epochs);
    let network = if epoch == epochs {
        result
            .model
            .model
            .with_matmul_precision(MatmulPrecision::F32)
    } else {
        Checkpoint::open(&run_folder::model_file(&folder, epoch))?.into_model(
            config,
            &device,
            FloatDType::F32,
        )?
    };
    let model = save(out, config, &network)?;
    let mut report = Report {
        model,
        epoch,
        parameters: config.num_params(),
        stages: stages.report()?,
        training_seconds,
        text: None,
        reverse: None,
    };
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

fn prepare(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Result<Data, TrainError> {
    if recipe.task == Task::Reverse {
        let training = Reverse {
            min_digits: 1,
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

/// Writes the trained model and its configuration.
fn save<S: ChannelMixerConfig>(
    out: &Path,
    config: &Rwkv7Config<S>,
    network: &Rwkv7<S::Layer>,
) -> Result<PathBuf, TrainError> {
    let model = out.join("model.safetensors");
    checkpoint::save(&model, config, network, checkpoint::Format::Official, None)?;
    Ok(model)
}
