//! The command line from outside: what users type, and what they get when something is wrong.
#![allow(clippy::unwrap_used)]

mod runs;
mod workdir;

use std::io::Write;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{self, Format},
};
use workdir::{Workdir, golden, tensors, train};

#[test]
fn a_trained_model_generates_evaluates_and_converts() {
    let dir = Workdir::new();
    let printed = dir.ok(&train(&["--set", "steps=10"]));
    assert!(
        printed.contains("held-out numbers") && printed.contains("example:"),
        "{printed}"
    );
    let folder = dir.path("runs/reverse");
    for file in [
        "recipe.json",
        "config.json",
        "report.json",
        "metrics.jsonl",
        "model.safetensors",
        "checkpoints/2/model.bpk",
    ] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let line = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.lines().nth(3).unwrap()).unwrap();
    for key in [
        "loss",
        "perplexity",
        "accuracy",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
    ] {
        assert!(line[key].is_number(), "{key} in {line}");
    }

    let inspected = dir.json(&["inspect", "runs/reverse", "--json"]);
    assert_eq!(inspected["config"]["n_embd"], 32);
    assert_eq!(inspected["dtypes"][0], "f32");

    // The training checkpoint is a model too, and the same one.
    let logits = |path: &str| {
        dir.json(&["logits", "--model", path, "--tokens", "0,49,44", "--json"])["logits"].clone()
    };
    assert_eq!(
        logits("runs/reverse"),
        logits("runs/reverse/checkpoints/2/model.bpk")
    );

    let ask = [
        "generate",
        "--model",
        "runs/reverse",
        "--prompt",
        "12,",
        "--max-tokens",
        "5",
        "--seed",
        "3",
    ];
    assert_eq!(dir.ok(&ask), dir.ok(&ask));
    let whole = dir.json(&[&ask[..], &["--json", "--temperature", "0"]].concat());
    // The same in two parts, the state carried in a file.
    dir.ok(&[
        "generate",
        "--model",
        "runs/reverse",
        "--prompt",
        "1",
        "--max-tokens",
        "0",
        "--state-out",
        "s.safetensors",
    ]);
    let second = [
        "generate",
        "--model",
        "runs/reverse",
        "--prompt",
        "2,",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--state-in",
        "s.safetensors",
        "--json",
    ];
    assert_eq!(dir.json(&second)["text"], whole["text"]);

    dir.write(
        "text.txt",
        "Some text to be measured, some text.\n".repeat(20),
    );
    let measured = dir.json(&[
        "eval",
        "--model",
        "runs/reverse",
        "--data",
        "text.txt",
        "--context",
        "64",
        "--json",
    ]);
    let carried = dir.json(&[
        "eval",
        "--model",
        "runs/reverse",
        "--data",
        "text.txt",
        "--context",
        "700",
        "--json",
    ]);
    let (a, b) = (
        measured["loss"].as_f64().unwrap(),
        carried["loss"].as_f64().unwrap(),
    );
    assert!(
        (a - b).abs() < 1e-4 && a > 0.0,
        "{a} and {b}: the state is carried"
    );

    dir.ok(&["convert", "runs/reverse", "hf", "--format", "hf"]);
    dir.ok(&["convert", "hf", "model.bpk", "--format", "burn"]);
    dir.ok(&["convert", "model.bpk", "back.safetensors"]);
    assert!(tensors(&dir.path("back.safetensors")) == tensors(&folder.join("model.safetensors")));
    dir.ok(&["convert", "hf", "half.safetensors", "--dtype", "bf16"]);
    assert_eq!(
        dir.json(&["inspect", "half.safetensors", "--json"])["dtypes"][0],
        "bf16"
    );
}

