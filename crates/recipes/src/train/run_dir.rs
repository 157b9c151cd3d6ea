//! The output folder of a run: which files it has, and whether a run may start or go on in it.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

use crate::atomic;
use serde_json::{Map, Value, json};
use zoo::{AnyConfig, run_folder};

use super::{TrainError, checkpoints};
use crate::recipe::Recipe;

/// The effective recipe.
const RECIPE: &str = "recipe.json";

/// The configuration of the model as it is.
const CONFIG: &str = "config.json";

/// The configuration of the model that the run started from, where the recipe says `start`.
const START: &str = "start.json";

/// The output folder of a run.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run in `out`.
    pub fn new(out: &Path) -> Self {
        Self(out.to_path_buf())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join(run_folder::CHECKPOINTS)
    }

    /// The metrics of every step.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The trained model.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }

    /// The epochs that the run has done; 0 for a new one.
    pub fn epochs_done(&self, recipe: &Recipe, resume: bool) -> Result<usize, TrainError> {
        let path = self.0.clone();
        if !resume {
            let mut entries = path.read_dir().into_iter().flatten().flatten();
            return match entries.all(|entry| is_leftover(&entry.file_name())) {
                true => Ok(0),
                false => Err(TrainError::Occupied { path }),
            };
        }
        let file = path.join(RECIPE);
        if !file.is_file() {
            return Err(TrainError::NothingToResume { path });
        }
        let before = Recipe::parse(&file.display().to_string(), &read(&file)?)?;
        if recipe.steps > before.steps && !before.steps.is_multiple_of(before.steps_per_epoch) {
            return Err(TrainError::EndedWithinEpoch {
                path: file,
                steps: before.steps,
                per_epoch: before.steps_per_epoch,
            });
        }
        let allowed = Recipe {
            steps: recipe.steps.max(before.steps),
            ..before
        };
        no_differences(file, &allowed.to_json(), &recipe.to_json())?;
        Ok(checkpoints::newest_usable(&self.checkpoints())?)
    }

    /// The configuration of the model that the run started from, if the recipe said `start`.
    pub fn started_from(&self) -> Result<Option<AnyConfig>, TrainError> {
        read_config(self.0.join(START))
    }

    /// Refuses to go on with a model that the recipe no longer means, as where a preset has changed since.
    pub fn check_model(&self, config: &Value) -> Result<(), TrainError> {
        let path = self.0.join(CONFIG);
        match read_config(path.clone())? {
            Some(before) => no_differences(path, &json!(before), config),
            // It will be written again.
            None => Ok(()),
        }
    }

    /// Makes the folder, with the recipe and the model's configuration, and removes checkpoints that a killed run left half-done.
    pub fn begin(
        &self,
        recipe: &Recipe,
        config: &Value,
        starts_from_model: bool,
    ) -> Result<(), TrainError> {
        let make =
            |path: &Path| std::fs::create_dir_all(path).map_err(|source| file_error(path, source));
        make(&self.0)?;
        write_json(&self.0.join(RECIPE), &recipe.to_json())?;
        if starts_from_model {
            write_json(&self.0.join(START), config)?;
        }
        self.write_config(config)?;
        let checkpoints = self.checkpoints();
        make(&checkpoints)?;
        checkpoints::remove_incomplete(&checkpoints)
            .map_err(|source| file_error(&checkpoints, source))
    }

    /// Writes the model's configuration.
    pub fn write_config(&self, config: &Value) -> Result<(), TrainError> {
        write_json(&self.0.join(CONFIG), config)
    }

    /// Writes the final evaluation.
    pub fn write_report(&self, report: &Value) -> Result<(), TrainError> {
        write_json(&self.0.join("report.json"), report)
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

/// Whether a run killed before it wrote its recipe left this behind.
fn is_leftover(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(atomic::TEMPORARY) || name.starts_with(".tmp"))
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
