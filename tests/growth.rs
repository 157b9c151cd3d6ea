//! `metastate grow` from outside.
#![allow(clippy::unwrap_used)]

mod place;

use place::{Place, golden, train};

#[test]
fn a_trained_model_grows_computes_the_same_and_grows_again() {
    for arch in ["rwkv7", "meta-state"] {
        let place = Place::new();
        let arch = format!("arch={arch}");
        place.ok(&train(&[
            "--set", "steps=10", "--out", "small", "--set", &arch,
        ]));
        let to = r#"{"n_embd": 48, "n_layer": 3, "gate_rank": 40}"#;
        let report = place.json(&["grow", "small", "large.safetensors", "--to", to, "--json"]);
        assert!(
            report["difference"]["largest"].as_f64().unwrap() < 1e-4,
            "{report}"
        );
        let config = &place.json(&["inspect", "large.safetensors", "--json"])["config"];
        assert_eq!(
            (&config["n_embd"], &config["embed_width"]),
            (&48.into(), &32.into())
        );

        let ask = |model| {
            place.ok(&[
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

        std::fs::write(place.path("to.json"), r#"{"n_embd": 80}"#).unwrap();
        let again = [
            "grow",
            "large.safetensors",
            "larger.safetensors",
            "--to",
            "to.json",
            "--json",
        ];
        let report = place.json(&again);
        assert!(
            report["difference"]["largest"].as_f64().unwrap() < 1e-4,
            "{report}"
        );
        assert_eq!(ask("small"), ask("larger.safetensors"));
    }
}

#[test]
fn growth_that_cannot_be_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let model = golden("tiny-b.pth");
    let fails = |to: &str, parts: &[&str]| {
        place.fails(&["grow", &model, "x.safetensors", "--to", to], parts);
    };
    fails(
        r#"{"n_embd": 16}"#,
        &["n_embd", "is 32", "16 in the target", "only grow"],
    );
    fails(
        r#"{"n_embd": 40}"#,
        &["n_embd", "multiple of head_size = 16"],
    );
    fails(r#"{"head_size": 32}"#, &["head_size", "number of heads"]);
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
    place.fails(
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
    place.ok(&[
        "grow",
        &half,
        "wide.safetensors",
        "--to",
        r#"{"n_embd": 96}"#,
    ]);
    std::fs::remove_file(place.path("wide.safetensors")).unwrap();
    let plan = place.ok(&[
        "grow",
        &model,
        "x.safetensors",
        "--to",
        r#"{"n_layer": 5}"#,
        "--plan",
    ]);
    assert!(plan.contains("initial values"), "{plan}");
    assert!(!place.path("x.safetensors").exists());
}
