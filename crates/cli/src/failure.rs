//! Devices that fail while a command runs: what happened and what to do.

use std::path::{Path, PathBuf};

use recipes::{
    Recipe,
    train::{Report, TrainError},
};
use rwkv7_core::device::{self, DeviceFailure};
use zoo::run_folder;

use crate::Outcome;

/// A command that its device did not finish.
#[derive(Debug, thiserror::Error)]
pub enum OnDevice {
    /// Training.
    #[error("{failure}; {}", training_remedy(.failure, *.batch_size, *.accumulation, .out, *.epoch))]
    Training {
        /// What happened.
        failure: DeviceFailure,
        /// Sequences of a step.
        batch_size: usize,
        /// Steps whose gradients are averaged.
        accumulation: usize,
        /// The folder of the run.
        out: PathBuf,
        /// Epoch of its last whole checkpoint.
        epoch: Option<usize>,
    },
    /// Any other command.
    #[error("{failure}; {}", remedy(.failure))]
    Other {
        /// What happened.
        failure: DeviceFailure,
    },
}

/// What to do after a failure in any command.
fn remedy(failure: &DeviceFailure) -> &'static str {
    match failure {
        DeviceFailure::OutOfMemory { .. } | DeviceFailure::TensorTooLarge { .. } => {
            "take a smaller model or a shorter --context, end other programs that use the device, or run on --device flex"
        }
        DeviceFailure::Lost { .. } => {
            "run the command again; if this happens again, try a newer driver or another --device"
        }
        DeviceFailure::Compilation { .. } => {
            "try a newer driver or another --device (`metastate devices` lists them)"
        }
    }
}

/// What to do after a failure in training.
fn training_remedy(
    failure: &DeviceFailure,
    batch_size: usize,
    accumulation: usize,
    out: &Path,
    epoch: Option<usize>,
) -> String {
    let out = out.display();
    let (less, go_on) = match failure {
        DeviceFailure::OutOfMemory { .. } | DeviceFailure::TensorTooLarge { .. } => (
            match batch_size {
                0 | 1 => {
                    "a step has one sequence already; take a shorter `context` or a smaller model"
                        .into()
                }
                _ => format!(
                    "a step has batch_size={batch_size} sequences; about the same steps in half the memory are \
                     --set batch_size={} --set accumulation={}, in another folder by --out",
                    batch_size.div_ceil(2),
                    2 * accumulation
                ),
            },
            format!("--set start={out} begins with it"),
        ),
        _ => (remedy(failure).into(), "--resume goes on from it".into()),
    };
    match epoch {
        Some(epoch) => format!("{less}; the checkpoint of epoch {epoch} is whole, and {go_on}"),
        None => less,
    }
}

/// Trains, and turns what a device's panic or error says into an error with a remedy.
pub fn training(
    recipe: &Recipe,
    out: &Path,
    train: impl FnOnce() -> Result<Report, Box<TrainError>>,
) -> Outcome<Report> {
    let result = device::watch(train);
    let failure = match result {
        Ok(Ok(report)) => return Ok(report),
        Err(failure) => failure,
        Ok(Err(error)) => match of_step(&error) {
            Some(failure) => failure,
            None => return Err(error),
        },
    };
    Err(OnDevice::Training {
        failure,
        batch_size: recipe.batch_size,
        accumulation: recipe.accumulation,
        out: out.to_path_buf(),
        epoch: run_folder::complete(&out.join(run_folder::CHECKPOINTS))
            .last()
            .copied(),
    }
    .into())
}

/// What happened to the device: a panic in a step comes as an error of Burn's training.
fn of_step(error: &TrainError) -> Option<DeviceFailure> {
    match error {
        TrainError::Failed { source } => DeviceFailure::from_message(&source.to_string()),
        _ => None,
    }
}

/// Runs any command, with its device's panics as errors.
pub fn command(run: impl FnOnce() -> Outcome) -> Outcome {
    device::watch(run).unwrap_or_else(|failure| Err(OnDevice::Other { failure }.into()))
}
