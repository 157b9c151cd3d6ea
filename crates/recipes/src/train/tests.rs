//! Runs small enough for a test.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use burn::tensor::TensorData;
use serde_json::Value;

use super::*;

fn recipe(more: &[&str]) -> Recipe {
    let small = [
        "model.n_layer=1",
        "model.n_embd=32",
        "model.head_size=16",
        "batch_size=8",
        "max_digits=3",
        "steps=12",
        "steps_per_epoch=3",
        "validation_batches=2",
        "learning_rate.warmup_steps=2",
        "keep_checkpoints=4",
    ];
    let settings: Vec<String> = small.iter().chain(more).map(|s| s.to_string()).collect();
    Recipe::load("reverse")
        .unwrap()
        .with_overrides(&settings)
        .unwrap()
}

fn run(recipe: &Recipe, out: &Path, resume: bool) -> Result<Report, TrainError> {
    let options = Options {
        resume,
        plain: true,
    };
    train(recipe, out, &Device::flex(), options)
}

/// Split, step and loss of every line.
fn journal(out: &Path) -> Vec<(String, u64, f64)> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let split = line["split"].as_str().unwrap().to_string();
        let loss = line["loss"].as_f64().unwrap();
        (split, line["step"].as_u64().unwrap(), loss)
    });
    lines.collect()
}

/// All weights of a model file or of a run's model.
fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let checkpoint = checkpoint::Checkpoint::open(path).unwrap();
    checkpoint.read_all().unwrap()
}

/// The run in `from` as it was when killed after these epochs.
fn killed(from: &Path, to: &Path, epochs: std::ops::RangeInclusive<usize>) {
    for epoch in epochs {
        let checkpoint = format!("checkpoints/{epoch}");
        std::fs::create_dir_all(to.join(&checkpoint)).unwrap();
        for part in ["model", "optimizer", "schedule"] {
            let file = format!("{checkpoint}/{part}.bpk");
            std::fs::copy(from.join(&file), to.join(&file)).unwrap();
        }
    }
    for file in ["recipe.json", "metrics.jsonl"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_run_in_two_parts_is_the_run_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let recipe = recipe(&["accumulation=2"]);
    let report = run(&recipe, &whole, false).unwrap();
    assert_eq!(report.epoch, 4, "the loss falls");

    killed(&whole, &parts, 1..=2);
    run(&recipe, &parts, true).unwrap();
    assert_eq!(journal(&parts), journal(&whole));
    let (found, expected) = (tensors(&parts), tensors(&whole));
    assert_eq!(found.len(), expected.len());
    for (name, tensor) in found {
        assert!(tensor == expected[&name], "{name} differs");
    }

    let error = run(&recipe, &parts, false).unwrap_err();
    assert!(matches!(error, TrainError::Occupied { .. }), "{error}");
    let other = Recipe {
        batch_size: 9,
        ..recipe
    };
    let error = run(&other, &parts, true).unwrap_err().to_string();
    assert!(error.contains("batch_size: 8 then, 9 now"), "{error}");
}

#[test]
fn the_steps_are_the_ones_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    run(&recipe(&["steps=4"]), &out, false).unwrap();
    let steps: Vec<(String, u64)> = journal(&out).into_iter().map(|l| (l.0, l.1)).collect();
    let expected = [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("valid", 3),
        ("train", 4),
        ("valid", 4),
    ];
    assert_eq!(
        steps,
        expected.map(|(split, step)| (split.to_string(), step))
    );
    let error = run(&recipe(&["steps=9"]), &out, true).unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::EndedWithinEpoch {
                steps: 4,
                per_epoch: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_best_epoch_is_kept_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run(&recipe(&[]), &whole, false).unwrap();

    // As if the first epoch had been the best one, and the run had been killed after the third.
    killed(&whole, &parts, 1..=3);
    let kept = Recipe {
        keep_checkpoints: 1,
        ..recipe(&[])
    };
    write_json(&parts.join("recipe.json"), &kept.to_json()).unwrap();
    let journal = std::fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    let lines = journal.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if line["split"] == "valid" && line["epoch"] == 1 {
            line["loss"] = 0.01.into();
        }
        format!("{line}\n")
    });
    std::fs::write(parts.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
    let report = run(&kept, &parts, true).unwrap();
    assert_eq!(report.epoch, 1);
    assert_eq!(checkpoints::complete(&parts.join("checkpoints")), [1, 4]);
    let first = checkpoints::model_file(&whole.join("checkpoints"), 1);
    assert!(tensors(&report.model) == tensors(&first));
}

#[test]
fn a_damaged_checkpoint_is_an_error_or_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run(&recipe(&[]), &whole, false).unwrap();
    killed(&whole, &parts, 2..=3);
    let damage = |epoch| {
        let file = checkpoints::model_file(&parts.join("checkpoints"), epoch);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    };
    damage(3);
    run(&recipe(&[]), &parts, true).unwrap();
    assert_eq!(journal(&parts), journal(&whole));
    (2..=4).for_each(damage);
    let error = run(&recipe(&[]), &parts, true).unwrap_err();
    assert!(matches!(error, TrainError::Damaged(_)), "{error}");
}

#[test]
fn a_run_killed_before_it_began_can_be_started() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(&recipe(&[]), folder.path(), true).unwrap_err();
    assert!(
        matches!(error, TrainError::NothingToResume { .. }),
        "{error}"
    );
    std::fs::write(folder.path().join(".incomplete-abc"), "{").unwrap();
    run(&recipe(&["steps=3"]), folder.path(), false).unwrap();
}
