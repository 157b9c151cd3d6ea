//! The models that have a name: two trained ones, the sizes of the Meta-State paper and the published sizes of RWKV-7.

use std::sync::LazyLock;

use metastate_models::{SIZES, TRAINED, Trained};
use rwkv7_core::{
    checkpoint::{Checkpoint, CheckpointError},
    config::ConfigError,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::AnyConfig;

/// A model that has a name.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    config: AnyConfig,
    trained: Option<&'static Trained>,
}

impl Entry {
    /// The model's configuration.
    pub fn config(&self) -> &AnyConfig {
        &self.config
    }

    /// Whether the model has weights.
    pub fn is_trained(&self) -> bool {
        self.trained.is_some()
    }

    /// The recipe that trains such a model again, as JSON; only of trained models.
    pub fn recipe(&self) -> Option<&'static str> {
        self.trained.map(|trained| trained.recipe)
    }

    /// The weights; only of trained models.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn weights(&self) -> Option<Result<Checkpoint, CheckpointError>> {
        let Trained { name, weights, .. } = self.trained?;
        Some(Checkpoint::from_safetensors(name, weights))
    }
}

/// Every model that has a name; the trained ones are first.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| match all() {
        Ok(entries) => entries,
        Err(error) => unreachable!("the package metastate-models is read by a test: {error}"),
    });
    &ENTRIES
}

/// The model with this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.name == name)
}

