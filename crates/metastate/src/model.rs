//! Models and tokenizers as the command line names them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rwkv7_core::{
    Rwkv7Config, Rwkv7Lm,
    checkpoint::{self, CheckpointError},
    tokenizer::{self, Tokenizer},
};

/// What is wrong with what a user put together.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No tokenizer given, and the model does not say which one it was trained with.
    #[error("{}: the model does not say which tokenizer it was trained with; name it with --tokenizer byte|PATH", path.display())]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error(
        "the tokenizer `{tokenizer}` has ids up to {largest}, the model {} knows ids below {vocab_size}; use the tokenizer \
         that the model was trained with",
        model.display()
    )]
    TokenizerTooLarge {
        /// The tokenizer.
        tokenizer: String,
        /// Its largest id.
        largest: usize,
        /// The model.
        model: PathBuf,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// A token id outside the model's vocabulary.
    #[error(
        "token id {id} at position {position} is outside the model's vocabulary of {vocab_size} (ids from 0)"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Where it stands, from 0.
        position: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
}

/// A model in memory, with what was found beside it.
pub struct Model {
    pub path: PathBuf,
    pub config: Rwkv7Config,
    pub network: Rwkv7Lm,
}

impl Model {
    /// Loads a checkpoint file or the trained model of a training output folder.
    pub fn load(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let (config, network) = checkpoint::load(path, device)?;
        Ok(Self {
            path: path.to_path_buf(),
            config,
            network,
        })
    }

    /// The tokenizer asked for, or the one that the training run used, with its name; its ids fit the model.
    pub fn tokenizer(
        &self,
        asked: Option<&str>,
    ) -> Result<(String, Box<dyn Tokenizer>), Box<dyn std::error::Error + Send + Sync>> {
        let spec = match asked {
            Some(spec) => spec.to_string(),
            None => recorded_tokenizer(&self.path).ok_or_else(|| ModelError::NoTokenizer {
                path: self.path.clone(),
            })?,
        };
        let tokenizer = tokenizer::load(&spec)?;
        if tokenizer.vocab_size() > self.config.vocab_size {
            return Err(ModelError::TokenizerTooLarge {
                tokenizer: spec,
                largest: tokenizer.vocab_size() - 1,
                model: self.path.clone(),
                vocab_size: self.config.vocab_size,
            }
            .into());
        }
        Ok((spec, tokenizer))
    }

    /// Ids as one row of a batch, `[1, time]`, all within the vocabulary.
    pub fn row(&self, ids: &[u32], device: &Device) -> Result<Tensor<2, Int>, ModelError> {
        let vocab_size = self.config.vocab_size;
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenId {
                id: ids[position],
                position,
                vocab_size,
            });
        }
        let values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        Ok(Tensor::from_data(
            TensorData::new(values, [1, ids.len()]),
            device,
        ))
    }
}

/// The tokenizer in the recipe of the training run that made this model.
fn recorded_tokenizer(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    let recipe = std::fs::read_to_string(folder.join("recipe.json")).ok()?;
    let recipe: serde_json::Value = serde_json::from_str(&recipe).ok()?;
    Some(recipe.get("tokenizer")?.as_str()?.to_string())
}
