//! Measuring a model on text.

use std::{ops::Range, sync::Arc, time::Instant};

use burn::{
    data::{
        dataloader::{DataLoader, batcher::Batcher},
        dataset::DatasetError,
    },
    tensor::{Device, Int, Tensor, TensorData},
};
use rwkv7_core::{Rwkv7, layers::ChannelMixer, loss, tokenizer::Tokenizer};
use serde::Serialize;

use crate::data::{
    DataError,
    batch::{LmBatcher, Sequence},
    loader::Loader,
    reverse::Reverse,
    tokens::TokenFile,
    windows::ValidationWindows,
};

/// A model that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model computes infinities or no numbers.
    #[error(
        "the model's {what} is {found}: its weights are damaged or too large, or its state has run away; try an earlier checkpoint"
    )]
    NotFinite {
        /// The value.
        what: &'static str,
        /// What it is.
        found: f64,
    },
}

impl From<DatasetError> for EvaluateError {
    fn from(error: DatasetError) -> Self {
        Self::Data(error.into())
    }
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TextReport {
    /// Mean cross-entropy in nats a token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Bits a byte of the text itself, as it is in UTF-8. The ends of documents are predicted too, and have no bytes.
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// Evaluates windows of `context` tokens of the part `range` of a text, each from an empty state, `rows` at a time: how models of a
/// fixed context are compared. The last window is shorter where the text ends within it, so that every token but the first is
/// predicted. `tokenizer` made the tokens.
///
/// # Errors
///
/// [`DataError::TooShort`] if the part does not hold a window, [`DataError::Read`] if the token file was cut off;
/// [`EvaluateError::NotFinite`].
///
/// # Panics
///
/// If `context` or `rows` is 0.
pub fn windows<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    tokens: &TokenFile,
    range: Range<usize>,
    (context, rows): (usize, usize),
    tokenizer: &dyn Tokenizer,
) -> Result<TextReport, EvaluateError> {
    let windows = ValidationWindows::new(tokens.clone(), range.clone(), context)?;
    let started = Instant::now();
    let rest = windows.range().end - 1..range.end;
    let (mut sum, mut count) = (0.0, 0);
    for batch in Loader::validation(Arc::new(windows), rows, device).iter() {
        let batch = batch?;
        count += batch.counted;
        let (logits, _) = model.forward(batch.inputs, None);
        sum += total_loss(logits, batch.targets);
    }
    if rest.len() > 1 {
        let ids = signed(tokens.ids(rest)?);
        let (logits, _) = model.forward(row(&ids[..ids.len() - 1], device), None);
        sum += total_loss(logits, row(&ids[1..], device));
        count += ids.len() - 1;
    }
    let bytes = tokens.text_bytes(range.start + 1..range.end, tokenizer)?;
    report(sum, count, bytes, started)
}

/// Evaluates a text from its first token to its last, `chunk` tokens at a time and the state carried on, as a recurrent model is
/// used. An end-of-text token stands before the first one. `tokenizer` made the tokens.
///
/// # Errors
///
/// [`DataError::TooShort`] if there is nothing to predict, [`DataError::Read`] if the token file was cut off;
/// [`EvaluateError::NotFinite`].
///
/// # Panics
///
/// If `chunk` is 0.
pub fn stream<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    tokens: &TokenFile,
    chunk: usize,
    tokenizer: &dyn Tokenizer,
) -> Result<TextReport, EvaluateError> {
    if tokens.is_empty() {
        let (part, tokens, context) = ("evaluation", 0, 1);
        return Err(DataError::TooShort {
            part,
            tokens,
            context,
        }
        .into());
    }
    let started = Instant::now();
    let mut state = model.zero_state(1, device);
    let mut previous = tokenizer.end_of_text() as i32;
    let mut sum = 0.0;
    for start in (0..tokens.len()).step_by(chunk) {
        let end = (start + chunk).min(tokens.len());
        let targets = signed(tokens.ids(start..end)?);
        let mut inputs = vec![previous];
        inputs.extend_from_slice(&targets[..targets.len() - 1]);
        previous = targets[targets.len() - 1];
        let (logits, next) = model.forward(row(&inputs, device), Some(state));
        state = next;
        sum += total_loss(logits, row(&targets, device));
    }
    let bytes = tokens.text_bytes(0..tokens.len(), tokenizer)?;
    report(sum, tokens.len(), bytes, started)
}

/// Ids as devices take them.
fn signed(ids: Vec<u32>) -> Vec<i32> {
    ids.into_iter().map(|id| id as i32).collect()
}

/// Ids as a batch of one row, `[1, time]`.
fn row(ids: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), device)
}

fn total_loss(logits: Tensor<3>, targets: Tensor<2, Int>) -> f64 {
    f64::from(
        loss::token_losses(logits, targets)
            .sum()
            .into_scalar::<f32>(),
    )
}

/// The report on `count` tokens that stand for so many bytes of text, with a total loss of `sum`.
fn report(
    sum: f64,
    count: usize,
    bytes: u64,
    started: Instant,
) -> Result<TextReport, EvaluateError> {
    let seconds = started.elapsed().as_secs_f64();
    let loss = sum / count as f64;
    let perplexity = loss.exp();
    for (what, found) in [("loss", loss), ("perplexity", perplexity)] {
        check_finite(what, found)?;
    }
    Ok(TextReport {
        loss,
        perplexity,
        bits_per_byte: sum / std::f64::consts::LN_2 / bytes.max(1) as f64,
        tokens: count,
        tokens_per_second: count as f64 / seconds,
    })
}

