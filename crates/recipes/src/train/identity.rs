//! `run.json`: what tells a run from every other one.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    TrainError,
    data::Fingerprints,
    run_dir::{file_error, write_json},
};
use crate::recipe::Recipe;

/// The settings, the data and the tokenizer of a run, each as a checksum. Names and places of files do not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The settings when the run was started.
    recipe: String,
    /// Data and tokenizer.
    content: Fingerprints,
}

impl Identity {
    /// That of a run of this recipe with data and tokenizer of these fingerprints.
    pub fn new(recipe: &Recipe, content: &Fingerprints) -> Self {
        let mut settings = recipe.to_json();
        if let Value::Object(settings) = &mut settings {
            // What may change while the run goes on.
            for key in [
                "steps",
                "keep_checkpoints",
                "data",
                "validation_data",
                "tokenizer",
                "start",
            ] {
                settings.remove(key);
            }
        }
        Self {
            recipe: checksum(&settings.to_string()),
            content: content.clone(),
        }
    }

    /// The identity in a file, if the file is there.
    pub fn read(path: &Path) -> Result<Option<Self>, TrainError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(path, error)),
        };
        let identity = serde_json::from_str(&text);
        identity.map_err(|error| file_error(path, error.into()))
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        write_json(path, &json!(self))
    }

    /// Refuses to go on with other data or another tokenizer than the run had.
    pub fn check(&self, path: &Path, now: &Fingerprints) -> Result<(), TrainError> {
        let before = &self.content;
        for (what, before, now) in [
            ("tokenizer", &before.tokenizer, &now.tokenizer),
            ("data", &before.data, &now.data),
        ] {
            if before != now {
                return Err(TrainError::OtherData {
                    path: path.to_path_buf(),
                    what,
                    before: before.clone(),
                    now: now.clone(),
                });
            }
        }
        Ok(())
    }

    /// One checksum of everything.
    pub fn fingerprint(&self) -> String {
        let Fingerprints { data, tokenizer } = &self.content;
        checksum(&format!("{} {data} {tokenizer}", self.recipe))
    }
}

fn checksum(text: &str) -> String {
    format!("{:032x}", twox_hash::XxHash3_128::oneshot(text.as_bytes()))
}
