//! The output folder of a run: which files it has, and whether a run may start or go on in it.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rwkv7_core::{files, tokenizer};
use serde_json::{Map, Value, json};
use zoo::{AnyConfig, run_folder};

use super::{
    TrainError, checkpoints,
    lock::{LOCK, RunLock},
};
use crate::{atomic, recipe::Recipe};

/// What tells the run from others.
const IDENTITY: &str = "run.json";

/// The configuration of the model as it is.
const CONFIG: &str = "config.json";

/// The configuration of the model that the run started from, where the recipe says `start`.
const START: &str = "start.json";

/// The output folder of a run. All clones share its lock.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Whether a run goes on.
    resumes: bool,
    lock: Arc<OnceLock<RunLock>>,
}

impl RunDir {
    /// The folder `out` for a new run, or of the run that goes on, which is then locked.
    pub fn open(out: &Path, recipe: &Recipe, resume: bool) -> Result<Self, TrainError> {
        let dir = Self {
            path: out.to_path_buf(),
            resumes: resume,
            lock: Arc::default(),
        };
        match resume {
            true => dir.open_run(recipe)?,
            false => {
                RunLock::check(out)?;
                dir.check_free()?;
            }
        }
        Ok(dir)
    }

    /// Whether a run goes on.
    pub fn resumes(&self) -> bool {
        self.resumes
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(run_folder::CHECKPOINTS)
    }

    /// The metrics of every step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The trained model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// What tells the run from others.
    pub fn identity(&self) -> PathBuf {
        self.path.join(IDENTITY)
    }

    /// Locks the folder of a run that has these settings.
    fn open_run(&self, recipe: &Recipe) -> Result<(), TrainError> {
        let file = self.path.join(run_folder::RECIPE);
        if !file.is_file() {
            let path = self.path.clone();
            return Err(TrainError::NothingToResume { path });
        }
        self.take_lock()?;
        let before = Recipe::parse(&file.display().to_string(), &read(&file)?)?;
        if recipe.steps > before.steps && !before.steps.is_multiple_of(before.steps_per_epoch) {
            return Err(TrainError::EndedWithinEpoch {
                path: file,
                steps: before.steps,
                per_epoch: before.steps_per_epoch,
            });
        }
        let mut allowed = Recipe {
            steps: recipe.steps.max(before.steps),
            keep_checkpoints: recipe.keep_checkpoints,
            ..before.with_absolute_paths()?
        };
        if self.identity().exists() {
            // The content of these files is compared, wherever they are now.
            allowed.data.clone_from(&recipe.data);
            allowed.validation_data.clone_from(&recipe.validation_data);
            allowed.tokenizer.clone_from(&recipe.tokenizer);
        }
        if self.has_checkpoints() && self.path.join(START).exists() {
            // The run does not read the model again.
            allowed.start.clone_from(&recipe.start);
        }
        no_differences(file, &allowed.to_json(), &recipe.to_json())
    }

    /// Whether the folder has checkpoints, usable or not.
    pub fn has_checkpoints(&self) -> bool {
        self.resumes && !run_folder::complete(&self.checkpoints()).is_empty()
    }

    /// The configuration of the model that the run started from, if the recipe said `start`.
    pub fn started_from(&self) -> Result<Option<AnyConfig>, TrainError> {
        read_config(self.path.join(START))
    }

    /// Refuses to go on with a model that the recipe no longer means, as where a preset has changed since.
    pub fn check_model(&self, config: &Value) -> Result<(), TrainError> {
        let path = self.path.join(CONFIG);
        match read_config(path.clone())? {
            Some(before) => no_differences(path, &json!(before), config),
            // It will be written again.
            None => Ok(()),
        }
    }

