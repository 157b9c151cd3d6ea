//! The description of its model that a checkpoint file carries beside the tensors.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{CheckpointError, read::LARGEST_JSON};
use crate::{Rwkv7Config, config::ChannelMixerConfig, files, messages::brief};

/// Architecture and configuration of a model, as a checkpoint file or the `config.json` beside it says them.
///
/// The shapes of the tensors show most of a configuration. The metadata add the rest: epsilons, and the choices of a channel
/// mixer.
///
/// ```
/// use rwkv7_core::checkpoint::ModelMetadata;
///
/// let json = r#"{"architecture": "rwkv7", "group_norm_eps": 0.00064}"#;
/// let metadata: ModelMetadata = serde_json::from_str(json)?;
/// assert_eq!(metadata.architecture, "rwkv7");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// Name of the architecture, as [`ChannelMixerConfig::ARCHITECTURE`] has it.
    pub architecture: String,
    /// Fields of [`Rwkv7Config`]; any may be missing.
    #[serde(flatten, deserialize_with = "with_current_names")]
    pub config: Map<String, Value>,
}

/// The fields of a configuration; older files call the channel mixer `second_half`.
fn with_current_names<'de, D: Deserializer<'de>>(
    fields: D,
) -> Result<Map<String, Value>, D::Error> {
    let mut fields = Map::deserialize(fields)?;
    if let Some(mixer) = fields.remove("second_half") {
        fields.insert("ffn".into(), mixer);
    }
    Ok(fields)
}

impl ModelMetadata {
    /// The metadata of a model of this configuration.
    pub fn new<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> Self {
        let config = match serde_json::json!(config) {
            Value::Object(fields) => fields,
            _ => unreachable!("a struct with named fields is an object"),
        };
        Self {
            architecture: S::ARCHITECTURE.into(),
            config,
        }
    }

    /// The metadata in the `config.json` of this folder, or of the folder that this file is in; none where there is no such
    /// file or where the file is another program's.
    pub fn beside(path: &Path) -> Option<Self> {
        let json = config_beside(path).ok()??;
        serde_json::from_value(json).ok()
    }

    /// Fields in which the two models differ so that a state of one is invalid for the other, one line a field.
    pub(super) fn differences(&self, model: &Self) -> Vec<String> {
        let difference = |field: &str, found: &str, expected: &str| {
            format!("`{field}` is {}, this model's is {expected}", brief(found))
        };
        if self.architecture != model.architecture {
            let (found, expected) = (&self.architecture, &model.architecture);
            return vec![difference("architecture", found, expected)];
        }
        ["n_layer", "n_embd", "head_size", "ffn"]
            .into_iter()
            .filter_map(|field| Some((field, self.config.get(field)?, model.config.get(field)?)))
            .filter(|(_, found, expected)| found != expected)
            .map(|(field, found, expected)| {
                difference(field, &found.to_string(), &expected.to_string())
            })
            .collect()
    }
}

/// The `config.json` in the folder of a model; `path` is the folder or a file in it.
pub(super) fn config_beside(path: &Path) -> Result<Option<Value>, CheckpointError> {
    let folder = if path.is_dir() {
        Some(path)
    } else {
        path.parent()
    };
    let Some(file) = folder
        .map(|folder| folder.join("config.json"))
        .filter(|file| file.is_file())
    else {
        return Ok(None);
    };
    let wrong = |reason: String| CheckpointError::ConfigFile {
        path: file.clone(),
        reason,
    };
    let text = files::read_text(&file, LARGEST_JSON).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::checkpoint::Checkpoint;

    #[test]
    fn the_name_of_a_checkpoint_in_memory_leads_to_no_file() {
        let header = br#"{"emb.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0_u8; 16]);
        let folder = tempfile::tempdir().unwrap();
        let json = r#"{"architecture": "other", "tie_word_embeddings": true}"#;
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &bytes).unwrap();

        let file = Checkpoint::open(&path).unwrap();
        assert_eq!((file.architecture(), file.len()), (Some("other"), 2));
        let name = path.to_str().unwrap();
        let memory = Checkpoint::from_safetensors(name, bytes.leak()).unwrap();
        assert_eq!((memory.architecture(), memory.len()), (None, 1));
    }
}