/// The configuration of the model with this name.
///
/// # Errors
///
/// [`ConfigError::UnknownPreset`] lists the names there are.
pub fn config(name: &str) -> Result<AnyConfig, ConfigError> {
    match find(name) {
        Some(entry) => Ok(entry.config.clone()),
        None => Err(ConfigError::UnknownPreset {
            name: name.into(),
            known: names().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    entries().iter().map(|entry| entry.name.as_str())
}

/// The names of the trained models.
pub fn trained() -> impl Iterator<Item = &'static str> {
    TRAINED.iter().map(|trained| trained.name)
}

/// A row of the table of sizes.
#[derive(Deserialize)]
struct Size {
    name: String,
    #[serde(flatten)]
    dimensions: Map<String, Value>,
}

impl Size {
    /// A model of this size; `ffn` is its channel mixer as configurations write it.
    fn entry(&self, name: String, architecture: &str, ffn: Value) -> serde_json::Result<Entry> {
        let mut fields = self.dimensions.clone();
        fields.insert("architecture".into(), architecture.into());
        fields.insert("ffn".into(), ffn);
        Ok(Entry {
            name,
            config: serde_json::from_value(Value::Object(fields))?,
            trained: None,
        })
    }

    /// An RWKV-7 of this size.
    fn rwkv7(&self, name: String) -> serde_json::Result<Entry> {
        let width = self.dimensions.get("n_embd").and_then(Value::as_u64);
        self.entry(
            name,
            "rwkv7",
            json!({ "ffn_size": width.map(|width| 4 * width) }),
        )
    }
}

fn all() -> serde_json::Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Sizes {
        paper: Vec<Size>,
        published: Vec<Size>,
    }
    let sizes: Sizes = serde_json::from_str(SIZES)?;
    let mut entries = Vec::new();
    for trained in TRAINED {
        entries.push(Entry {
            name: trained.name.into(),
            config: serde_json::from_str(trained.config)?,
            trained: Some(trained),
        });
    }
    for size in sizes.paper {
        entries.push(size.rwkv7(format!("{}-rwkv7", size.name))?);
        for layer in ["paper", "practical"] {
            let name = format!("{}-meta-state-{layer}", size.name);
            entries.push(size.entry(name, "meta-state", layer.into())?);
        }
    }
    for size in sizes.published {
        entries.push(size.rwkv7(size.name.clone())?);
    }
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Names, parameters and values of the state of every model. A name keeps its meaning.
    const FROZEN: [(&str, usize, usize); 26] = [
        ("reverse-rwkv7", 162_368, 4_352),
        ("reverse-meta-state", 104_896, 8_320),
        ("150m-rwkv7", 167_638_272, 608_256),
        ("150m-meta-state-paper", 111_595_776, 1_188_864),
        ("150m-meta-state-practical", 118_083_840, 1_188_864),
        ("450m-rwkv7", 342_713_344, 1_216_512),
        ("450m-meta-state-paper", 192_879_616, 2_377_728),
        ("450m-meta-state-practical", 210_574_336, 2_377_728),
        ("900m-rwkv7", 628_586_240, 2_027_520),
        ("900m-meta-state-paper", 315_948_800, 3_962_880),
        ("900m-meta-state-practical", 353_304_320, 3_962_880),
        ("1.5b-rwkv7", 1_105_285_632, 3_244_032),
        ("1.5b-meta-state-paper", 504_402_432, 6_340_608),
        ("1.5b-meta-state-practical", 576_754_176, 6_340_608),
        ("1.5b-12-heads-rwkv7", 1_105_285_632, 6_389_760),
        ("1.5b-12-heads-meta-state-paper", 507_548_160, 12_632_064),
        (
            "1.5b-12-heads-meta-state-practical",
            576_754_176,
            12_632_064,
        ),
        ("pile-168m", 167_638_272, 608_256),
        ("pile-421m", 421_080_064, 1_622_016),
        ("pile-1.47b", 1_465_014_272, 3_244_032),
        ("world-0.1b", 191_034_624, 608_256),
        ("world-0.4b", 450_767_872, 1_622_016),
        ("world-1.5b", 1_527_404_544, 3_244_032),
        ("world-2.9b", 2_947_735_040, 5_406_720),
        ("g1-7.2b", 7_199_141_888, 8_650_752),
        ("g1-13.3b", 13_269_245_952, 16_490_496),
    ];

    /// The counts that the official code prints for its models.
    const OFFICIAL: [(&str, usize); 9] = [
        ("pile-168m", 167_688_192),
        ("pile-421m", 421_212_160),
        ("pile-1.47b", 1_465_278_464),
        ("world-0.1b", 191_084_544),
        ("world-0.4b", 450_834_432),
        ("world-1.5b", 1_527_668_736),
        ("world-2.9b", 2_948_065_280),
        ("g1-7.2b", 7_199_932_416),
        ("g1-13.3b", 13_270_298_624),
    ];

    #[test]
    fn names_keep_their_models() {
        let found = entries().iter().map(|entry| {
            let config = entry.config();
            config.validate().unwrap();
            (
                entry.name.as_str(),
                config.num_params(),
                config.num_state_values(),
            )
        });
        assert_eq!(found.collect::<Vec<_>>(), FROZEN);
        for (name, parameters) in OFFICIAL {
            match config(name).unwrap() {
                AnyConfig::Rwkv7(config) => assert_eq!(config.num_params_official(), parameters),
                AnyConfig::MetaState(_) => panic!("{name} is an RWKV-7"),
            }
        }
    }

    /// 1234567 as 1,234,567.
    fn grouped(count: usize) -> String {
        let digits = count.to_string();
        let groups = digits.as_bytes().rchunks(3).rev();
        let groups: Vec<&str> = groups.map(|g| std::str::from_utf8(g).unwrap()).collect();
        groups.join(",")
    }

    #[test]
    fn the_table_for_people_has_the_exact_counts() {
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let read = |file: &str| std::fs::read_to_string(models.join(file)).unwrap();
        for entry in entries() {
            let (name, base, dims) = (&entry.name, entry.config.base(), entry.config.dims());
            let all = entry.config.num_params();
            let [parameters, inner, state] = [
                all,
                all - 2 * base.vocab_size * base.n_embd,
                entry.config.num_state_values(),
            ]
            .map(grouped);
            let row = if entry.is_trained() {
                let card = read(&format!("{name}/README.md"));
                assert!(
                    card.contains(&parameters) && card.contains(&state),
                    "{name}"
                );
                format!("| {name} | {parameters} | {state} |")
            } else {
                let (layers, width, heads) = (dims.n_layer, dims.n_embd, dims.n_head());
                format!(
                    "| {name} | {layers} | {width} | {heads} | {parameters} | {inner} | {state} |"
                )
            };
            assert!(read("README.md").contains(&row), "{row}");
        }
    }

    #[test]
    fn weights_fit_their_configuration() {
        for name in trained() {
            let entry = find(name).unwrap();
            let found = AnyConfig::of(&entry.weights().unwrap().unwrap()).unwrap();
            assert_eq!(&found, entry.config(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_a_list() {
        let error = config("150m").unwrap_err().to_string();
        assert!(error.contains("150m-meta-state-paper"), "{error}");
    }
}
