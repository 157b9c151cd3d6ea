//! What becomes of a run whose files were damaged, exchanged or joined by others while it stood still: it goes on to the same result,
//! or it is refused, and never to another result.

use super::*;

use std::fs;

/// Six epochs of one step, of which the last three are kept.
fn small() -> Recipe {
    recipe(&[
        "steps=6",
        "steps_per_epoch=1",
        "validation_batches=1",
        "keep_checkpoints=3",
        "batch_size=2",
    ])
}

/// A finished run and a copy of it as it was after epoch 5, with the files of epoch 4 beside it.
struct Damaged {
    folder: tempfile::TempDir,
    metrics: Vec<(String, u64, f64)>,
    tensors: BTreeMap<String, TensorData>,
}

impl Damaged {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        run(&small(), &whole, false).unwrap();
        Self {
            metrics: metrics(&whole),
            tensors: tensors(&whole),
            folder,
        }
    }

    fn whole(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("whole").join(name)
    }

    /// Damages a fresh copy and goes on with it. The error, if the run is refused.
    fn after(
        &self,
        what: &str,
        epochs: std::ops::RangeInclusive<usize>,
        damage: impl FnOnce(&Path),
    ) -> Option<String> {
        let parts = tempfile::tempdir().unwrap();
        killed(&self.whole(""), parts.path(), epochs);
        damage(parts.path());
        match run(&small(), parts.path(), true) {
            Err(error) => Some(error.to_string()),
            Ok(_) => {
                assert!(
                    metrics(parts.path()) == self.metrics,
                    "{what}: other metrics"
                );
                assert!(
                    tensors(parts.path()) == self.tensors,
                    "{what}: another model"
                );
                None
            }
        }
    }
}

/// Every kind of damage to one file of the newest checkpoint.
fn damages(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let flipped = |at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    };
    let mut zeros = bytes.to_vec();
    let middle = zeros.len() / 2;
    let end = zeros.len().min(middle + 512);
    zeros[middle..end].fill(0);
    let mut longer = bytes.to_vec();
    longer.push(0);
    vec![
        ("a bit of the header", flipped(40.min(bytes.len() - 1))),
        ("a bit in the middle", flipped(bytes.len() / 2)),
        ("the last bit", flipped(bytes.len() - 1)),
        ("zeros", zeros),
        ("cut", bytes[..2 * bytes.len() / 3].to_vec()),
        ("empty", Vec::new()),
        ("longer", longer),
    ]
}

#[test]
fn no_damage_leads_to_other_results() {
    let damaged = Damaged::new();
    for part in [
        "model.bpk",
        "optimizer.bpk",
        "schedule.bpk",
        "manifest.json",
    ] {
        let file = format!("checkpoints/5/{part}");
        let bytes = fs::read(damaged.whole(&file)).unwrap();
        for (kind, bytes) in damages(&bytes) {
            let what = format!("{part}, {kind}");
            let refused = damaged.after(&what, 4..=5, |out| {
                fs::write(out.join(&file), bytes).unwrap()
            });
            assert_eq!(refused, None, "{what}: epoch 4 is whole");
        }
        // Of another epoch.
        let refused = damaged.after(part, 4..=5, |out| {
            fs::copy(
                damaged.whole(&format!("checkpoints/4/{part}")),
                out.join(&file),
            )
            .unwrap();
        });
        assert_eq!(refused, None, "{part} of another epoch");
        let refused = damaged.after(part, 5..=5, |out| fs::remove_file(out.join(&file)).unwrap());
        let refused = refused.unwrap();
        assert!(refused.contains(&file), "{refused}");
    }
}

#[test]
fn a_checkpoint_of_another_run_or_epoch_is_named_and_not_used() {
    let damaged = Damaged::new();
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        for file in from.read_dir().unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    let refused = damaged.after("another name", 4..=5, |out| {
        copy(&out.join("checkpoints/5"), &out.join("checkpoints/99"));
        copy(&out.join("checkpoints/4"), &out.join("checkpoints/6"));
    });
    assert_eq!(refused, None);
    let refused = damaged.after("a folder alone", 5..=5, |out| {
        fs::rename(out.join("checkpoints/5"), out.join("checkpoints/99")).unwrap();
    });
    let refused = refused.unwrap();
    assert!(
        refused.contains("99") && refused.contains("epochs 1 to 6"),
        "{refused}"
    );

    // The same epoch of a run with another seed.
    let other = tempfile::tempdir().unwrap();
    let seed = Recipe { seed: 1, ..small() };
    run(&seed, other.path(), false).unwrap();
    let refused = damaged.after("another run", 4..=5, |out| {
        copy(
            &other.path().join("checkpoints/5"),
            &out.join("checkpoints/5"),
        );
    });
    assert_eq!(refused, None);
    let refused = damaged.after("another run alone", 5..=5, |out| {
        copy(
            &other.path().join("checkpoints/5"),
            &out.join("checkpoints/5"),
        );
    });
    assert!(refused.unwrap().contains("it is of run"));
}

