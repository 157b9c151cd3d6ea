//! Measuring a model on text.

use std::{ops::Range, sync::Arc, time::Instant};

use burn::{
    data::dataloader::{DataLoader, batcher::Batcher},
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

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TextReport {
    /// Mean cross-entropy in nats a token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Bits a byte of text.
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// Evaluates windows of `context` tokens, each from an empty state, `rows` at a time: how models of a fixed context are
/// compared. The last window is shorter where the text ends within it, so that every token but the first is predicted.
///
/// # Errors
///
/// [`DataError::TooShort`] if the part does not hold a window.
pub fn windows<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    tokens: &TokenFile,
    range: Range<usize>,
    (context, rows): (usize, usize),
    tokenizer: &dyn Tokenizer,
) -> Result<TextReport, DataError> {
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
        let ids: Vec<i32> = tokens.ids(rest).map(|id| id as i32).collect();
        let (logits, _) = model.forward(row(&ids[..ids.len() - 1], device), None);
        sum += total_loss(logits, row(&ids[1..], device));
        count += ids.len() - 1;
    }
    Ok(report(sum, count, tokens, range, tokenizer, started))
}

/// Evaluates a text from its first token to its last, the state carried on, as a recurrent model is used. An end-of-text
/// token stands before the first one.
///
/// # Errors
///
/// [`DataError::TooShort`] if there is nothing to predict.
pub fn stream<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    tokens: &TokenFile,
    chunk: usize,
    tokenizer: &dyn Tokenizer,
) -> Result<TextReport, DataError> {
    if tokens.is_empty() {
        return Err(DataError::TooShort {
            part: "evaluation",
            tokens: 0,
            context: 1,
        });
    }
    let started = Instant::now();
    let mut state = model.zero_state(1, device);
    let mut previous = tokenizer.end_of_text() as i32;
    let mut sum = 0.0;
    for start in (0..tokens.len()).step_by(chunk) {
        let end = (start + chunk).min(tokens.len());
        let targets: Vec<i32> = tokens.ids(start..end).map(|id| id as i32).collect();
        let mut inputs = vec![previous];
        inputs.extend_from_slice(&targets[..targets.len() - 1]);
        previous = targets[targets.len() - 1];
        let (logits, next) = model.forward(row(&inputs, device), Some(state));
        state = next;
        sum += total_loss(logits, row(&targets, device));
    }
    Ok(report(
        sum,
        tokens.len(),
        tokens,
        0..tokens.len() + 1,
        tokenizer,
        started,
    ))
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

/// `covered` starts with a token that is only read.
fn report(
    sum: f64,
    count: usize,
    tokens: &TokenFile,
    covered: Range<usize>,
    tokenizer: &dyn Tokenizer,
    started: Instant,
) -> TextReport {
    let seconds = started.elapsed().as_secs_f64();
    let targets = covered.start + 1..covered.end;
    let targets = if targets.end > tokens.len() {
        0..tokens.len()
    } else {
        targets
    };
    let end = tokenizer.end_of_text();
    let bytes: usize = tokens
        .ids(targets)
        .filter(|&id| id != end)
        .map(|id| tokenizer.decode_bytes(&[id]).map_or(0, |bytes| bytes.len()))
        .sum();
    let loss = sum / count as f64;
    TextReport {
        loss,
        perplexity: loss.exp(),
        bits_per_byte: sum / std::f64::consts::LN_2 / bytes.max(1) as f64,
        tokens: count,
        tokens_per_second: count as f64 / seconds,
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
pub fn reverse<M: ChannelMixer>(
    model: &Rwkv7<M>,
    device: &Device,
    task: &Reverse,
    rows: usize,
) -> ReverseReport {
    let (mut digits, mut right_digits, mut right_answers) = (0, 0, 0);
    let mut example = (String::new(), String::new());
    let context = task.context();
    for first in (0..task.numbers).step_by(rows) {
        let numbers = first..(first + rows).min(task.numbers);
        let numbers: Vec<Vec<u8>> = numbers.map(|index| task.number(index)).collect();
        let items: Vec<Sequence> = numbers.iter().map(|number| task.sequence(number)).collect();
        let batch = LmBatcher.batch(items.clone(), device);
        let (logits, _) = model.forward(batch.inputs, None);
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
    ReverseReport {
        digit_accuracy: right_digits as f64 / digits as f64,
        answer_accuracy: right_answers as f64 / task.numbers as f64,
        numbers: task.numbers,
        example,
    }
}
