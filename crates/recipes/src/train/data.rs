//! The data of a recipe: datasets for training and validation, and the final evaluation.

use std::{ops::Range, path::PathBuf, sync::Arc};

use burn::{data::dataset::Dataset, tensor::Device};
use rwkv7_core::{Rwkv7, layers::ChannelMixer, tokenizer::Tokenizer};
use serde::{Deserialize, Serialize};

use crate::{
    data::{
        DataError,
        batch::Sequence,
        cache::Cache,
        corpus::Corpus,
        reverse::Reverse,
        tokens::TokenFile,
        windows::{TrainingWindows, ValidationWindows},
    },
    evaluate::{self, EvaluateError, ReverseReport, TextReport},
    recipe::{Recipe, Task},
};

/// The datasets of a run.
pub struct RunData {
    /// The sequences of all steps, one after the other.
    pub training: Arc<dyn Dataset<Sequence>>,
    /// The sequences of every validation.
    pub validation: Arc<dyn Dataset<Sequence>>,
    /// What tells the data and the tokenizer from others. A run that goes on must have the same ones.
    pub fingerprints: Fingerprints,
    evaluation: Evaluation,
}

/// The identity of a run's data and tokenizer, each as hexadecimal digits. Names and places of files do not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// The text, and the text of validation after a `+` where it is another; `reverse` for the task without data.
    pub data: String,
    /// The tokenizer.
    pub tokenizer: String,
}

enum Evaluation {
    Reverse(Reverse),
    Text {
        tokens: TokenFile,
        range: Range<usize>,
        tokenizer: Box<dyn Tokenizer>,
    },
}

impl RunData {
    /// Reads, and tokenizes if need be, the data of a recipe.
    pub fn new(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Result<Self, DataError> {
        let data = match recipe.task {
            Task::Reverse => Self::reverse(recipe, tokenizer),
            Task::Text => Self::text(recipe, tokenizer)?,
        };
        log::debug!("{:?}", data.fingerprints);
        Ok(data)
    }

    fn reverse(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Self {
        let training = Reverse {
            min_digits: 1,
            max_digits: recipe.max_digits,
            numbers: training_sequences(recipe),
            seed: recipe.seed,
            held_out: false,
        };
        let validation = Reverse {
            numbers: recipe.validation_batches * recipe.batch_size,
            held_out: true,
            ..training
        };
        Self {
            training: Arc::new(training),
            validation: Arc::new(validation),
            fingerprints: Fingerprints {
                data: "reverse".into(),
                tokenizer: tokenizer.fingerprint(),
            },
            evaluation: Evaluation::Reverse(validation),
        }
    }

    fn text(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Result<Self, DataError> {
        let cache = Cache::of_user();
        let corpus = |paths: &[PathBuf]| {
            let corpus = Corpus {
                paths,
                text_field: &recipe.text_field,
                tokenizer: tokenizer.as_ref(),
            };
            corpus.tokenize(cache.folder())
        };
        let text = corpus(&recipe.data)?;
        let mut data = text.fingerprint().to_string();
        let (tokens, training, range) = if recipe.validation_data.is_empty() {
            let kept = (text.len() as f64 * (1.0 - recipe.validation_fraction)) as usize;
            (text.clone(), 0..kept, kept..text.len())
        } else {
            let validation = corpus(&recipe.validation_data)?;
            data = format!("{data}+{}", validation.fingerprint());
            let range = 0..validation.len();
            (validation, 0..text.len(), range)
        };
        let validation = ValidationWindows::new(tokens.clone(), range.clone(), recipe.context)?
            .at_most(recipe.validation_batches, recipe.batch_size);
        let training = TrainingWindows::new(
            text,
            training,
            recipe.context,
            training_sequences(recipe),
            recipe.seed,
            recipe.sampling,
        )?;
        if tokens.text_bytes(range.clone(), tokenizer.as_ref())? == 0 {
            return Err(DataError::Blank { part: "validation" });
        }
        Ok(Self {
            training: Arc::new(training),
            validation: Arc::new(validation),
            fingerprints: Fingerprints {
                data,
                tokenizer: tokenizer.fingerprint(),
            },
            evaluation: Evaluation::Text {
                tokens,
                range,
                tokenizer,
            },
        })
    }

    /// Evaluates a trained model on all of the validation data.
    pub fn evaluate<M: ChannelMixer>(
        &self,
        recipe: &Recipe,
        model: &Rwkv7<M>,
        device: &Device,
    ) -> Result<(Option<TextReport>, Option<ReverseReport>), EvaluateError> {
        let (context, rows) = (recipe.context, recipe.batch_size);
        match &self.evaluation {
            Evaluation::Reverse(task) => {
                let report = evaluate::reverse(model, device, task, rows)?;
                Ok((None, Some(report)))
            }
            Evaluation::Text {
                tokens,
                range,
                tokenizer,
            } => {
                let (range, tokenizer) = (range.clone(), tokenizer.as_ref());
                let size = (context, rows);
                let report = evaluate::windows(model, device, tokens, range, size, tokenizer)?;
                Ok((Some(report), None))
            }
        }
    }
}

/// Sequences of all batches of all steps.
fn training_sequences(recipe: &Recipe) -> usize {
    recipe.batch_size * recipe.accumulation * recipe.steps
}
