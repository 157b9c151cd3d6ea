//! The lines of an earlier part of the run that stay in `metrics.jsonl`.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::Value;

use super::{GROWTH, Steps};
use crate::train::manifest::Extent;

/// What the checkpoint that the run goes on from says.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// What the file held at that time; none in a run of an older version.
    pub extent: Option<Extent>,
    /// Validation losses by epoch.
    pub losses: BTreeMap<usize, f64>,
}

/// The lines that stay, and the validation losses.
pub struct Kept {
    pub text: Vec<u8>,
    pub validation: BTreeMap<usize, f64>,
}

impl Kept {
    /// Reads the file, if it is there. A file that is not as the run left it does not keep the run from going on, and no validation
    /// loss of the file is believed that a checkpoint can tell.
    pub fn read(path: &Path, steps: Steps, past: Past) -> io::Result<Self> {
        let mut kept = Self {
            text: Vec::new(),
            validation: past.losses,
        };
        if steps.done == 0 {
            return Ok(kept);
        }
        let mut bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if let Some(extent) = past.extent {
            let length = usize::try_from(extent.bytes).unwrap_or(usize::MAX);
            if bytes.get(..length).map(Extent::of_bytes) == Some(extent) {
                bytes.truncate(length);
                kept.text = bytes;
                return Ok(kept);
            }
            log::warn!(
                "{}: not as the run left it after epoch {}: lines that cannot be read are dropped, and the others may be wrong; \
                 the checkpoints have the validation losses",
                path.display(),
                steps.done
            );
        }
        for line in bytes.split(|&byte| byte == b'\n') {
            // The last line of a killed run may be cut.
            let Some(entry) = serde_json::from_slice::<Value>(line)
                .ok()
                .filter(|entry| is_of(entry, steps))
            else {
                continue;
            };
            kept.text.extend(line);
            kept.text.push(b'\n');
            if past.extent.is_none()
                && let Some((epoch, loss)) = validation(&entry, steps)
            {
                kept.validation.entry(epoch).or_insert(loss);
            }
        }
        Ok(kept)
    }
}

/// Whether this is a line of the epochs that are done.
fn is_of(entry: &Value, steps: Steps) -> bool {
    let number = |key: &str| entry[key].as_u64().map(|number| number as usize);
    let (Some(epoch), Some(step)) = (number("epoch"), number("step")) else {
        return false;
    };
    let last = epoch.saturating_mul(steps.per_epoch);
    let begun = epoch.saturating_sub(1).saturating_mul(steps.per_epoch);
    let in_epoch = match entry["split"].as_str() {
        Some(GROWTH) => step == last,
        Some("train" | "valid") => epoch > 0 && (begun..=last).contains(&step),
        _ => false,
    };
    in_epoch && epoch <= steps.done
}

/// Epoch and loss of the line of a validation. A cross-entropy is not negative.
fn validation(entry: &Value, steps: Steps) -> Option<(usize, f64)> {
    let epoch = entry["epoch"].as_u64()? as usize;
    let loss = entry["loss"].as_f64().filter(|loss| *loss >= 0.0)?;
    let valid = entry["split"] == "valid" && epoch <= steps.done;
    valid.then_some((epoch, loss))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STEPS: Steps = Steps {
        done: 2,
        per_epoch: 1,
        accumulation: 1,
    };

    fn lines() -> Vec<String> {
        let line = |split: &str, epoch: usize, loss: f64| {
            format!(
                "{{\"split\":\"{split}\",\"epoch\":{epoch},\"step\":{epoch},\"loss\":{loss}}}\n"
            )
        };
        vec![
            line("train", 1, 3.0),
            line("valid", 1, 2.5),
            line("train", 2, 2.0),
            line("valid", 2, 2.25),
            line("train", 3, 1.0),
        ]
    }

    fn read(content: &[u8], past: Past) -> Kept {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Kept::read(file.path(), STEPS, past).unwrap()
    }

    #[test]
    fn a_file_as_the_run_left_it_is_kept_to_the_byte() {
        let lines = lines();
        let expected = lines[..4].concat().into_bytes();
        let past = Past {
            extent: Some(Extent::of_bytes(&expected)),
            losses: [(2, 2.25)].into(),
        };
        let kept = read(lines.concat().as_bytes(), past);
        assert_eq!(kept.text, expected);
        assert_eq!(kept.validation, [(2, 2.25)].into());
    }

    #[test]
    fn a_changed_file_is_not_believed_and_stops_nothing() {
        let lines = lines();
        let losses: BTreeMap<usize, f64> = [(1, 2.5), (2, 2.25)].into();
        let past = Past {
            extent: Some(Extent::of_bytes(lines[..4].concat().as_bytes())),
            losses: losses.clone(),
        };
        let mut changed = lines.clone();
        changed[1] = changed[1].replace("2.5", "-5");
        let mut content = changed.concat().into_bytes();
        content[3] = 0xff;
        let kept = read(&content, past.clone());
        assert_eq!(kept.validation, losses);
        assert_eq!(kept.text, changed[1..4].concat().into_bytes());
        assert_eq!(read(b"", past).validation, losses);
    }

    #[test]
    fn the_lines_of_an_old_run_are_kept_and_losses_that_cannot_be_are_not() {
        let mut lines = lines();
        lines[1] = lines[1].replace("2.5", "-5");
        let kept = read(lines.concat().as_bytes(), Past::default());
        assert_eq!(kept.text, lines[..4].concat().into_bytes());
        assert_eq!(kept.validation, [(2, 2.25)].into());
    }
}
