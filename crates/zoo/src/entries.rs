//! The models of this project by name: the folder `models`, compiled in, and the published sizes of RWKV-7.

use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{Checkpoint, CheckpointError},
    config::ConfigError,
};

use crate::model::ModelConfig;

/// A model of the zoo.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name, and that of its folder in `models`.
    pub name: &'static str,
    /// The content of `config.json`.
    config: &'static str,
    /// For a trained model: the content of `recipe.json` and of `model.safetensors`.
    pub(crate) trained: Option<(&'static str, &'static [u8])>,
}

macro_rules! entry {
    ($name:literal) => {
        Entry {
            name: $name,
            config: include_str!(concat!("../../../models/", $name, "/config.json")),
            trained: None,
        }
    };
    ($name:literal, trained) => {
        Entry {
            trained: Some((
                include_str!(concat!("../../../models/", $name, "/recipe.json")),
                include_bytes!(concat!("../../../models/", $name, "/model.safetensors")),
            )),
            ..entry!($name)
        }
    };
}

const ENTRIES: &[Entry] = &[
    entry!("reverse-rwkv7", trained),
    entry!("reverse-meta-state", trained),
    entry!("150m-rwkv7"),
    entry!("150m-meta-state-paper"),
    entry!("150m-meta-state-practical"),
    entry!("450m-rwkv7"),
    entry!("450m-meta-state-paper"),
    entry!("450m-meta-state-practical"),
    entry!("900m-rwkv7"),
    entry!("900m-meta-state-paper"),
    entry!("900m-meta-state-practical"),
    entry!("1.5b-rwkv7"),
    entry!("1.5b-meta-state-paper"),
    entry!("1.5b-meta-state-practical"),
    entry!("1.5b-12-heads-rwkv7"),
    entry!("1.5b-12-heads-meta-state-paper"),
    entry!("1.5b-12-heads-meta-state-practical"),
];

impl Entry {
    /// The model's configuration.
    pub fn config(&self) -> ModelConfig {
        match serde_json::from_str(self.config) {
            Ok(config) => config,
            Err(error) => unreachable!("models/{}/config.json: {error}", self.name),
        }
    }

    /// The recipe that a trained model was trained by, as JSON.
    pub fn recipe(&self) -> Option<&'static str> {
        self.trained.map(|(recipe, _)| recipe)
    }

    /// The weights of a trained model.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn weights(&self) -> Option<Result<Checkpoint, CheckpointError>> {
        let (_, weights) = self.trained?;
        Some(Checkpoint::from_safetensors(self.name, weights))
    }
}

/// The models of the folder `models`.
pub fn entries() -> &'static [Entry] {
    ENTRIES
}

/// The model of the folder `models` with this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

/// The configuration of a model by its name, of the folder `models` or a published RWKV-7.
///
/// # Errors
///
/// [`ConfigError::UnknownPreset`] lists the names there are.
pub fn config(name: &str) -> Result<ModelConfig, ConfigError> {
    if let Some(entry) = find(name) {
        return Ok(entry.config());
    }
    Rwkv7Config::preset(name)
        .map(ModelConfig::Rwkv7)
        .map_err(|_| ConfigError::UnknownPreset {
            name: name.into(),
            known: names().collect::<Vec<_>>().join(", "),
        })
}

/// All names that [`config`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES
        .iter()
        .map(|entry| entry.name)
        .chain(Rwkv7Config::presets())
}

/// Names of the trained models.
pub fn trained() -> impl Iterator<Item = &'static str> {
    let trained = ENTRIES.iter().filter(|entry| entry.trained.is_some());
    trained.map(|entry| entry.name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
    }

    /// 1234567 as 1,234,567.
    fn grouped(count: usize) -> String {
        let digits = count.to_string();
        let groups: Vec<&str> = digits
            .as_bytes()
            .rchunks(3)
            .rev()
            .map(|group| std::str::from_utf8(group).unwrap())
            .collect();
        groups.join(",")
    }

    #[test]
    fn every_folder_is_in_the_list_and_every_card_has_the_exact_counts() {
        let mut folders: Vec<String> = folder()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.sort();
        let mut listed: Vec<&str> = entries().iter().map(|entry| entry.name).collect();
        listed.sort_unstable();
        assert_eq!(folders, listed);
        for entry in entries() {
            let config = entry.config();
            config.validate().unwrap();
            let card =
                std::fs::read_to_string(folder().join(entry.name).join("README.md")).unwrap();
            for count in [config.num_params(), config.num_state_values()] {
                let count = grouped(count);
                assert!(
                    card.contains(&count),
                    "{}: {count} is not in its card",
                    entry.name
                );
            }
        }
    }

    #[test]
    fn weights_fit_their_configuration() {
        for entry in entries() {
            if let Some(weights) = entry.weights() {
                let found = ModelConfig::of(&weights.unwrap()).unwrap();
                assert_eq!(found, entry.config(), "{}", entry.name);
            }
        }
    }

    #[test]
    fn names_are_found_and_others_refused_with_a_list() {
        assert_eq!(config("world-0.1b").unwrap().num_params(), 191_034_624);
        let error = config("150m").unwrap_err().to_string();
        assert!(error.contains("150m-meta-state-paper"), "{error}");
    }
}
