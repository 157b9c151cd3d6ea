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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_full_in_training_names_the_batch_and_the_checkpoint() {
        let out = std::env::temp_dir().join(format!("metastate-failure-{}", std::process::id()));
        let settings = ["batch_size=12".to_string(), "accumulation=2".to_string()];
        let recipe = Recipe::load("reverse").unwrap().with_overrides(&settings);
        let recipe = recipe.unwrap();
        let full = "IO error\nCaused by:\n  out of device memory allocating 4096 bytes";
        let text = training(&recipe, &out, || panic!("{full}"))
            .unwrap_err()
            .to_string();
        for part in [
            "4096 bytes",
            "batch_size=12",
            "batch_size=6",
            "accumulation=4",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("checkpoint"), "{text}");
        let lost = "The device is poisoned\nCaused by:\n  reset by the driver";
        let text = training(&recipe, &out, || panic!("{lost}"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("reset by the driver"), "{text}");
        let text = command(|| panic!("{full}")).unwrap_err().to_string();
        assert!(text.contains("smaller model"), "{text}");
    }
}
