//! The output folder: whether a run may start or go on in it.

use std::{collections::BTreeSet, path::Path};

use crate::atomic;
use serde_json::{Map, Value, json};
use zoo::{
    AnyConfig,
    run_folder::{CHECKPOINTS, complete},
};

use super::{TrainError, checkpoints};
use crate::recipe::Recipe;

/// The epochs that the run in `out` has done; 0 for a new one.
pub fn check(
    recipe: &Recipe,
    out: &Path,
    folder: &Path,
    resume: bool,
) -> Result<usize, TrainError> {
    let file = out.join("recipe.json");
    let path = out.to_path_buf();
    if !resume {
        let mut entries = out.read_dir().into_iter().flatten().flatten();
        return if entries.all(|entry| is_leftover(&entry.file_name())) {
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
    if allowed != *recipe {
        let differences = differences(&allowed.to_json(), &recipe.to_json(), "");
        return Err(TrainError::OtherRecipe {
            path: file,
            differences,
        });
    }
    Ok(checkpoints::newest_usable(folder)?)
}

/// Refuses to go on with a model that the recipe no longer means, as where a preset has changed since.
pub fn check_model(out: &Path, config: &Value) -> Result<(), TrainError> {
    let path = out.join("config.json");
    let failed = |source| TrainError::File {
        path: path.clone(),
        source,
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // It will be written again.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let before: AnyConfig = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    let differences = differences(&json!(before), config, "");
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::OtherRecipe { path, differences })
}

/// The configuration of the model that a run started from, in its folder.
pub const START: &str = "start.json";

/// What the run in `out` started from, once it has done an epoch.
pub fn begun(out: &Path) -> Result<Option<AnyConfig>, TrainError> {
    let path = out.join(START);
    if complete(&out.join(CHECKPOINTS)).is_empty() || !path.is_file() {
        return Ok(None);
    }
    let failed = |source| TrainError::File {
        path: path.clone(),
        source,
    };
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let config = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    Ok(Some(config))
}

/// Whether a run killed before it wrote its recipe left this behind.
fn is_leftover(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(atomic::TEMPORARY) || name.starts_with(".tmp"))
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
pub fn write_json(path: &Path, json: &Value) -> Result<(), TrainError> {
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
