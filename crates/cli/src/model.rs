//! Models and tokenizers as the command line names them.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rwkv7_core::tokenizer::{self, Tokenizer, TokenizerError};
use zoo::Source;

use crate::Outcome;

/// What is wrong with what a user put together.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No tokenizer given, and the model does not say which one it was trained with.
    #[error(
        "{model}: the model does not say which tokenizer it was trained with; name it with --tokenizer byte|PATH"
    )]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The tokenizer that the model was trained with is not where it was.
    #[error(
        "{recipe} names a tokenizer that cannot be loaded; give another with --tokenizer byte|PATH"
    )]
    RecordedTokenizer {
        /// The recipe.
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

/// The tokenizer in the recipe of the training run that made the model, and where that recipe is: beside the model or, for a
/// checkpoint of the run, two folders above.
fn recorded_tokenizer(source: &Source) -> Option<(String, String)> {
    let (place, recipe) = match source {
        Source::Zoo(entry) => (entry.name.to_string(), entry.recipe()?.to_string()),
        Source::Path(path) => {
            let checkpoint = path.extension().is_some_and(|e| e == "bpk");
            let folders = path.ancestors().skip(usize::from(!path.is_dir()));
            let mut folders = folders.take(if checkpoint { 3 } else { 1 });
            folders.find_map(|folder| {
                let path = folder.join("recipe.json");
                let recipe = std::fs::read_to_string(&path).ok()?;
                Some((path.display().to_string(), recipe))
            })?
        }
    };
    let recipe: serde_json::Value = serde_json::from_str(&recipe).ok()?;
    Some((recipe.get("tokenizer")?.as_str()?.to_string(), place))
}

/// The tokenizer asked for, or the one that the training run used, with its name; its ids fit a model of `vocab_size`.
pub fn tokenizer(
    source: &Source,
    asked: Option<&str>,
    vocab_size: usize,
) -> Outcome<(String, Box<dyn Tokenizer>)> {
    let (spec, tokenizer) = match asked {
        Some(spec) => (spec.to_string(), tokenizer::load(spec)?),
        None => {
            let recorded = recorded_tokenizer(source);
            let (spec, recipe) = recorded.ok_or_else(|| ModelError::NoTokenizer {
                model: source.to_string(),
            })?;
            let loaded = tokenizer::load(&spec);
            let tokenizer =
                loaded.map_err(|source| ModelError::RecordedTokenizer { recipe, source })?;
            (spec, tokenizer)
        }
    };
    if tokenizer.vocab_size() > vocab_size {
        return Err(ModelError::TokenizerTooLarge {
            tokenizer: spec,
            largest: tokenizer.vocab_size() - 1,
            model: source.to_string(),
            vocab_size,
        }
        .into());
    }
    Ok((spec, tokenizer))
}

/// Ids as one row of a batch, `[1, time]`, all within the vocabulary.
pub fn row(ids: &[u32], vocab_size: usize, device: &Device) -> Result<Tensor<2, Int>, ModelError> {
    if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
        return Err(ModelError::TokenId {
            id: ids[position],
            position,
            vocab_size,
        });
    }
    let values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let data = TensorData::new(values, [1, ids.len()]);
    Ok(Tensor::from_data(data, device))
}
