//! Checks of outputs: a command never writes over the model that it reads, and the name of an output says its format.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rwkv7_core::{checkpoint::Format, files};
use serde_json::{Map, Value};
use zoo::{Source, run_folder};

/// An output that would destroy a model, mislead or fail.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The output is a file of the model that is read.
    #[error("the output {} is the model itself, {input}; name another file", output.display())]
    Model {
        /// The model.
        input: String,
        /// The output.
        output: PathBuf,
    },
    /// The output is a folder, and a file is written.
    #[error("{}: is a folder; name a file", .0.display())]
    Folder(PathBuf),
    /// The folder of the output does not exist.
    #[error("{}: there is no folder {}; make it first", output.display(), folder.display())]
    NoFolder {
        /// The output.
        output: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The folder of the output takes no new file.
    #[error("{}: no file can be written to the folder {}: {reason}; name a file in another folder", output.display(), folder.display())]
    NotWritable {
        /// The output.
        output: PathBuf,
        /// Its folder.
        folder: PathBuf,
        /// The message of the file system.
        reason: io::Error,
    },
    /// A model would be written among the files of another one.
    #[error("{}: the folder holds {holds}; name a new one", output.display())]
    Taken {
        /// The output.
        output: PathBuf,
        /// The content of the folder.
        holds: String,
    },
    /// The name says another format than the one that is written.
    #[error("{}: the output is {written}; {instead} ({note})", output.display())]
    Extension {
        /// The output.
        output: PathBuf,
        /// The format that is written.
        written: &'static str,
        /// The name to give instead.
        instead: &'static str,
        /// How to write the format that the name says.
        note: &'static str,
    },
}

/// Checks that a model of this format can be written to `output`.
pub fn check_model(source: &Source, output: &Path, format: Format) -> Result<(), OutputError> {
    let (own, written, instead) = match format {
        Format::Official => ("safetensors", "a safetensors file", "name it .safetensors"),
        Format::Burn => ("bpk", "a Burn record", "name it .bpk"),
        Format::Fla => ("", "a folder", "name a folder"),
    };
    match format {
        Format::Official | Format::Burn => check_file(source, output)?,
        Format::Fla => check_folder(source, output)?,
    }
    let extension = output.extension().unwrap_or_default().to_ascii_lowercase();
    let note = match extension.to_str() {
        Some("pth" | "pt") => "PyTorch files are never written",
        Some("bpk") => "`convert --format burn` writes Burn records",
        Some("safetensors") => "`convert --format blinkdl` writes safetensors files",
        _ => return Ok(()),
    };
    if extension == own {
        return Ok(());
    }
    Err(OutputError::Extension {
        output: output.to_path_buf(),
        written,
        instead,
        note,
    })
}

/// Checks that a file can be written to `output`, before the work is done whose result it is.
pub fn check_file(source: &Source, output: &Path) -> Result<(), OutputError> {
    if let Ok(real) = output.canonicalize()
        && files_of(source).contains(&real)
    {
        return Err(OutputError::Model {
            input: source.to_string(),
            output: output.to_path_buf(),
        });
    }
    if output.is_dir() {
        return Err(OutputError::Folder(output.to_path_buf()));
    }
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(OutputError::NoFolder {
            output: output.to_path_buf(),
            folder: folder.to_path_buf(),
        });
    }
    // Permissions do not tell whether the disk is read-only. The output itself is not touched, as it is replaced as a whole.
    let probe = folder.join(format!(".incomplete-{}", std::process::id()));
    let tried = fs::File::create_new(&probe).and_then(|_| fs::remove_file(&probe));
    tried.map_err(|reason| OutputError::NotWritable {
        output: output.to_path_buf(),
        folder: folder.to_path_buf(),
        reason,
    })
}

/// Checks that the files of a model can be written into the folder `output`.
fn check_folder(source: &Source, output: &Path) -> Result<(), OutputError> {
    let taken = |holds: String| {
        Err(OutputError::Taken {
            output: output.to_path_buf(),
            holds,
        })
    };
    if output.join(run_folder::RECIPE).exists() {
        return taken("a training run".into());
    }
    match output.canonicalize() {
        Ok(real) if files_of(source).iter().any(|f| f.parent() == Some(&real)) => {
            taken(format!("the model itself, {source}"))
        }
        _ => Ok(()),
    }
}

/// Bytes of the largest index of shards that is read.
const LARGEST_INDEX: u64 = 64 << 20;

/// The files that a model is read from; none for one that is compiled in.
fn files_of(source: &Source) -> Vec<PathBuf> {
    let Source::Path(path) = source else {
        return Vec::new();
    };
    if !path.is_dir() {
        return path.canonicalize().into_iter().collect();
    }
    let index = "model.safetensors.index.json";
    let shards: Value = files::read(&path.join(index), LARGEST_INDEX)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let shards = shards["weight_map"].as_object().into_iter();
    let shards = shards.flat_map(Map::values).filter_map(Value::as_str);
    ["model.safetensors", "config.json", index]
        .into_iter()
        .chain(shards)
        .filter_map(|name| path.join(name).canonicalize().ok())
        .collect()
}