#[test]
fn text_recipes_read_text() {
    let dir = Workdir::new();
    dir.write(
        "a.txt",
        "the quick brown fox jumps over the lazy dog. ".repeat(60),
    );
    dir.write(
        "b.jsonl",
        "{\"text\": \"one more document, to be or not to be\"}\n".repeat(30),
    );
    let more = [
        "--recipe",
        "text",
        "--data",
        "a.txt",
        "--data",
        "b.jsonl",
        "--set",
        "context=16",
        "--set",
        "steps=5",
    ];
    let accumulate = ["--set", "accumulation=2"];
    let printed = dir.ok(&train(&[&more[..], &accumulate].concat()));
    assert!(
        printed.contains("validation loss") && printed.contains("bits per byte"),
        "{printed}"
    );
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let dir = Workdir::new();
    let run = |out: &'static str, more: &[&'static str]| {
        train(&[&["--set", "steps=30", "--out", out], more].concat())
    };
    dir.ok(&run("whole", &[]));

    let started = Instant::now();
    let mut child = dir
        .command(&run("killed", &[]))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !dir.path("killed/checkpoints/2").exists() {
        assert!(started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path("killed/model.safetensors").exists());

    dir.fails(&run("killed", &[]), &["holds another run", "--resume"]);
    dir.fails(
        &run("killed", &["--resume", "--set", "batch_size=9"]),
        &["batch_size: 8 then, 9 now"],
    );
    dir.ok(&run("killed", &["--resume"]));
    let [killed, whole] =
        ["killed", "whole"].map(|out| tensors(&dir.path(out).join("model.safetensors")));
    let close = killed.iter().zip(&whole).all(|((_, a), (_, b))| {
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect()
        };
        floats(a)
            .iter()
            .zip(floats(b))
            .all(|(a, b)| (a - b).abs() < 1e-5)
    });
    assert!(close, "the resumed run ended elsewhere");
}