#[test]
fn a_run_of_an_older_version_goes_on_and_its_checkpoints_are_compared_with_the_model() {
    let damaged = Damaged::new();
    assert_eq!(damaged.after("old", 4..=5, age), None);
    // From then on its checkpoints have manifests.
    let parts = tempfile::tempdir().unwrap();
    killed(&damaged.whole(""), parts.path(), 4..=5);
    age(parts.path());
    run(&small(), parts.path(), true).unwrap();
    for epoch in [4, 5, 6] {
        assert!(
            parts
                .path()
                .join(format!("checkpoints/{epoch}/manifest.json"))
                .is_file()
        );
    }
    for part in ["optimizer.bpk", "schedule.bpk"] {
        let refused = damaged.after(part, 4..=5, |out| {
            age(out);
            let from = damaged.whole(&format!("checkpoints/4/{part}"));
            fs::copy(from, out.join("checkpoints/5").join(part)).unwrap();
        });
        assert_eq!(refused, None, "{part} of another epoch");
    }
    // Another model: a tensor has another name, another has another shape.
    let renamed = |path: &Path, from: &[u8], to: &[u8]| {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        fs::write(path, bytes).unwrap();
    };
    let refused = damaged.after("a renamed tensor", 5..=5, |out| {
        age(out);
        renamed(&out.join("checkpoints/5/model.bpk"), b"att.x_r", b"att.x_q");
    });
    assert!(refused.unwrap().contains("att.x_q"));
    let refused = damaged.after("a wide model", 5..=5, |out| {
        let other = recipe(&["model.n_embd=48", "steps=3"]);
        let wide = out.join("wide");
        run(&other, &wide, false).unwrap();
        age(out);
        let [from, to] = [
            wide.join("checkpoints/1/model.bpk"),
            out.join("checkpoints/5/model.bpk"),
        ];
        fs::copy(from, to).unwrap();
    });
    let refused = refused.unwrap();
    assert!(
        refused.contains("has shape") && refused.contains("expected"),
        "{refused}"
    );
}

#[test]
fn damaged_metrics_stop_nothing_and_choose_no_model() {
    let damaged = Damaged::new();
    let lines = |out: &Path| fs::read(out.join("metrics.jsonl")).unwrap();
    let expected = &damaged.tensors;
    for kind in ["a bad byte", "a bad line", "a false loss", "gone"] {
        let parts = tempfile::tempdir().unwrap();
        killed(&damaged.whole(""), parts.path(), 4..=5);
        let path = parts.path().join("metrics.jsonl");
        let text = String::from_utf8(lines(parts.path())).unwrap();
        match kind {
            "a bad byte" => {
                let mut bytes = text.into_bytes();
                bytes[20] = 0xff;
                fs::write(&path, bytes).unwrap();
            }
            "a bad line" => fs::write(&path, text.replacen("}\n", "\n", 1)).unwrap(),
            "a false loss" => {
                let false_lines = text.lines().map(|line| {
                    let mut line: Value = serde_json::from_str(line).unwrap();
                    if line["split"] == "valid" && line["epoch"] == 4 {
                        line["loss"] = (-5).into();
                    }
                    format!("{line}\n")
                });
                fs::write(&path, false_lines.collect::<String>()).unwrap();
            }
            _ => fs::remove_file(&path).unwrap(),
        }
        run(&small(), parts.path(), true).unwrap();
        assert!(tensors(parts.path()) == *expected, "{kind}");
    }
    // Of a run of an older version nothing but this file has the losses. The run is done and was not stopped.
    let parts = tempfile::tempdir().unwrap();
    killed(&damaged.whole(""), parts.path(), 4..=6);
    age(parts.path());
    fs::remove_file(parts.path().join("metrics.jsonl")).unwrap();
    assert_eq!(run(&small(), parts.path(), true).unwrap().epoch, 6);
}

/// The model of an earlier epoch, which was the best, is read at the end of the run.
#[test]
fn a_damaged_best_model_is_not_exported() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let recipe = recipe(&["steps=4", "steps_per_epoch=1", "validation_batches=1"]);
    run(&recipe, &whole, false).unwrap();
    // As if the first epoch had been the best one, and the second one the next.
    killed(&whole, &parts, 1..=4);
    age(&parts);
    let lines = fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if line["split"] == "valid" {
            line["loss"] = line["epoch"].take();
            line["epoch"] = line["step"].clone();
        }
        format!("{line}\n")
    });
    fs::write(parts.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
    assert_eq!(run(&recipe, &parts, true).unwrap().epoch, 1);
    let file = zoo::run_folder::model_file(&parts.join("checkpoints"), 1);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(run(&recipe, &parts, true).unwrap().epoch, 2);
    let second = zoo::run_folder::model_file(&parts.join("checkpoints"), 2);
    assert!(tensors(&parts) == tensors(&second));
}

/// Weights that are no numbers, as a run may come to: it ends with an error, and the last checkpoint stays as it is.
#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoints() {
    let damaged = Damaged::new();
    let parts = tempfile::tempdir().unwrap();
    killed(&damaged.whole(""), parts.path(), 4..=5);
    age(parts.path());
    let model = parts.path().join("checkpoints/5/model.bpk");
    let mut bytes = fs::read(&model).unwrap();
    let end = bytes.len();
    for value in bytes[end - 4096..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&model, &bytes).unwrap();
    let error = run(&small(), parts.path(), true).unwrap_err();
    assert!(
        matches!(&error, TrainError::NotFinite { what, step: 6, .. } if what == "loss"),
        "{error}"
    );
    assert_eq!(fs::read(&model).unwrap(), bytes);
    assert_eq!(
        zoo::run_folder::complete(&parts.path().join("checkpoints")),
        [4, 5]
    );
    assert!(!parts.path().join("model.safetensors").exists());
}
