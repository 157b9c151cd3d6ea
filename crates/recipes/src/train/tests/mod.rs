//! Runs small enough for a test.
#![allow(clippy::unwrap_used)]

mod damage;
mod devices;
mod growth;
mod kill;

use std::{collections::BTreeMap, path::Path};

use burn::tensor::TensorData;
use meta_state::MetaStateConfig;
use rwkv7_core::checkpoint;
use serde_json::Value;

use super::{run_dir::write_json, *};

/// Says that a test is skipped, past the test harness, which hides what passes.
fn skipped(reason: &dyn std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

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
    let mut recipe = Recipe::load("reverse").unwrap();
    for settings in [&small[..], more] {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        recipe = recipe.with_overrides(&settings).unwrap();
    }
    recipe
}

fn run(recipe: &Recipe, out: &Path, resume: bool) -> Result<Report, TrainError> {
    let options = Options {
        resume,
        plain: true,
    };
    train(recipe, out, &Device::flex(), options)
}

/// Split, step and loss of every line.
fn metrics(out: &Path) -> Vec<(String, u64, f64)> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let split = line["split"].as_str().unwrap().to_string();
        let loss = match split.as_str() {
            "growth" => &line["loss_after"],
            _ => &line["loss"],
        };
        (
            split,
            line["step"].as_u64().unwrap(),
            loss.as_f64().unwrap(),
        )
    });
    lines.collect()
}

/// Every line but for what a clock says.
fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        line.remove("tokens_per_second");
        line.remove("seconds");
        line.into()
    });
    lines.collect()
}

/// All weights of a model file or of a run's model.
fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.read_all().unwrap()
}