#[test]
fn wrong_input_is_named_and_nothing_is_written() {
    let dir = Workdir::new();
    let model = golden("tiny-a.pth");
    dir.write("empty.txt", "");
    dir.write("bytes.txt", b"text\xff\xfe");
    dir.write("short.txt", "abc");
    dir.write("recipe.json", r#"{"task": "text", "stepz": 5}"#);
    dir.write("vocabulary.txt", "this is no vocabulary\n");
    let bytes = std::fs::read(&model).unwrap();
    dir.write("cut.pth", &bytes[..bytes.len() / 2]);
    dir.write("noise.pth", [7_u8; 1000]);
    std::fs::create_dir(dir.path("busy")).unwrap();
    dir.write("busy/something", "");

    let text = |data: &'static str| train(&["--recipe", "text", "--data", data]);
    dir.fails(
        &train(&["--recipe", "revers"]),
        &["revers", "shakespeare-char"],
    );
    dir.fails(
        &train(&["--recipe", "recipe.json"]),
        &["recipe.json", "stepz"],
    );
    dir.fails(
        &train(&["--set", "learning_rate.top=1"]),
        &["learning_rate.top", "learning_rate.peak"],
    );
    dir.fails(&train(&["--set", "steps=0"]), &["`steps` is 0"]);
    dir.fails(
        &train(&["--set", "max_digits=2"]),
        &["`max_digits` is 2", "at least 3"],
    );
    dir.fails(
        &train(&["--set", "model.head_size=7"]),
        &["n_embd", "multiple of head_size = 7"],
    );
    dir.fails(&train(&["--out", "busy"]), &["busy", "another run"]);
    dir.fails(&train(&["--resume"]), &["no run to resume"]);
    dir.fails(&train(&["--recipe", "text"]), &["--data"]);
    dir.fails(&text("nowhere.txt"), &["nowhere.txt"]);
    dir.fails(&text("short.txt"), &["tokens, too few"]);
    dir.fails(
        &train(&[
            "--recipe",
            "text",
            "--data",
            "short.txt",
            "--tokenizer",
            "vocabulary.txt",
        ]),
        &["vocabulary.txt, line 1"],
    );
    dir.fails(
        &train(&["--device", "gpu"]),
        &["unknown device `gpu`", "vulkan"],
    );
    dir.fails(&train(&["--device", "flex:1"]), &["flex:1"]);
    #[cfg(not(feature = "rocm"))]
    dir.fails(
        &train(&["--device", "rocm"]),
        &["not compiled in", "--features rocm"],
    );

    dir.fails(
        &["inspect", "cut.pth"],
        &["cut.pth", "damaged or incomplete"],
    );
    dir.fails(&["inspect", "noise.pth"], &["noise.pth"]);
    dir.fails(
        &["inspect", "nowhere.pth"],
        &["nowhere.pth", "no such file"],
    );
    dir.fails(&["convert", "cut.pth", "out.safetensors"], &["cut.pth"]);
    dir.fails(
        &["logits", "--model", &model, "--tokens", "5,52,53"],
        &["token id 53 at position 2", "vocabulary of 53"],
    );
    dir.fails(
        &["generate", "--model", &model, "--prompt", "a"],
        &["--tokenizer"],
    );
    dir.fails(
        &[
            "generate",
            "--model",
            &model,
            "--tokenizer",
            "byte",
            "--prompt",
            "a",
        ],
        &["ids up to 255", "below 53"],
    );
    dir.fails(
        &[
            "generate",
            "--model",
            &model,
            "--tokenizer",
            "byte",
            "--top-p",
            "2",
        ],
        &["top_p is 2"],
    );
    dir.fails(
        &[
            "eval",
            "--model",
            &model,
            "--data",
            "short.txt",
            "--context",
            "0",
        ],
        &["--context"],
    );
}

/// The custom operation and its neighbours train as plain tensor operations do. With RWKV-7's epsilon of 1e-18 a factor
/// that starts at zero moves by whole steps in the direction of rounding errors: the chunked form and the oracle then differ
/// by 5e-4 as well.
#[test]
fn fifty_steps_have_the_losses_of_the_chunked_form() {
    let losses = |form: &str| -> Vec<f64> {
        let dir = Workdir::new();
        let arguments = train(&["--set", "steps=50", "--set", "optimizer.epsilon=1e-8"]);
        let output = dir.command(&arguments).env("RWKV7_OP", form).output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{form}: {errors}");
        let journal = std::fs::read_to_string(dir.path("runs/reverse/metrics.jsonl")).unwrap();
        let lines = journal
            .lines()
            .map(serde_json::from_str::<serde_json::Value>);
        lines
            .filter_map(|line| line.unwrap()["loss"].as_f64())
            .collect()
    };
    let (found, expected) = (losses("custom"), losses("chunked"));
    assert!(found.len() >= 50 && found.len() == expected.len());
    assert!(found[49] < 0.9 * found[0], "{found:?}");
    for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-4, "step {step}: {a} and {b}");
    }
}

/// The World models have 65,536 logits and their vocabulary 65,530 ids: what has no text is never drawn.
#[test]
fn only_ids_of_the_tokenizer_are_generated() {
    let dir = Workdir::new();
    let path = dir.path("large-vocabulary.safetensors");
    let device = burn::tensor::Device::default();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(2048, 1, 32)
    };
    let network = config.init(&device);
    checkpoint::save(&path, &config, &network, Format::Official, None).unwrap();
    let model = path.to_str().unwrap();
    let printed = dir.json(&[
        "generate",
        "--model",
        model,
        "--tokenizer",
        "byte",
        "--prompt",
        "a",
        "--temperature",
        "10",
        "--max-tokens",
        "64",
        "--json",
    ]);
    assert!(printed["tokens"].as_u64().unwrap() > 8, "{printed}");
}

