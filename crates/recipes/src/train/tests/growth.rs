//! Runs whose model grows or starts from another one.

use rwkv7_core::{MatmulPrecision, Rwkv7Config};
use scaling::Growable;

use super::*;

/// Growth in the middle of a run: twice, with a width ratio that is no integer, new layers, and a run gone on in between.
#[test]
fn a_model_grows_while_it_is_trained() {
    for arch in ["rwkv7", "meta-state"] {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        let recipe = recipe(&[
            &format!("arch={arch}"),
            &format!("diagnostics={}", arch == "meta-state"),
            r#"grow=[{"after":3,"to":{"n_embd":48,"ffn_size":160}},{"after":9,"to":{"n_layer":2},"warmup_steps":2}]"#,
        ]);
        let report = run(&recipe, &whole, false).unwrap();
        let from: Vec<usize> = report.stages.iter().map(|stage| stage.from_step).collect();
        assert_eq!(from, [0, 3, 9]);
        assert_eq!(report.stages[2].parameters, report.parameters);
        for stage in &report.stages[1..] {
            let (before, after) = (stage.loss_before.unwrap(), stage.loss_after.unwrap());
            assert!((before - after).abs() < 1e-4, "{before} and {after}");
        }
        assert!(report.epoch >= 3, "of the last size");
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(whole.join("config.json")).unwrap())
                .unwrap();
        assert_eq!(
            (&config["n_embd"], &config["n_layer"]),
            (&48.into(), &2.into())
        );

        killed(&whole, &parts, 1..=2);
        let again = run(&recipe, &parts, true).unwrap();
        assert_eq!(again.stages, report.stages_without_seconds_of(&again));
        assert_eq!(metrics(&whole), metrics(&parts));
        assert_eq!(
            tensors(&whole.join("model.safetensors")),
            tensors(&parts.join("model.safetensors"))
        );
    }
}

