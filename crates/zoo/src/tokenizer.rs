//! From text to the tensor that a model reads: the tokenizer that a model was trained with, and token ids in a batch.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rwkv7_core::tokenizer::{self, Tokenizer, TokenizerError};

use crate::{
    Source,
    run_folder::{TOKENIZERS, beside},
};

/// A text that a model cannot read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// No tokenizer is given, and the model does not say which one it was trained with.
    #[error(
        "{model}: the model does not say which tokenizer it was trained with; name it with --tokenizer byte|PATH"
    )]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The given tokenizer cannot be loaded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer that the model was trained with cannot be loaded.
    #[error(
        "{recipe} names a tokenizer that cannot be loaded; give another with --tokenizer byte|PATH"
    )]
    RecordedTokenizer {
        /// The recipe that names the tokenizer.
        recipe: String,
        /// The cause.
        source: TokenizerError,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error(
        "the tokenizer `{tokenizer}` has ids up to {largest}, the model {model} knows ids below {vocab_size}; use the \
         tokenizer that the model was trained with"
    )]
    TokenizerTooLarge {
        /// The tokenizer.
        tokenizer: String,
        /// Its largest id.
        largest: usize,
        /// The model.
        model: String,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The tokenizer that the model was trained with is not in the folder of its run. No other path is opened for a file that says so.
    #[error(
        "{recipe} names the tokenizer {name}, of which the run's folder has no copy; if that is the one, give it with --tokenizer {name}"
    )]
    TokenizerElsewhere {
        /// The recipe that names the tokenizer.
        recipe: String,
        /// The path that the recipe names.
        name: String,
    },
    /// A token id outside the model's vocabulary.
    #[error(
        "token id {id} at position {position} is outside the model's vocabulary of {vocab_size} (ids from 0)"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Its position, from 0.
        position: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
}

impl Source {
    /// The tokenizer `asked`, or else the one that the model was trained with, and its name. All of its ids are below
    /// `vocab_size`, the vocabulary of the model.
    ///
    /// A name is `byte` or the path of a vocabulary; see [`tokenizer::load`].
    ///
    /// # Errors
    ///
    /// [`TextError`] if there is no tokenizer, if it cannot be loaded or if it has too many ids.
    pub fn tokenizer(
        &self,
        asked: Option<&str>,
        vocab_size: usize,
    ) -> Result<(String, Box<dyn Tokenizer>), TextError> {
        let (name, tokenizer) = match asked {
            Some(name) => {
                let tokenizer = tokenizer::load(name)?;
                self.compare(name, tokenizer.as_ref());
                (name.to_string(), tokenizer)
            }
            None => self.recorded_tokenizer()?,
        };
        if tokenizer.vocab_size() > vocab_size {
            return Err(TextError::TokenizerTooLarge {
                tokenizer: name,
                largest: tokenizer.vocab_size() - 1,
                model: self.to_string(),
                vocab_size,
            });
        }
        Ok((name, tokenizer))
    }

    /// Warns where the model was trained with another tokenizer, so far as that one can still be loaded.
    fn compare(&self, name: &str, tokenizer: &dyn Tokenizer) {
        if let Ok((recorded, own)) = self.recorded_tokenizer()
            && own.fingerprint() != tokenizer.fingerprint()
        {
            log::warn!(
                "{self}: the tokenizer `{name}` is not `{recorded}`, with which the model was trained; its ids mean other text"
            );
        }
    }

    /// The tokenizer that the recipe of the model's training run names, from the copy in the run's folder.
    fn recorded_tokenizer(&self) -> Result<(String, Box<dyn Tokenizer>), TextError> {
        let recorded = || {
            let (recipe, text) = self.recipe()?;
            let content: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some((content.get("tokenizer")?.as_str()?.to_string(), recipe))
        };
        let (name, recipe) = recorded().ok_or_else(|| TextError::NoTokenizer {
            model: self.to_string(),
        })?;
        let copy = match self {
            Self::Path(path) if name != "byte" => {
                let mut copies = TOKENIZERS.iter().filter_map(|copy| beside(path, copy));
                match copies.next() {
                    Some(copy) => copy.display().to_string(),
                    None => return Err(TextError::TokenizerElsewhere { recipe, name }),
                }
            }
            _ => name,
        };
        match tokenizer::load(&copy) {
            Ok(tokenizer) => Ok((copy, tokenizer)),
            Err(source) => Err(TextError::RecordedTokenizer { recipe, source }),
        }
    }
}

/// Token ids as a batch of one row, `[1, time]`.
///
/// # Errors
///
/// [`TextError::TokenId`] names the first id that is not below `vocab_size`.
pub fn row(ids: &[u32], vocab_size: usize, device: &Device) -> Result<Tensor<2, Int>, TextError> {
    if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
        return Err(TextError::TokenId {
            id: ids[position],
            position,
            vocab_size,
        });
    }
    let values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let data = TensorData::new(values, [1, ids.len()]);
    Ok(Tensor::from_data(data, device))
}