#[test]
fn text_that_is_no_text_is_refused() {
    let dir = Workdir::new();
    dir.write("empty.txt", "");
    dir.write("bytes.txt", b"text\xff\xfe");
    dir.write("line.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
    for (file, parts) in [
        ("empty.txt", ["empty.txt", "empty"]),
        ("bytes.txt", ["bytes.txt", "byte 4 is not UTF-8"]),
        ("line.jsonl", ["line.jsonl, line 2", "no text under `text`"]),
    ] {
        dir.fails(&train(&["--recipe", "text", "--data", file]), &parts);
    }
}

/// On a file system with no room left, the old file stays and no part of the new one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = Workdir::new();
    let disk = dir.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&disk)
        .output();
    if !mount.is_ok_and(|output| output.status.success()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: mounting a small file system needs root"
        );
        return;
    }
    dir.write("disk/out.safetensors", "the old file");
    let model = golden("tiny-a.pth");
    dir.fails(
        &["convert", &model, "disk/out.safetensors"],
        &["out.safetensors", "cannot be written", "No space"],
    );
    let to = r#"{"n_embd": 128}"#;
    dir.fails(
        &["grow", &model, "disk/out.safetensors", "--to", to],
        &["out.safetensors", "cannot be written", "No space"],
    );
    let train = dir.run(&train(&["--set", "steps=5", "--out", "disk/run"]));
    let kept = std::fs::read(disk.join("out.safetensors")).unwrap();
    let half_written = dir
        .files()
        .iter()
        .any(|f| f.ends_with("run/model.safetensors"));
    assert!(
        Command::new("umount")
            .arg(&disk)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(kept, b"the old file");
    assert!(!train.status.success() && !half_written);
}

/// As with `metastate models | head -1`.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_metastate"))
        .arg("models")
        .stdout(writer)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.is_empty(), "{message}");
}

/// A copy of a model of the zoo as a training run leaves it, in the folder `run`.
fn copied(dir: &Workdir) {
    std::fs::create_dir(dir.path("run")).unwrap();
    for file in ["model.safetensors", "config.json", "recipe.json"] {
        let from = golden(&format!("../../models/reverse-rwkv7/{file}"));
        std::fs::copy(from, dir.path("run").join(file)).unwrap();
    }
}

