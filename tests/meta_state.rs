//! Meta-State models from outside: trained, loaded, made of RWKV-7, and what is refused.
#![allow(clippy::unwrap_used)]

mod workdir;

use std::collections::BTreeMap;

use burn::tensor::Device;
use meta_state::MetaStateConfig;
use rwkv7_core::checkpoint::{self, Checkpoint};
use safetensors::SafeTensors;
use workdir::{Workdir, golden, tensors, train};

const META_STATE: [&str; 2] = ["--set", "arch=meta-state"];

/// Trains ten steps into `out`.
fn trained(dir: &Workdir, out: &str, more: &[&str]) {
    let settings = [&["--set", "steps=10", "--out", out], &META_STATE[..], more].concat();
    dir.ok(&train(&settings));
}

#[test]
fn a_meta_state_model_trains_measures_itself_generates_and_converts() {
    let dir = Workdir::new();
    trained(&dir, "run", &["--set", "diagnostics=true"]);
    let journal = std::fs::read_to_string(dir.path("run/metrics.jsonl")).unwrap();
    let lines = journal.lines();
    let lines: Vec<serde_json::Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
    for split in ["train", "valid"] {
        let line = lines.iter().find(|line| line["split"] == split).unwrap();
        for key in [
            "layer_0_effective_rank",
            "layer_0_cosine_of_neighbours",
            "layer_0_largest_u",
            "layer_0_zeros_in_z",
        ] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
        let rank = line["layer_0_effective_rank"].as_f64().unwrap();
        assert!((1.0..=16.0).contains(&rank), "{line}");
    }

    let inspected = dir.json(&["inspect", "run", "--json"]);
    assert_eq!(inspected["architecture"], "meta-state");
    assert_eq!(inspected["config"]["ffn"]["oms"], "per-head");
    assert_eq!(inspected["parameters"], inspected["stored_values"]);
    assert!(dir.ok(&["inspect", "run"]).contains("meta-state"));

    // The training checkpoint, a Burn record and a file in half precision are the same model.
    let logits = |path: &str| -> Vec<f64> {
        let printed = dir.json(&["logits", "--model", path, "--tokens", "0,49,44", "--json"]);
        let logits = printed["logits"].as_array().unwrap().iter();
        logits.map(|x| x.as_f64().unwrap()).collect()
    };
    let expected = logits("run");
    assert_eq!(logits("run/checkpoints/2/model.bpk"), expected);
    dir.ok(&[
        "convert",
        "run/model.safetensors",
        "again.bpk",
        "--format",
        "burn",
    ]);
    assert_eq!(logits("again.bpk"), expected);
    dir.ok(&[
        "convert",
        "again.bpk",
        "half.safetensors",
        "--dtype",
        "bf16",
    ]);
    let half = logits("half.safetensors");
    assert!(half.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.1));
    assert_ne!(half, expected);

    let ask = [
        "generate",
        "--model",
        "run",
        "--prompt",
        "12,",
        "--max-tokens",
        "5",
    ];
    assert_eq!(dir.ok(&ask), dir.ok(&ask));
    dir.ok(&[&ask[..], &["--state-out", "s.safetensors"]].concat());
    dir.ok(&[&ask[..], &["--state-in", "s.safetensors"]].concat());
    let report = dir.json(&[
        "eval", "--model", "run", "--task", "reverse", "--digits", "5", "--json",
    ]);
    assert_eq!(report["numbers"], 512);

    // A checkpoint of another architecture, and a state of another.
    let path = dir.path("run/model.safetensors");
    let error = checkpoint::load(&path, &Device::default())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("meta-state") && error.contains("rwkv7"),
        "{error}"
    );
    // The official file does not say what it is.
    let official = Checkpoint::open(golden("tiny-b.pth").as_ref()).unwrap();
    let error = official.config::<MetaStateConfig>().unwrap_err();
    let expected = "holds a model of architecture rwkv7, expected meta-state";
    assert!(error.to_string().contains(expected), "{error}");
    dir.fails(
        &[
            "generate",
            "--model",
            &golden("tiny-b.pth"),
            "--tokenizer",
            "byte",
            "--state-in",
            "s.safetensors",
        ],
        &["tokenizer"],
    );
    dir.ok(&train(&["--set", "steps=10", "--out", "rwkv7"]));
    dir.fails(
        &[
            "generate",
            "--model",
            "rwkv7",
            "--prompt",
            "1",
            "--state-in",
            "s.safetensors",
        ],
        &[
            "s.safetensors",
            "`architecture` is meta-state, this model's is rwkv7",
        ],
    );
    // A file in the folder of a model of the other architecture.
    std::fs::copy(golden("tiny-b.pth"), dir.path("run/official.pth")).unwrap();
    let record = dir.path("rwkv7/plain.safetensors");
    let weights = std::fs::read(&path).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    safetensors::serialize_to_file(weights.tensors(), None, &record).unwrap();
    for (file, said, found) in [
        ("run/official.pth", "meta-state", "rwkv7"),
        ("rwkv7/plain.safetensors", "rwkv7", "blocks.0.ms"),
    ] {
        let said = format!("is of architecture {said}");
        dir.fails(&["inspect", file], &[file, "config.json", &said, found]);
    }
    dir.fails(
        &["convert", "run", "x.safetensors", "--arch", "rwkv7"],
        &["meta-state", "rwkv7"],
    );
    // No layer is put in where none is left out.
    let new_layer = ["--meta-state", "paper"];
    let convert = ["convert", "run", "x.safetensors"];
    dir.fails(&[&convert[..], &new_layer].concat(), &["--arch"]);
    dir.fails(
        &[&convert[..], &new_layer, &["--arch", "meta-state"]].concat(),
        &["--meta-state", "keeps its layers"],
    );
    assert!(!dir.path("x.safetensors").exists());
    dir.fails(
        &["convert", "run", "x", "--format", "hf"],
        &["flash-linear-attention", "meta-state"],
    );
}

