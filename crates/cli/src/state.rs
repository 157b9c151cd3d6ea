//! State files of `generate`: what the model remembers of the tokens that it has read, and the token that it reads next.
//!
//! The last token of a text is known and not read: reading it gives the logits of the token after it. The file's metadata name
//! it; readers that do not know of it see a plain state.

use std::{collections::HashMap, fs, io, path::Path};

use rwkv7_core::{
    Rwkv7Config, atomic, checkpoint::CheckpointError, config::ChannelMixerConfig, state::StateError,
};
use safetensors::{SafeTensorError, SafeTensors};
use scaling::StateOf;

/// Key of the metadata entry.
const UNREAD: &str = "metastate.unread";

/// Writes a state and the token that is read next; the file is complete or not there.
pub fn save<S: ChannelMixerConfig>(
    state: &StateOf<S>,
    unread: Option<u32>,
    path: &Path,
    config: &Rwkv7Config<S>,
) -> Result<(), CheckpointError> {
    let Some(unread) = unread else {
        return state.save(path, config);
    };
    atomic::replace(path, |temporary| {
        state.save(temporary, config).map_err(|error| match error {
            // The temporary file means nothing to anybody.
            CheckpointError::Write { source, .. } => source,
            error => io::Error::other(error),
        })?;
        let bytes = fs::read(temporary)?;
        let mut metadata = metadata(&bytes).map_err(io::Error::other)?;
        metadata.insert(UNREAD.into(), unread.to_string());
        let tensors = SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
        safetensors::serialize_to_file(tensors.tensors(), Some(metadata), temporary)
            .map_err(io::Error::other)
    })
    .map_err(|source| CheckpointError::Write {
        path: path.to_path_buf(),
        source,
    })
}

/// The state in a file, of the shapes and on the devices of `zero`, and the token that is read next; files of earlier versions
/// name none.
pub fn load<S: ChannelMixerConfig>(
    zero: &StateOf<S>,
    path: &Path,
    config: &Rwkv7Config<S>,
) -> Result<(StateOf<S>, Option<u32>), StateError> {
    let state = zero.load(path, config)?;
    let bytes = fs::read(path).map_err(|source| CheckpointError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let metadata = metadata(&bytes).unwrap_or_default();
    let unread = metadata.get(UNREAD).and_then(|token| token.parse().ok());
    Ok((state, unread))
}

fn metadata(file: &[u8]) -> Result<HashMap<String, String>, SafeTensorError> {
    let (_, header) = SafeTensors::read_metadata(file)?;
    Ok(header.metadata().clone().unwrap_or_default())
}