/// The run in `from` as it was when killed after these epochs.
fn killed(from: &Path, to: &Path, epochs: std::ops::RangeInclusive<usize>) {
    for epoch in epochs {
        let checkpoint = format!("checkpoints/{epoch}");
        std::fs::create_dir_all(to.join(&checkpoint)).unwrap();
        for file in from.join(&checkpoint).read_dir().unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(&checkpoint).join(file.file_name())).unwrap();
        }
    }
    for file in ["recipe.json", "run.json", "metrics.jsonl", "start.json"] {
        if from.join(file).exists() {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

/// Makes a run look as if an older version of the program had written it.
fn age(out: &Path) {
    std::fs::remove_file(out.join("run.json")).unwrap();
    for checkpoint in out.join("checkpoints").read_dir().unwrap() {
        std::fs::remove_file(checkpoint.unwrap().path().join("manifest.json")).unwrap();
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
    // A run from before `products` became `matmul_precision`.
    let file = parts.join("recipe.json");
    let old = std::fs::read_to_string(&file).unwrap();
    assert!(old.contains("matmul_precision"));
    std::fs::write(&file, old.replace("matmul_precision", "products")).unwrap();
    run(&recipe, &parts, true).unwrap();
    assert_eq!(lines(&parts), lines(&whole));
    // A line for each step, with the rate and the norm of that step.
    let train: Vec<Value> = lines(&parts)
        .into_iter()
        .filter(|line| line["split"] == "train")
        .collect();
    assert_eq!(train.len(), 12);
    for (index, line) in train.iter().enumerate() {
        assert_eq!(line["step"], index + 1);
        let positive = |key: &str| line[key].as_f64().is_some_and(|value| value > 0.0);
        assert!(
            positive("learning_rate") && positive("gradient_norm"),
            "{line}"
        );
    }
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
    let steps: Vec<(String, u64)> = metrics(&out).into_iter().map(|l| (l.0, l.1)).collect();
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

    // As if the first epoch had been the best one, and the run had been killed after the third. Only an older version's run has its
    // losses in this file alone.
    killed(&whole, &parts, 1..=3);
    age(&parts);
    let kept = Recipe {
        keep_checkpoints: 1,
        ..recipe(&[])
    };
    write_json(&parts.join("recipe.json"), &kept.to_json()).unwrap();
    let lines = std::fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if line["split"] == "valid" && line["epoch"] == 1 {
            line["loss"] = 0.01.into();
        }
        format!("{line}\n")
    });
    std::fs::write(parts.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
    let report = run(&kept, &parts, true).unwrap();
    assert_eq!(report.epoch, 1);
    assert_eq!(
        zoo::run_folder::complete(&parts.join("checkpoints")),
        [1, 4]
    );
    let first = zoo::run_folder::model_file(&whole.join("checkpoints"), 1);
    assert!(tensors(&report.model) == tensors(&first));
}

#[test]
fn a_damaged_checkpoint_is_an_error_or_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run(&recipe(&[]), &whole, false).unwrap();
    killed(&whole, &parts, 2..=3);
    let damage = |epoch| {
        let file = zoo::run_folder::model_file(&parts.join("checkpoints"), epoch);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    };
    damage(3);
    run(&recipe(&[]), &parts, true).unwrap();
    assert_eq!(metrics(&parts), metrics(&whole));
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

/// As where a preset has changed between the two.
#[test]
fn a_run_does_not_go_on_with_another_model_than_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&["arch=meta-state", "steps=3"]);
    run(&recipe, folder.path(), false).unwrap();
    let path = folder.path().join("config.json");
    let before = std::fs::read_to_string(&path).unwrap();
    let other = before.replace(r#""removal": "self""#, r#""removal": "time-mix""#);
    assert_ne!(before, other);
    std::fs::write(&path, &other).unwrap();
    let more = Recipe { steps: 6, ..recipe };
    let error = run(&more, folder.path(), true).unwrap_err().to_string();
    for part in ["config.json", "ffn.removal", "then", "now"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
}

/// Settings that would have no effect.
#[test]
fn settings_of_another_architecture_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |settings: &[&str]| {
        let error = run(&recipe(settings), &out, false).unwrap_err().to_string();
        assert!(!out.exists());
        error
    };
    let error = refused(&["model.meta_state=paper"]);
    for part in ["model.meta_state", "rwkv7", "arch=meta-state"] {
        assert!(error.contains(part), "{error}");
    }
    let error = refused(&["diagnostics=true"]);
    assert!(error.contains("`diagnostics` is true"), "{error}");

    let overrides = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        Recipe::default()
            .with_overrides(&settings)
            .unwrap_err()
            .to_string()
    };
    let error = overrides(&["model.ffn_size=9", "arch=meta-state"]);
    for part in ["--set model.ffn_size=9", "meta-state", "no feed-forward"] {
        assert!(error.contains(part), "{error}");
    }
    let error = overrides(&["start=reverse-rwkv7", "model.n_layer=9"]);
    for part in ["--set model.n_layer=9", "`start`", "`grow`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_run_does_not_go_on_with_a_setting_of_another_shape() {
    let folder = tempfile::tempdir().unwrap();
    let with = |sse: &str| recipe(&["arch=meta-state", &format!("model.meta_state.sse={sse}")]);
    run(&with(r#"{"low-rank":4}"#), folder.path(), false).unwrap();
    for other in [r#"{"top-left":4}"#, "state"] {
        let error = run(&with(other), folder.path(), true).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("model.meta_state.sse"), "{error}");
    }
}

#[test]
fn a_preset_is_the_whole_model_and_a_text_is_not_passed_over() {
    let preset = recipe(&["model.n_layer=5", "model.preset=150m-rwkv7"]).model;
    let config = preset.config(None, 256).unwrap();
    assert_eq!((config.base().n_layer, config.base().n_embd), (5, 768));
    let config = recipe(&["model.preset=150m-rwkv7"]).model.config(None, 256);
    assert_eq!(config.unwrap(), zoo::config("150m-rwkv7").unwrap());

    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        data: vec!["input.txt".into()],
        ..recipe(&[])
    };
    let error = run(&recipe, &folder.path().join("out"), false).unwrap_err();
    for part in ["`data` is input.txt", "reverse", "--recipe text"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// Values so large that the second layer leaves the range of f32.
#[test]
fn a_layer_that_overflows_stops_the_run_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [start, out] = ["start.safetensors", "out"].map(|name| folder.path().join(name));
    let trained = zoo::find("reverse-meta-state").unwrap().weights();
    let trained = trained.unwrap().unwrap();
    let (config, mut model) = trained.load::<MetaStateConfig>(&Device::flex()).unwrap();
    let value = &mut model.blocks[1].att.value;
    value.weight = value.weight.clone().map(|weight| weight * 1e30);
    checkpoint::save(&start, &config, &model, checkpoint::Format::Official, None).unwrap();

    let start = format!("start={}", start.display());
    let error = run(&recipe(&[&start, "diagnostics=true"]), &out, false).unwrap_err();
    let TrainError::NotFinite { what, step, .. } = &error else {
        panic!("{error}")
    };
    assert!(what.starts_with("layer 1 ") && *step == 1, "{error}");
    assert!(!out.join("model.safetensors").exists());
}