#[test]
fn a_meta_state_run_goes_on() {
    let dir = Workdir::new();
    trained(&dir, "run", &["--set", "model.meta_state=paper"]);
    let more = [
        "--set",
        "model.meta_state=paper",
        "--out",
        "run",
        "--resume",
    ];
    let more = [&["--set", "steps=15"], &META_STATE[..], &more].concat();
    dir.ok(&train(&more));
    assert!(dir.path("run/checkpoints/3").exists());
    let other = [
        "--set",
        "steps=15",
        "--out",
        "run",
        "--resume",
        "--set",
        "model.meta_state=practical",
    ];
    dir.fails(
        &train(&[&META_STATE[..], &other].concat()),
        &["\"shared\" then, \"per-head\" now"],
    );
}

#[test]
fn an_rwkv7_checkpoint_becomes_a_meta_state_model() {
    let dir = Workdir::new();
    let original = golden("tiny-b.pth");
    let printed = dir.ok(&[
        "convert",
        &original,
        "ms.safetensors",
        "--arch",
        "meta-state",
    ]);
    for part in [
        "dropped: 12 tensors",
        "blocks.3.ffn.value.weight",
        "blocks.0.ms.W_oms",
    ] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let before: BTreeMap<String, Vec<u8>> = tensors(original.as_ref()).into_iter().collect();
    let after: BTreeMap<String, Vec<u8>> =
        tensors(&dir.path("ms.safetensors")).into_iter().collect();
    for (name, bytes) in &after {
        match name.contains(".ms.") {
            true => assert!(bytes.iter().all(|&b| b == 0), "{name}"),
            false => assert_eq!(bytes, &before[name], "{name}"),
        }
    }
    assert_eq!(after.len(), before.len() - 12 + 4);
    dir.json(&[
        "logits",
        "--model",
        "ms.safetensors",
        "--tokens",
        "0,1,2",
        "--json",
    ]);

    let options = r#"{"oms": "shared", "sse": {"low-rank": 4}, "token_shift": true}"#;
    dir.ok(&[
        "convert",
        &original,
        "other.safetensors",
        "--arch",
        "meta-state",
        "--meta-state",
        options,
    ]);
    let inspected = dir.json(&["inspect", "other.safetensors", "--json"]);
    assert_eq!(inspected["config"]["ffn"]["sse"]["low-rank"], 4);
    dir.fails(
        &[
            "convert",
            &original,
            "x",
            "--arch",
            "meta-state",
            "--meta-state",
            r#"{"sse": {"top-left": 17}}"#,
        ],
        &["top-left", "head size 16"],
    );
    dir.fails(
        &[
            "convert",
            &original,
            "x",
            "--arch",
            "meta-state",
            "--meta-state",
            "papers",
        ],
        &["papers", "practical"],
    );
}