/// In bf16 from the first step to the last, whatever happens in between.
#[test]
fn a_run_keeps_its_products() {
    if let Err(error) = MatmulPrecision::Bf16.check(&Device::flex()) {
        skipped(&error);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [plain, whole, parts] = ["plain", "whole", "parts"].map(|name| folder.path().join(name));
    let grow = r#"grow=[{"after":6,"to":{"n_embd":48}}]"#;
    run(&recipe(&[grow]), &plain, false).unwrap();
    let recipe = recipe(&[grow, "products=bf16"]);
    run(&recipe, &whole, false).unwrap();
    for ((split, step, loss), (.., other)) in metrics(&whole).into_iter().zip(metrics(&plain)) {
        let difference = (loss - other).abs();
        let differs = difference > 0.0 || (&*split, step) == ("train", 1);
        assert!(
            differs && difference < 0.05,
            "{split} {step}: {loss} and {other}"
        );
    }
    killed(&whole, &parts, 1..=3);
    run(&recipe, &parts, true).unwrap();
    assert_eq!(metrics(&whole), metrics(&parts));
}

impl Report {
    /// The stages with another run's clock.
    fn stages_without_seconds_of(&self, other: &Report) -> Vec<Stage> {
        let pairs = self.stages.iter().zip(&other.stages);
        pairs
            .map(|(stage, other)| Stage {
                seconds: other.seconds,
                ..stage.clone()
            })
            .collect()
    }
}

/// AdamW with weight decay, 200 steps: the old entries stay as they were, bit for bit, and the new ones learn.
#[test]
fn new_entries_alone_are_trained_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let long = |name: &str, more: &[&str]| {
        let settings = [
            &[
                "steps=200",
                "steps_per_epoch=100",
                "optimizer.weight_decay=0.5",
                "validation_batches=1",
            ],
            more,
        ]
        .concat();
        run(&recipe(&settings), &at(name), false).unwrap()
    };
    for arch in ["rwkv7", "meta-state"] {
        let small = format!("{arch}-small");
        let arch = format!("arch={arch}");
        run(&recipe(&[&arch]), &at(&small), false).unwrap();
        let start = format!("start={}", at(&small).display());
        let grow = |rate: &str| {
            format!(r#"grow=[{{"after":0,"to":{{"n_embd":48,"n_layer":2}},"old_rate":{rate}}}]"#)
        };
        let held = format!("{small}-held");
        long(&held, &[&start, &grow("0"), "keep_checkpoints=2"]);
        let grown = at(&format!("{small}.safetensors"));
        let source = Checkpoint::open(&at(&small)).unwrap();
        fn check<S: Growable>(source: Checkpoint, held: &Path, grown: &Path) {
            let from: Rwkv7Config<S> = source.config().unwrap();
            let to = Rwkv7Config {
                n_embd: 48,
                n_layer: 2,
                ..from.clone()
            };
            let (lossless, lift) = (scaling::Method::Lossless, scaling::Embedding::Lift);
            let plan = scaling::Plan::new(&from, &to, lossless, lift).unwrap();
            scaling::Growth::new(&plan).run(source, grown).unwrap();
            let (before, after) = (tensors(grown), tensors(held));
            let (mut kept, mut moved) = (0, 0);
            for step in &plan.steps {
                let values = |data: &TensorData| data.iter::<f32>().collect::<Vec<_>>();
                let (a, b) = (values(&before[&step.name]), values(&after[&step.name]));
                for ((a, b), old) in a.iter().zip(&b).zip(step.old_entries()) {
                    match old {
                        true => assert_eq!(a.to_bits(), b.to_bits(), "{}", step.name),
                        false => moved += usize::from(a != b),
                    }
                    kept += usize::from(old);
                }
            }
            assert!(kept > 10_000 && moved > 5_000, "{kept} and {moved}");
        }
        let held = at(&held);
        match arch.as_str() {
            "arch=rwkv7" => check::<rwkv7_core::layers::ChannelMixConfig>(source, &held, &grown),
            _ => check::<meta_state::MetaStateConfig>(source, &held, &grown),
        }
    }
}

#[test]
fn growths_that_cannot_be_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |more: &[&str], parts: &[&str]| {
        let error = run(&recipe(more), &out, false).unwrap_err();
        let mut error: Option<&dyn std::error::Error> = Some(&error);
        let mut text = String::new();
        while let Some(cause) = error {
            text += &format!("{cause}\n");
            error = cause.source();
        }
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!out.exists());
    };
    let grow = |rest: &str| format!(r#"grow=[{{"after":3,{rest}}}]"#);
    refused(&[&grow(r#""to":{"n_embd":16}"#)], &["n_embd", "only grow"]);
    refused(&[&grow(r#""to":"800m""#)], &["800m", "450m-rwkv7"]);
    refused(&[&grow(r#""to":{"width":48}"#)], &["width"]);
    refused(
        &[&grow(r#""to":{"head_size":24,"n_embd":48}"#)],
        &["att.ln_x", "number of heads"],
    );
    refused(
        &[r#"grow=[{"after":2,"to":{}}]"#],
        &["grow.after", "steps_per_epoch"],
    );
    refused(
        &[&grow(r#""to":{},"old_rate":2"#)],
        &["old_rate", "from 0 to 1"],
    );
    refused(&["start=150m-rwkv7"], &["150m-rwkv7", "without weights"]);
    refused(&["start=nowhere"], &["nowhere"]);
    refused(&["scale_down=3"], &["scale_down", "divisor"]);
}

#[test]
fn training_starts_from_a_trained_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let settings = ["start=reverse-meta-state", "learning_rate.peak=1e-5"];
    let report = run(&recipe(&settings), &out, false).unwrap();
    let reverse = report.reverse.unwrap();
    assert!(reverse.digit_accuracy > 0.9, "{reverse:?}");
}

/// The model that a run started from may be gone or another one by the time it goes on; growth at its start is not done again.
#[test]
fn a_run_that_started_from_a_model_goes_on_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let [small, whole, parts] = ["small", "whole", "parts"].map(|name| folder.path().join(name));
    run(&recipe(&[]), &small, false).unwrap();
    let recipe = recipe(&[
        &format!("start={}", small.display()),
        "accumulation=2",
        r#"grow=[{"after":0,"to":{"n_embd":48},"old_rate":0},{"after":6,"to":{"n_layer":2},"old_rate":0.5}]"#,
    ]);
    run(&recipe, &whole, false).unwrap();
    // Killed right after the second growth.
    killed(&whole, &parts, 1..=2);
    std::fs::remove_dir_all(&small).unwrap();
    run(&recipe, &parts, true).unwrap();
    assert_eq!(metrics(&whole), metrics(&parts));
    assert_eq!(
        tensors(&whole.join("model.safetensors")),
        tensors(&parts.join("model.safetensors"))
    );
}