const ONE_MORE_LAYER: [&str; 2] = ["--to", r#"{"n_layer": 4}"#];

#[test]
fn a_model_is_not_overwritten_with_what_is_made_of_it() {
    let dir = Workdir::new();
    copied(&dir);
    let model = dir.path("run/model.safetensors");
    let before = std::fs::read(&model).unwrap();
    let whole = model.to_str().unwrap();
    let itself = ["model.safetensors", "is the model itself, run"];
    let grow = ["grow", "run", "run/model.safetensors"];
    dir.fails(&[&grow[..], &ONE_MORE_LAYER].concat(), &itself);
    let convert = ["convert", "run/model.safetensors", whole];
    dir.fails(&[&convert[..], &["--dtype", "bf16"]].concat(), &itself);
    let convert = ["convert", "run", "./run/../run/model.safetensors"];
    dir.fails(&[&convert[..], &["--arch", "meta-state"]].concat(), &itself);
    dir.fails(
        &["generate", "--model", "run", "--state-out", whole],
        &itself,
    );
    dir.fails(&["convert", "run", "run"], &["run: is a folder"]);

    let hf = |input, output| ["convert", input, output, "--format", "hf"];
    dir.fails(&hf("reverse-rwkv7", "run"), &["run", "a training run"]);
    std::fs::remove_file(dir.path("run/recipe.json")).unwrap();
    dir.fails(&hf("run", "run"), &["holds the model itself"]);
    dir.fails(&hf(whole, "run/."), &["holds the model itself"]);

    // The files of a model in parts.
    std::fs::rename(&model, dir.path("run/part.safetensors")).unwrap();
    dir.write(
        "run/model.safetensors.index.json",
        r#"{"weight_map": {"emb.weight": "part.safetensors"}}"#,
    );
    dir.fails(
        &["convert", "run", "run/part.safetensors"],
        &["the model itself"],
    );
    let kept = std::fs::read(dir.path("run/part.safetensors")).unwrap();
    assert!(kept == before);
}

#[test]
fn the_name_of_an_output_says_its_format() {
    let dir = Workdir::new();
    for (output, format, parts) in [
        ("x.pth", "blinkdl", ["x.pth", "name it .safetensors"]),
        ("x.bpk", "blinkdl", ["x.bpk", "--format burn"]),
        (
            "x.safetensors",
            "burn",
            ["x.safetensors", "--format blinkdl"],
        ),
        ("x.PT", "hf", ["x.PT", "name a folder"]),
    ] {
        let convert = ["convert", "reverse-rwkv7", output, "--format", format];
        dir.fails(&convert, &parts);
    }
    let grow = ["grow", "reverse-rwkv7", "x.bpk"];
    dir.fails(
        &[&grow[..], &ONE_MORE_LAYER].concat(),
        &["name it .safetensors"],
    );
}

#[test]
fn a_growth_of_nothing_is_refused() {
    let dir = Workdir::new();
    let fails = |model: &str, to: &str, parts: &[&str]| {
        dir.fails(&["grow", model, "x.safetensors", "--to", to], parts);
    };
    let to = r#"{"ffn_size": 300}"#;
    fails(
        "reverse-meta-state",
        to,
        &["nothing would grow", "no `ffn_size`"],
    );
    fails("reverse-rwkv7", "reverse-rwkv7", &["nothing would grow"]);
}

#[test]
fn a_saved_state_goes_on_with_the_next_token() {
    let dir = Workdir::new();
    let ask = |model: &str, tokens: &str, more: &[&str]| {
        let ask = ["generate", "--model", model, "--tokenizer", "byte"];
        let ask = [
            &ask[..],
            &["--temperature", "0", "--max-tokens", tokens],
            more,
        ];
        dir.ok(&ask.concat())
    };
    let prompt = ["--prompt", "31415,"];
    let from = |state| ["--state-in", state];
    for model in ["reverse-rwkv7", "reverse-meta-state"] {
        let out = ["--state-out", "a.st"];
        assert_eq!(ask(model, "2", &[prompt, out].concat()), "51\n");
        assert_eq!(ask(model, "3", &from("a.st")), "413\n");
        // In the larger model too.
        let grow = ["grow", model, "large.safetensors"];
        let states = ["--state-in", "a.st", "--state-out", "b.st"];
        dir.ok(&[&grow[..], &ONE_MORE_LAYER, &states].concat());
        assert_eq!(ask("large.safetensors", "3", &from("b.st")), "413\n");
        // Of a prompt without a token after it.
        ask(model, "0", &[prompt, out].concat());
        assert_eq!(ask(model, "5", &from("a.st")), "51413\n");
        for command in [&grow[..], &["generate", "--model", model]] {
            let more: &[&str] = match command[0] {
                "grow" => &[ONE_MORE_LAYER, from("a.st")].concat(),
                _ => &[],
            };
            let nowhere = ["--state-out", "nodir/b.st"];
            std::fs::remove_file(dir.path("large.safetensors")).ok();
            dir.fails(&[command, more, &nowhere].concat(), &["nodir/b.st"]);
        }
    }

    // A state of an earlier version, without the token.
    let device = burn::tensor::Device::default();
    let path = golden("../../models/reverse-rwkv7/model.safetensors");
    let (config, network) = checkpoint::load(path.as_ref(), &device).unwrap();
    let state = network.zero_state(1, &device);
    state.save(&dir.path("old.st"), &config, None).unwrap();
    let old = [
        "generate",
        "--model",
        "reverse-rwkv7",
        "--state-in",
        "old.st",
    ];
    dir.fails(&old, &["old.st", "--prompt"]);
    ask("reverse-rwkv7", "1", &[prompt, from("old.st")].concat());
}

#[test]
fn numbers_below_zero_are_values() {
    let dir = Workdir::new();
    let ask = ["generate", "--model", "reverse-rwkv7", "--max-tokens", "1"];
    dir.ok(&[&ask[..], &["--prompt", "-5", "--presence-penalty", "-0.5"]].concat());
    dir.fails(
        &[&ask[..], &["--temperature", "-1"]].concat(),
        &["temperature is -1"],
    );
    dir.fails(&["eval", "--model", "reverse-rwkv7"], &["--data"]);
}

#[test]
fn a_recorded_tokenizer_is_found_or_named() {
    let dir = Workdir::new();
    copied(&dir);
    std::fs::create_dir_all(dir.path("run/checkpoints/3")).unwrap();
    let record = "run/checkpoints/3/model.bpk";
    dir.ok(&["convert", "run", record, "--format", "burn"]);
    let ask = |model| ["generate", "--model", model, "--prompt", "1,"];
    assert_eq!(dir.ok(&ask("run")), dir.ok(&ask(record)));
    dir.write("run/recipe.json", r#"{"tokenizer": "old/vocabulary.txt"}"#);
    for model in ["run", record] {
        dir.fails(
            &ask(model),
            &["run/recipe.json", "old/vocabulary.txt", "--tokenizer"],
        );
    }
}

/// As with `2>&1 | head -1`.
#[test]
fn work_is_finished_when_nobody_reads_on() {
    let dir = Workdir::new();
    let closed = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = dir.command(arguments);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        command.status().unwrap().code()
    };
    let grow = ["grow", "reverse-rwkv7", "large.safetensors"];
    assert_eq!(closed(&[&grow[..], &ONE_MORE_LAYER].concat()), Some(0));
    assert!(dir.path("large.safetensors").exists());
    let ask = ["generate", "--model", "reverse-rwkv7", "--prompt", "1,"];
    let ask = [&ask[..], &["--state-out", "a.st"]].concat();
    assert_eq!(closed(&ask), Some(0));
    assert!(dir.path("a.st").exists());
    assert_eq!(closed(&["inspect", "nowhere"]), Some(1));
}

#[test]
fn numbers_below_zero_are_refused_with_the_range() {
    let dir = Workdir::new();
    let generate = |option, value| ["generate", "--model", "reverse-rwkv7", option, value];
    let whole = "expected a whole number from 0";
    for (option, value) in [
        ("--seed", "-1"),
        ("--seed", "99999999999999999999"),
        ("--max-tokens", "-1"),
        ("--top-k", "-2"),
    ] {
        dir.fails(&generate(option, value), &[option, value, whole]);
    }
    for tokens in ["-1", "1,-2", "-1,2", "1,4294967296", "1,,2"] {
        let logits = ["logits", "--model", "reverse-rwkv7", "--tokens", tokens];
        dir.fails(&logits, &["--tokens", whole]);
    }
    let eval = ["eval", "--model", "reverse-rwkv7", "--data", "x"];
    for (option, value) in [("--context", "-1"), ("--digits", "-3")] {
        dir.fails(
            &[&eval[..], &[option, value]].concat(),
            &[option, value, "invalid value"],
        );
    }
}

/// A long text is not lost because the state has no place.
#[cfg(target_os = "linux")]
#[test]
fn a_state_that_cannot_be_written_is_refused_before_the_text() {
    let dir = Workdir::new();
    let output = dir.run(&[
        "generate",
        "--model",
        "reverse-rwkv7",
        "--prompt",
        "12,",
        "--state-out",
        "/proc/a.state",
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(
        errors.contains("/proc/a.state: no file can be written"),
        "{errors}"
    );
}

#[test]
fn an_error_is_said_once() {
    let dir = Workdir::new();
    let grow = [
        "grow",
        "reverse-rwkv7",
        "x.safetensors",
        "--to",
        r#"{"n_embd": 100}"#,
    ];
    let errors = String::from_utf8(dir.run(&grow).stderr).unwrap();
    assert_eq!(
        errors.matches("multiple of head_size").count(),
        1,
        "{errors}"
    );
}

#[test]
fn the_list_of_models_has_the_parameters_beside_the_names() {
    let printed = Workdir::new().ok(&["models"]);
    let beside = |name: &str, count: &str| {
        let mut lines = printed.lines().map(str::split_whitespace);
        let line = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words));
        assert_eq!(line.unwrap().next(), Some(count), "{printed}");
    };
    beside("1.5b-meta-state-paper", "504,402,432");
    beside("reverse-rwkv7", "162,368");
}

#[test]
fn the_help_names_every_recipe() {
    let help = Workdir::new().ok(&["train", "--help"]);
    for name in recipes::Recipe::built_in() {
        assert!(help.contains(name), "{name}: {help}");
    }
}