fn check_finite(what: &'static str, found: f64) -> Result<(), EvaluateError> {
    match found.is_finite() {
        true => Ok(()),
        false => Err(EvaluateError::NotFinite { what, found }),
    }
}

/// How well a model reverses numbers it has never seen.
#[derive(Clone, Debug, Serialize)]
pub struct ReverseReport {
    /// Share of digits that had the largest logit, the right digits before them given.
    pub digit_accuracy: f64,
    /// Share of answers with every digit and the end right.
    pub answer_accuracy: f64,
    /// Numbers asked.
    pub numbers: usize,
    /// A number and the model's answer.
    pub example: (String, String),
}

/// Asks for all numbers of the task, `rows` at a time.
///
/// # Errors
///
/// [`EvaluateError::NotFinite`].
pub fn reverse<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    task: &Reverse,
    rows: usize,
) -> Result<ReverseReport, EvaluateError> {
    let (mut digits, mut right_digits, mut right_answers) = (0, 0, 0);
    let mut example = (String::new(), String::new());
    let context = task.context();
    for first in (0..task.numbers).step_by(rows) {
        let numbers = first..(first + rows).min(task.numbers);
        let numbers: Vec<Vec<u8>> = numbers.map(|index| task.number(index)).collect();
        let items: Vec<Sequence> = numbers.iter().map(|number| task.sequence(number)).collect();
        let batch = LmBatcher.batch(items.clone(), device);
        let (logits, _) = model.forward(batch.inputs, None);
        let sum: f32 = logits.clone().sum().into_scalar();
        check_finite("sum of logits", f64::from(sum))?;
        let best: Vec<i32> = logits.argmax(2).into_data().iter::<i32>().collect();
        for ((number, item), best) in numbers.into_iter().zip(items).zip(best.chunks(context)) {
            let answer = Reverse::answer(&number);
            let hits = answer.clone().map(|i| best[i] == item.targets[i]);
            digits += number.len();
            right_digits += hits.clone().take(number.len()).filter(|&hit| hit).count();
            right_answers += usize::from(hits.into_iter().all(|hit| hit));
            if number.len() > example.0.len() {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                let answer = answer.take(number.len()).map(|i| best[i] as u8).collect();
                example = (text(number), text(answer));
            }
        }
    }
    Ok(ReverseReport {
        digit_accuracy: right_digits as f64 / digits as f64,
        answer_accuracy: right_answers as f64 / task.numbers as f64,
        numbers: task.numbers,
        example,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rwkv7_core::{Rwkv7Config, Rwkv7Lm, tokenizer::ByteTokenizer};

    use super::*;
    use crate::data::corpus::Corpus;

    fn model() -> Rwkv7Lm {
        let config = Rwkv7Config {
            head_size: 16,
            ..Rwkv7Config::new(256, 1, 32)
        };
        config.init(&Device::flex())
    }

    fn tokens(jsonl: &str) -> TokenFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, jsonl).unwrap();
        let corpus = Corpus {
            paths: &[path],
            text_field: "text",
            tokenizer: &ByteTokenizer,
        };
        corpus.tokenize(folder.path()).unwrap()
    }

    /// The ends of documents are predicted and have no bytes, also where documents are empty.
    #[test]
    fn bits_per_byte_count_the_bytes_of_the_text() {
        let text = tokens("{\"text\": \"\"}\n{\"text\": \"é ab\"}\n{\"text\": \"\"}\n");
        let (model, device) = (model(), Device::flex());
        let bits = |report: TextReport| report.loss * report.tokens as f64 / std::f64::consts::LN_2;
        let report = stream(&model, &device, &text, 3, &ByteTokenizer).unwrap();
        assert_eq!(report.tokens, 8);
        assert!((report.bits_per_byte - bits(report) / 5.0).abs() < 1e-9);
        let report = windows(&model, &device, &text, 0..8, (3, 2), &ByteTokenizer).unwrap();
        assert_eq!(report.tokens, 7);
        assert!((report.bits_per_byte - bits(report) / 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_model_without_numbers_is_an_error() {
        let (mut model, device) = (model(), Device::flex());
        model.emb.weight = model.emb.weight.map(|weight| weight * f32::NAN);
        let text = tokens("{\"text\": \"abcdefgh\"}\n");
        let error = stream(&model, &device, &text, 4, &ByteTokenizer).unwrap_err();
        assert!(error.to_string().contains("loss is NaN"), "{error}");
        let error = windows(&model, &device, &text, 0..9, (4, 1), &ByteTokenizer).unwrap_err();
        assert!(error.to_string().contains("loss is NaN"), "{error}");
        let task = Reverse {
            min_digits: 3,
            max_digits: 3,
            numbers: 2,
            seed: 0,
            held_out: true,
        };
        let error = super::reverse(&model, &device, &task, 2).unwrap_err();
        assert!(
            error.to_string().contains("sum of logits is NaN"),
            "{error}"
        );
    }
}