    /// Makes the folder and locks it, with the recipe and the model's configuration, and removes what a killed run left half-done.
    pub fn begin(
        &self,
        recipe: &Recipe,
        config: &Value,
        starts_from_model: bool,
    ) -> Result<(), TrainError> {
        let make =
            |path: &Path| atomic::create_folder(path).map_err(|source| file_error(path, source));
        make(&self.path)?;
        if !self.resumes {
            self.take_lock()?;
            // Another run may have been here since the folder was looked at.
            self.check_free()?;
        }
        let cleaned = atomic::remove_temporary(&self.path);
        cleaned.map_err(|source| file_error(&self.path, source))?;
        write_json(&self.path.join(run_folder::RECIPE), &recipe.to_json())?;
        if starts_from_model {
            write_json(&self.path.join(START), config)?;
        }
        self.keep_tokenizer(&recipe.tokenizer)?;
        self.write_config(config)?;
        let checkpoints = self.checkpoints();
        make(&checkpoints)?;
        checkpoints::remove_incomplete(&checkpoints)
            .map_err(|source| file_error(&checkpoints, source))
    }

    /// Writes the model's configuration.
    pub fn write_config(&self, config: &Value) -> Result<(), TrainError> {
        write_json(&self.path.join(CONFIG), config)
    }

    /// Writes the final evaluation.
    pub fn write_report(&self, report: &Value) -> Result<(), TrainError> {
        write_json(&self.path.join("report.json"), report)
    }

    /// Copies the tokenizer's file, so that the run has all that its model needs to read a text.
    fn keep_tokenizer(&self, name: &str) -> Result<(), TrainError> {
        if name == "byte" {
            return Ok(());
        }
        let name = Path::new(name);
        let bytes = files::read(name, tokenizer::LARGEST_FILE)
            .map_err(|source| file_error(name, source))?;
        let is_json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let [json, vocabulary] = run_folder::TOKENIZERS;
        let path = self.path.join(if is_json { json } else { vocabulary });
        atomic::write(&path, |out| out.write_all(&bytes))
            .map_err(|source| file_error(&path, source))
    }

    fn take_lock(&self) -> Result<(), TrainError> {
        let lock = RunLock::take(&self.path)?;
        // Nobody else sets it, as the lock is taken once.
        let _ = self.lock.set(lock);
        Ok(())
    }

    /// Refuses a folder that holds anything but what a run killed before it wrote its recipe left behind.
    fn check_free(&self) -> Result<(), TrainError> {
        let mut entries = self.path.read_dir().into_iter().flatten().flatten();
        let is_leftover = |name: &std::ffi::OsStr| name == LOCK || atomic::is_temporary(name);
        match entries.all(|entry| is_leftover(&entry.file_name())) {
            true => Ok(()),
            false => Err(TrainError::Occupied {
                path: self.path.clone(),
            }),
        }
    }
}

/// The error for a file or folder of the run.
pub fn file_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::File {
        path: path.to_path_buf(),
        source,
    }
}

fn read(path: &Path) -> Result<String, TrainError> {
    std::fs::read_to_string(path).map_err(|source| file_error(path, source))
}

/// A configuration in the folder, if there is one.
fn read_config(path: PathBuf) -> Result<Option<AnyConfig>, TrainError> {
    if !path.exists() {
        return Ok(None);
    }
    let config = serde_json::from_str(&read(&path)?);
    config.map_err(|error| file_error(&path, error.into()))
}

fn no_differences(path: PathBuf, before: &Value, now: &Value) -> Result<(), TrainError> {
    let differences = differences(before, now, "");
    match differences.is_empty() {
        true => Ok(()),
        false => Err(TrainError::OtherRecipe { path, differences }),
    }
}

fn differences(before: &Value, now: &Value, prefix: &str) -> Vec<String> {
    match (before.as_object(), now.as_object()) {
        (Some(a), Some(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let value =
                |object: &Map<String, Value>, key| object.get(key).cloned().unwrap_or_default();
            keys.into_iter()
                .flat_map(|key| {
                    differences(&value(a, key), &value(b, key), &format!("{prefix}{key}."))
                })
                .collect()
        }
        _ if before == now => Vec::new(),
        _ => vec![format!(
            "{}: {before} then, {now} now",
            prefix.trim_end_matches('.')
        )],
    }
}

/// Writes a JSON file that is complete or not there.
pub(super) fn write_json(path: &Path, json: &Value) -> Result<(), TrainError> {
    atomic::write(path, |out| {
        serde_json::to_writer_pretty(&mut *out, json)?;
        out.write_all(b"\n")
    })
    .map_err(|source| file_error(path, source))
}