/// Other programs drop the metadata in which the configuration is.
#[test]
fn a_file_that_does_not_say_its_configuration_is_refused_or_read_with_the_one_beside_it() {
    let dir = Workdir::new();
    trained(&dir, "run", &[]);
    let bytes = std::fs::read(dir.path("run/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bare = safetensors::serialize(file.tensors(), None).unwrap();
    dir.write("bare.safetensors", bare);
    dir.fails(
        &["inspect", "bare.safetensors"],
        &["bare.safetensors", "config.json"],
    );
    std::fs::copy(dir.path("run/config.json"), dir.path("config.json")).unwrap();
    assert_eq!(
        dir.json(&["inspect", "bare.safetensors", "--json"])["config"],
        dir.json(&["inspect", "run", "--json"])["config"]
    );
}

#[test]
fn the_zoo_is_listed_and_trained_by_name() {
    let dir = Workdir::new();
    let models = dir.json(&["models", "--json"]);
    let models = models.as_array().unwrap();
    let named = |name: &str| models.iter().find(|m| m["name"] == name).unwrap();
    assert_eq!(
        named("150m-meta-state-practical")["parameters"],
        118_083_840
    );
    assert_eq!(named("world-0.1b")["parameters"], 191_034_624);
    dir.fails(
        &["generate", "--model", "150m-rwkv7"],
        &["without weights", "model.preset=150m-rwkv7"],
    );
    for name in ["reverse-rwkv7", "reverse-meta-state"] {
        let ask = [
            "generate",
            "--model",
            name,
            "--prompt",
            "31415,",
            "--temperature",
            "0",
        ];
        assert_eq!(dir.ok(&ask).trim(), "51413", "{name}");
        let eval = [
            "eval", "--model", name, "--task", "reverse", "--digits", "12", "--json",
        ];
        let accuracy = dir.json(&eval)["digit_accuracy"].as_f64().unwrap();
        assert!(accuracy > 0.99, "{name}: {accuracy}");
    }
    // By name, cut down to what a test can train.
    let preset = [
        "--set",
        "model.preset=450m-meta-state-paper",
        "--set",
        "steps=10",
        "--out",
        "run",
    ];
    dir.ok(&train(&preset));
    let config = dir.json(&["inspect", "run", "--json"]);
    assert_eq!(config["architecture"], "meta-state");
    assert_eq!(config["config"]["ffn"]["oms"], "shared");
    dir.fails(
        &train(&["--set", "model.preset=450m", "--out", "x"]),
        &["450m-meta-state-paper", "world-0.1b"],
    );
}

#[test]
fn options_that_make_no_layer_are_refused_before_training() {
    let dir = Workdir::new();
    let fails = |setting: &str, parts: &[&str]| {
        let more = [&META_STATE[..], &["--set", setting, "--out", "x"]].concat();
        dir.fails(&train(&more), parts);
    };
    fails(
        r#"model.meta_state.sse={"top-left":99}"#,
        &["top-left", "99", "head size 16"],
    );
    fails("model.meta_state.omss=shared", &["model.meta_state.oms"]);
    fails("model.meta_state.oms=split", &["split", "per-head"]);
    fails("arch=mamba", &["mamba", "meta-state"]);
    fails(
        "model.head_size=12",
        &["n_embd", "32", "multiple of head_size = 12"],
    );
    let learned = [
        "--set",
        "model.meta_state.sse=learned",
        "--set",
        "model.meta_state.side=key",
        "--out",
        "x",
    ];
    dir.fails(
        &train(&[&META_STATE[..], &learned].concat()),
        &["no state is read"],
    );
}
