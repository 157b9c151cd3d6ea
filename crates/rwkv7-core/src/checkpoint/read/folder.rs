//! A folder with `model.safetensors`, or with shards of a model and their index.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{LARGEST_JSON, RawCheckpoint, safetensors};
use crate::{checkpoint::CheckpointError, files};

pub fn open(folder: &Path) -> Result<RawCheckpoint, CheckpointError> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return safetensors::open(&single);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(CheckpointError::UnknownFormat {
            path: folder.to_path_buf(),
            found: format!(
                "a folder with neither model.safetensors nor model.safetensors.index.json{}",
                others(folder)
            ),
        });
    }
    let mut whole = RawCheckpoint {
        tensors: Vec::new(),
        format: "safetensors",
        scheme: None,
        metadata: None,
        unread: None,
        length: 0,
    };
    for file in shards(folder, &index)? {
        let shard = safetensors::open(&file)?;
        whole.tensors.extend(shard.tensors);
        whole.metadata = whole.metadata.or(shard.metadata);
        whole.length += shard.length;
    }
    Ok(whole)
}

/// The files that an index names. They lie in the folder of the index, so that a folder from elsewhere leads nowhere else.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |reason: String| CheckpointError::ConfigFile {
        path: index.to_path_buf(),
        reason,
    };
    let text = files::read_text(index, LARGEST_JSON).map_err(|source| CheckpointError::Read {
        path: index.to_path_buf(),
        source,
    })?;
    let map: Index = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let names: BTreeSet<&String> = map.weight_map.values().collect();
    if names.is_empty() {
        return Err(wrong("`weight_map` names no file".into()));
    }
    names
        .into_iter()
        .map(|name| match is_plain(name) {
            true => Ok(folder.join(name)),
            false => Err(wrong(format!(
                "`weight_map` names the file `{}`, expected the name of a .safetensors file in the same folder, such as \
                 model-00001-of-00002.safetensors",
                name.chars().take(100).collect::<String>()
            ))),
        })
        .collect()
}

/// Whether this is the name of a safetensors file, and no path.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
        && Path::new(name).file_name() == Some(OsStr::new(name))
}

/// Names the models that a folder holds besides.
fn others(folder: &Path) -> String {
    let is_model = |path: &Path| {
        let extension = path.extension().and_then(OsStr::to_str);
        matches!(extension, Some("pth" | "pt" | "bpk" | "safetensors"))
    };
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| is_model(path))
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    found.sort();
    found.truncate(3);
    if found.is_empty() {
        return String::new();
    }
    format!("; it holds {}, which can be named", found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_followed() {
        for name in ["model-00001-of-00002.safetensors", "ä b.safetensors"] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "/etc/shadow",
            "/a.safetensors",
            "../a.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:a.safetensors",
            "a.safetensors/",
            "a.safetensors/.",
            "a.pth",
            "model.bpk",
            "a\0.safetensors",
        ] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
