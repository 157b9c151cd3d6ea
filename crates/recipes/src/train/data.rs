//! The data of a recipe: datasets for training and validation, and the final evaluation.

use std::{ops::Range, path::PathBuf, sync::Arc};

use burn::{data::dataset::Dataset, tensor::Device};
use rwkv7_core::{Rwkv7, layers::ChannelMixer, tokenizer::Tokenizer};

use crate::{
    data::{
        DataError,
        batch::Sequence,
        reverse::Reverse,
        tokens::{self, Corpus, TokenFile},
        windows::{TrainingWindows, ValidationWindows},
    },
    evaluate::{self, ReverseReport, TextReport},
    recipe::{Recipe, Task},
};

/// The datasets of a run.
pub struct RunData {
    /// The sequences of all steps, one after the other.
    pub training: Arc<dyn Dataset<Sequence>>,
    /// The sequences of every validation.
    pub validation: Arc<dyn Dataset<Sequence>>,
    evaluation: Evaluation,
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
        match recipe.task {
            Task::Reverse => Ok(Self::reverse(recipe)),
            Task::Text => Self::text(recipe, tokenizer),
        }
    }

    fn reverse(recipe: &Recipe) -> Self {
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
            evaluation: Evaluation::Reverse(validation),
        }
    }

    fn text(recipe: &Recipe, tokenizer: Box<dyn Tokenizer>) -> Result<Self, DataError> {
        let corpus = |paths: &[PathBuf]| {
            let corpus = Corpus {
                paths,
                text_field: &recipe.text_field,
                tokenizer: tokenizer.as_ref(),
                tokenizer_name: &recipe.tokenizer,
            };
            corpus.tokenize(&tokens::cache_folder())
        };
        let text = corpus(&recipe.data)?;
        let (tokens, training, range) = if recipe.validation_data.is_empty() {
            let kept = (text.len() as f64 * (1.0 - recipe.validation_fraction)) as usize;
            (text.clone(), 0..kept, kept..text.len())
        } else {
            let validation = corpus(&recipe.validation_data)?;
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
        Ok(Self {
            training: Arc::new(training),
            validation: Arc::new(validation),
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
    ) -> Result<(Option<TextReport>, Option<ReverseReport>), DataError> {
        let (context, rows) = (recipe.context, recipe.batch_size);
        match &self.evaluation {
            Evaluation::Reverse(task) => {
                let report = evaluate::reverse(model, device, task, rows);
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
