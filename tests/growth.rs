//! `metastate grow` from outside.
#![allow(clippy::unwrap_used)]

mod workdir;

use burn::tensor::{DType, Device};
use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{self, Format},
};
use workdir::{Workdir, golden, train};

#[test]
fn a_trained_model_grows_computes_the_same_and_grows_again() {
    for arch in ["rwkv7", "meta-state"] {
        let dir = Workdir::new();
        let arch = format!("arch={arch}");
        dir.ok(&train(&[
            "--set", "steps=10", "--out", "small", "--set", &arch,
        ]));
        let to = r#"{"n_embd": 48, "n_layer": 3, "gate_rank": 40}"#;
        let report = dir.json(&["grow", "small", "large.safetensors", "--to", to, "--json"]);
        assert!(
            report["difference"]["largest"].as_f64().unwrap() < 1e-4,
            "{report}"
        );
        let config = &dir.json(&["inspect", "large.safetensors", "--json"])["config"];
        assert_eq!(
            (&config["n_embd"], &config["embed_width"]),
            (&48.into(), &32.into())
        );

        let ask = |model| {
            dir.ok(&[
                "generate",
                "--model",
                model,
                "--tokenizer",
                "byte",
                "--prompt",
                "12,",
                "--max-tokens",
                "8",
                "--temperature",
                "0",
            ])
        };
        assert_eq!(ask("small"), ask("large.safetensors"));

        std::fs::write(dir.path("to.json"), r#"{"n_embd": 80}"#).unwrap();
        let again = [
            "grow",
            "large.safetensors",
            "larger.safetensors",
            "--to",
            "to.json",
            "--json",
        ];
        let report = dir.json(&again);
        assert!(
            report["difference"]["largest"].as_f64().unwrap() < 1e-4,
            "{report}"
        );
        assert_eq!(ask("small"), ask("larger.safetensors"));
    }
}

#[test]
fn growth_that_cannot_be_is_refused_and_nothing_is_written() {
    let dir = Workdir::new();
    let model = golden("tiny-b.pth");
    let fails = |to: &str, parts: &[&str]| {
        dir.fails(&["grow", &model, "x.safetensors", "--to", to], parts);
    };
    fails(
        r#"{"n_embd": 16}"#,
        &["n_embd", "is 32", "16 in the target", "only grow"],
    );
    fails(
        r#"{"n_embd": 40}"#,
        &["n_embd", "multiple of head_size = 16"],
    );
    fails(r#"{"head_size": 8}"#, &["head_size", "other slices"]);
    fails(
        r#"{"head_size": 24, "n_embd": 48}"#,
        &["att.ln_x", "32, 48 or another multiple of 16", "--inexact"],
    );
    fails(r#"{"n_heads": 3}"#, &["n_heads"]);
    fails(
        "nowhere.json",
        &["nowhere.json", "no such file", "world-0.1b"],
    );
    fails(
        "150m-meta-state-paper",
        &["meta-state", "rwkv7", "convert --arch"],
    );
    // Every value is scaled where the width grows, and bf16 rounds it; f32, the default, does not.
    dir.fails(
        &[
            "grow",
            &model,
            "x.safetensors",
            "--to",
            r#"{"n_embd": 48}"#,
            "--dtype",
            "bf16",
        ],
        &["not lossless", "--dtype f32"],
    );
    let half = golden("tiny-c.pth");
    dir.ok(&[
        "grow",
        &half,
        "wide.safetensors",
        "--to",
        r#"{"n_embd": 96}"#,
    ]);
    std::fs::remove_file(dir.path("wide.safetensors")).unwrap();
    let copy = dir.path("model.pth");
    std::fs::copy(&model, &copy).unwrap();
    dir.fails(
        &[
            "grow",
            "model.pth",
            "model.pth",
            "--to",
            r#"{"n_layer": 5}"#,
        ],
        &["model.pth", "the model itself"],
    );
    let plan = dir.ok(&[
        "grow",
        &model,
        "x.safetensors",
        "--to",
        r#"{"n_layer": 5}"#,
        "--plan",
    ]);
    assert!(plan.contains("initial values"), "{plan}");
    assert!(!dir.path("x.safetensors").exists());
}

#[test]
fn a_wider_rwkv7_without_a_new_tensor_runs_in_other_software() {
    let dir = Workdir::new();
    let grow = [
        "grow",
        &golden("tiny-b.pth"),
        "wide.safetensors",
        "--to",
        r#"{"n_embd": 64, "head_size": 32}"#,
        "--paired",
        "--json",
    ];
    let report = dir.json(&grow);
    assert!(
        report["difference"]["largest"].as_f64().unwrap() < 1e-4,
        "{report}"
    );
    let config = &dir.json(&["inspect", "wide.safetensors", "--json"])["config"];
    assert!(config.get("embed_width").is_none(), "{config}");
    dir.ok(&["convert", "wide.safetensors", "hf", "--format", "hf"]);
    // A lift is known here and nowhere else.
    let lifted = ["grow", &golden("tiny-b.pth"), "lifted.safetensors", "--to"];
    dir.ok(&[&lifted[..], &[r#"{"n_embd": 48}"#]].concat());
    dir.fails(
        &["convert", "lifted.safetensors", "hf", "--format", "hf"],
        &["a width of its own"],
    );
}

#[test]
fn a_generation_goes_on_in_the_larger_model() {
    let dir = Workdir::new();
    dir.ok(&train(&["--set", "steps=10", "--out", "small"]));
    let ask = |model: &str, more: &[&str]| {
        let ask = ["generate", "--model", model, "--tokenizer", "byte"];
        let ask = [&ask[..], &["--max-tokens", "6", "--temperature", "0"], more];
        dir.ok(&ask.concat())
    };
    ask("small", &["--prompt", "314", "--state-out", "a.state"]);
    let to = r#"{"n_embd": 96, "head_size": 32, "n_layer": 2}"#;
    let grow = ["grow", "small", "large.safetensors", "--to", to];
    let states = ["--state-in", "a.state", "--state-out", "b.state"];
    dir.ok(&[&grow[..], &states].concat());
    let small = ask("small", &["--prompt", "15,", "--state-in", "a.state"]);
    let large = ask(
        "large.safetensors",
        &["--prompt", "15,", "--state-in", "b.state"],
    );
    assert_eq!(small, large);
    let grow = [
        "grow",
        "large.safetensors",
        "x.safetensors",
        "--to",
        r#"{"n_layer": 4}"#,
    ];
    dir.fails(
        &[
            &grow[..],
            &["--state-in", "a.state", "--state-out", "c.state"],
        ]
        .concat(),
        &["a.state"],
    );
}

#[test]
fn methods_are_compared_on_a_text() {
    let dir = Workdir::new();
    dir.ok(&train(&["--set", "steps=10", "--out", "small"]));
    dir.write("text", "31415,51413\n2718,8172\n");
    let kl = |method: &str| {
        let to = r#"{"n_embd": 48, "n_layer": 2}"#;
        let grow = ["grow", "small", "large.safetensors", "--to", to, "--json"];
        let report = dir.json(&[&grow[..], &["--method", method, "--text", "text"]].concat());
        report["difference"]["kl"].as_f64().unwrap()
    };
    assert!((0.0..1e-5).contains(&kl("lossless")));
    for method in ["stack", "paper", "shrink-perturb"] {
        assert!(kl(method) > 1e-3, "{method}");
    }
    let to = r#"{"n_layer": 2}"#;
    let grow = ["grow", "small", "x.safetensors", "--to", to, "--text"];
    dir.fails(&[&grow[..], &["nowhere"]].concat(), &["--text", "nowhere"]);
}

/// Killed in the middle, it leaves the source as it was and nothing under the output's name.
#[test]
fn an_interrupted_growth_leaves_no_half_file() {
    let dir = Workdir::new();
    let model = golden("tiny-b.pth");
    let before = std::fs::read(&model).unwrap();
    let to = r#"{"n_embd": 2048, "n_layer": 12}"#;
    let mut child = dir
        .command(&["grow", &model, "large.safetensors", "--to", to])
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    // Until it writes.
    while dir.files().is_empty() && started.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(child.try_wait().unwrap().is_none(), "it has ended already");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("large.safetensors").exists());
    assert_eq!(std::fs::read(&model).unwrap(), before);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_a_name() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let dir = Workdir::new();
    let [model, output] =
        [b"m\xff.pth", b"o\xff.pth"].map(|name| dir.0.path().join(OsStr::from_bytes(name)));
    let output = output.with_extension("safetensors");
    std::fs::copy(golden("tiny-b.pth"), &model).unwrap();
    for more in [&["--json"][..], &[]] {
        let mut command = dir.command(&["grow", "--to", r#"{"n_layer": 5}"#]);
        let ran = command
            .args(more)
            .arg(&model)
            .arg(&output)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{errors}");
        assert!(output.exists());
    }
}

/// A value that f16 cannot hold becomes infinite there.
#[test]
fn a_growth_never_writes_numbers_that_are_not_finite() {
    let dir = Workdir::new();
    let device = Device::default();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(53, 1, 32)
    };
    let mut model = config.init(&device);
    model.head.weight = model.head.weight.map(|weight| weight.mul_scalar(1e6));
    checkpoint::save(
        &dir.path("a.safetensors"),
        &config,
        &model,
        Format::Official,
        None,
    )
    .unwrap();
    let grow = [
        "grow",
        "a.safetensors",
        "x.safetensors",
        "--to",
        r#"{"n_layer": 2}"#,
        "--no-verify",
    ];
    dir.fails(
        &[&grow[..], &["--dtype", "f16"]].concat(),
        &["head.weight", "f16", "too large"],
    );
    dir.ok(&[&grow[..], &["--dtype", "bf16"]].concat());
}

/// Another dtype would not help, so none is advised.
#[test]
fn logits_that_are_too_large_to_be_compared_are_said_to_be() {
    let dir = Workdir::new();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(53, 1, 32)
    };
    let mut model = config.init(&Device::default());
    model.head.weight = model.head.weight.map(|weight| weight.mul_scalar(1e25));
    checkpoint::save(
        &dir.path("a.safetensors"),
        &config,
        &model,
        Format::Official,
        Some(DType::BF16),
    )
    .unwrap();
    let grow = ["grow", "a.safetensors", "x.safetensors", "--to"];
    dir.fails(
        &[&grow[..], &[r#"{"n_layer": 2}"#]].concat(),
        &["cannot be compared; --no-verify"],
    );
}

#[test]
fn options_of_meta_state_that_cannot_grow_are_refused_with_the_remedy() {
    let dir = Workdir::new();
    let l2 = [
        "--set",
        "steps=5",
        "--out",
        "l2",
        "--set",
        "arch=meta-state",
        "--set",
        "model.meta_state.scale=l2",
        "--set",
        "model.meta_state.oms=shared",
    ];
    dir.ok(&train(&l2));
    let grow = ["grow", "l2", "x.safetensors", "--to"];
    dir.fails(
        &[&grow[..], &[r#"{"n_embd": 48}"#]].concat(),
        &["W_oms", r#"{"ffn": {"oms": "per-head"}}"#],
    );
    let own = r#"{"n_embd": 48, "ffn": {"oms": "per-head"}}"#;
    dir.ok(&[&grow[..], &[own]].concat());
}

#[test]
fn sizes_that_no_memory_holds_are_refused() {
    let dir = Workdir::new();
    let model = golden("tiny-b.pth");
    let fields = [
        "vocab_size",
        "n_layer",
        "n_embd",
        "head_size",
        "gate_rank",
        "value_rank",
        "ffn_size",
        "norm_prefix",
    ];
    for field in fields {
        for size in [
            "0",
            "-1",
            "1e30",
            "4611686018427387904",
            "18446744073709551615",
        ] {
            let to = format!(r#"{{"{field}": {size}}}"#);
            dir.fails(
                &["grow", &model, "x.safetensors", "--to", &to],
                &["error: "],
            );
        }
        let to = format!(r#"{{"{field}": 18446744073709551615}}"#);
        dir.fails(&["grow", &model, "x.safetensors", "--to", &to], &[field]);
    }
}
