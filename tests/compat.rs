//! Files that an earlier version wrote still load, and old keys are still understood. `compat/make.sh` made the files.
#![allow(clippy::unwrap_used)]

mod workdir;

use std::{
    fs,
    path::{Path, PathBuf},
};

use recipes::Recipe;
use serde_json::{Value, json};
use workdir::{Workdir, golden};
use zoo::AnyConfig;

fn compat(name: &str) -> String {
    golden(&format!("../compat/{name}"))
}

fn read(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(compat(name)).unwrap()).unwrap()
}

/// A copy of the old training run, which a test may change.
fn run_folder(dir: &Workdir) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap().path();
            let to = to.join(entry.file_name().unwrap());
            if entry.is_dir() {
                copy(&entry, &to);
            } else {
                fs::copy(entry, to).unwrap();
            }
        }
    }
    copy(compat("run").as_ref(), &dir.path("run"));
    dir.path("run")
}

#[test]
fn old_models_give_their_old_logits() {
    let dir = Workdir::new();
    let expected = read("expected.json");
    for (model, architecture) in [
        ("rwkv7.safetensors", "rwkv7"),
        ("rwkv7.bpk", "rwkv7"),
        ("run", "meta-state"),
        ("run/model.safetensors", "meta-state"),
        ("run/checkpoints/2/model.bpk", "meta-state"),
    ] {
        let path = compat(model);
        let inspected = dir.json(&["inspect", &path, "--json"]);
        assert_eq!(inspected["architecture"], architecture, "{model}");
        assert!(inspected["config"]["ffn"].is_object(), "{model}");
        let logits = ["logits", "--model", &path, "--tokens", "0,49,50,44"];
        let found = dir.json(&[&logits[..], &["--device", "flex", "--json"]].concat());
        let values = |json: &Value| -> Vec<f64> {
            let logits = json["logits"].as_array().unwrap();
            logits.iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let (found, expected) = (values(&found), values(&expected[architecture]));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{model}: {found} {expected}"
            );
        }
    }
}

#[test]
fn old_states_go_on_with_their_old_text() {
    let dir = Workdir::new();
    let expected = read("expected.json");
    for (state, model, more) in [
        ("rwkv7.state", "rwkv7.safetensors", &[][..]),
        (
            "rwkv7-without-token.state",
            "rwkv7.safetensors",
            &["--prompt", "1"],
        ),
        ("meta-state.state", "run", &[]),
    ] {
        let (path, model) = (compat(state), compat(model));
        let ask = ["generate", "--model", &model, "--state-in", &path];
        let greedy = ["--max-tokens", "5", "--temperature", "0", "--json"];
        let byte = ["--tokenizer", "byte", "--device", "flex"];
        let found = dir.json(&[&ask[..], &greedy, &byte, more].concat());
        assert_eq!(found["text"], expected[state]["text"], "{state}");
    }
    let ask = [
        "generate",
        "--model",
        &compat("rwkv7.safetensors"),
        "--tokenizer",
        "byte",
    ];
    let state = compat("rwkv7-without-token.state");
    dir.fails(&[&ask[..], &["--state-in", &state]].concat(), &["--prompt"]);
}

#[test]
fn an_old_run_goes_on() {
    let dir = Workdir::new();
    let run = run_folder(&dir);
    let config: AnyConfig = serde_json::from_value(read("run/config.json")).unwrap();
    assert!(read("run/config.json")["second_half"].is_object());
    assert_eq!(config.architecture(), "meta-state");

    // The same recipe with more steps.
    let recipe = compat("run/recipe.json");
    let train = ["train", "--recipe", &recipe, "--out", "run", "--no-tui"];
    let more = ["--resume", "--set", "steps=6", "--device", "flex"];
    dir.ok(&[&train[..], &more].concat());
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["epoch"], 3, "{last}");
    assert!(run.join("checkpoints/3/model.bpk").is_file());
    let recipe: Value =
        serde_json::from_str(&fs::read_to_string(run.join("recipe.json")).unwrap()).unwrap();
    assert_eq!(recipe["matmul_precision"], "f32");
}

#[test]
fn old_keys_are_understood() {
    assert!(read("run/recipe.json")["products"].is_string());
    let recipe = Recipe::load("reverse").unwrap();
    let recipe = recipe.with_overrides(&["products=bf16".into()]).unwrap();
    assert_eq!(recipe.to_json()["matmul_precision"], "bf16");

    let dir = Workdir::new();
    let to = json!({ "second_half": { "ffn_size": 80 } }).to_string();
    let model = compat("rwkv7.safetensors");
    dir.ok(&["grow", &model, "large.safetensors", "--to", &to]);
    let inspected = dir.json(&["inspect", "large.safetensors", "--json"]);
    assert_eq!(inspected["config"]["ffn"]["ffn_size"], 80);
}
