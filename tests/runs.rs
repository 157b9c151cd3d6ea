//! The folder of a training run, from outside.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::workdir::{Workdir, tensors, train};

/// A vocabulary of single bytes in the form of RWKV's World, id `byte + 1`, where these two bytes have changed places.
fn vocabulary(exchanged: [u8; 2]) -> String {
    let of = |byte: u8| match exchanged {
        [a, b] if byte == a => b,
        [a, b] if byte == b => a,
        _ => byte,
    };
    let line = |byte: u8| format!("{} b'\\x{:02x}' 1\n", usize::from(byte) + 1, of(byte));
    (0..=255).map(line).collect()
}

/// A run that reads a text with a vocabulary, in the folder `in/run`, whose data and vocabulary have relative paths.
fn text_run<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let text = [
        "--recipe",
        "text",
        "--data",
        "text.txt",
        "--tokenizer",
        "vocabulary.txt",
        "--set",
        "context=16",
        "--out",
        "run",
    ];
    train(&[&text[..], more].concat())
}

fn prepared() -> Workdir {
    let dir = Workdir::new();
    for folder in ["in", "other"] {
        fs::create_dir(dir.path(folder)).unwrap();
    }
    dir.write(
        "in/text.txt",
        "the quick brown fox jumps over the lazy dog. ".repeat(60),
    );
    dir.write("in/vocabulary.txt", vocabulary([0, 1]));
    // Files of the same names that are others.
    dir.write(
        "other/text.txt",
        "how quickly daft jumping zebras vex. ".repeat(90),
    );
    dir.write("other/vocabulary.txt", vocabulary([b'e', b'o']));
    dir
}

/// Runs a command in a folder; its error, or none if it succeeded.
fn error_in(dir: &Workdir, folder: &str, arguments: &[&str]) -> Option<String> {
    let output = dir
        .command(arguments)
        .current_dir(dir.path(folder))
        .output();
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!errors.contains("panicked"), "{errors}");
    (!output.status.success()).then_some(errors)
}

#[test]
fn a_run_goes_on_with_its_own_data_and_tokenizer_alone() {
    let dir = prepared();
    let run = |folder: &str, more: &[&str]| error_in(&dir, folder, &text_run(more));
    assert_eq!(run("in", &["--set", "steps=5"]), None);
    let more = ["--set", "steps=10", "--resume"];
    let refused = |folder: &str, more: &[&str], parts: &[&str]| {
        let error = run(folder, more).unwrap();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    };

    // From another folder, where other files have these names.
    let there = ["--out", "../in/run"];
    let more_there = [&more[..], &there].concat();
    let one = |tokenizer: &'static str, data: &'static str| {
        let recipe = ["--recipe", "text", "--data", data, "--tokenizer", tokenizer];
        train(&[&recipe[..], &["--set", "context=16"], &more_there].concat())
    };
    let error = error_in(&dir, "other", &one("../in/vocabulary.txt", "text.txt")).unwrap();
    assert!(
        error.contains("run.json") && error.contains("the data of the run was"),
        "{error}"
    );
    let error = error_in(&dir, "other", &one("vocabulary.txt", "../in/text.txt")).unwrap();
    assert!(error.contains("the tokenizer of the run was"), "{error}");

    // The files were changed in their places.
    let text = fs::read_to_string(dir.path("in/text.txt")).unwrap();
    dir.write("in/text.txt", text.replacen("quick", "quack", 1));
    refused("in", &more, &["the data of the run was"]);
    dir.write("in/text.txt", &text);
    dir.write("in/vocabulary.txt", vocabulary([b'e', b'o']));
    refused("in", &more, &["the tokenizer of the run was"]);

    // They have moved and are the same.
    dir.write("in/vocabulary.txt", vocabulary([0, 1]));
    fs::rename(dir.path("in/text.txt"), dir.path("moved.txt")).unwrap();
    let moved = one("../in/vocabulary.txt", "../moved.txt");
    assert_eq!(error_in(&dir, "other", &moved), None);
}

#[test]
fn a_run_is_used_from_any_folder_and_opens_no_file_outside() {
    let dir = prepared();
    assert_eq!(error_in(&dir, "in", &text_run(&["--set", "steps=5"])), None);
    let generate = |folder: &str, model: &str| {
        let ask = [
            "generate",
            "--model",
            model,
            "--prompt",
            "the ",
            "--max-tokens",
            "8",
        ];
        let ask = [&ask[..], &["--temperature", "0"]].concat();
        let output = dir
            .command(&ask)
            .current_dir(dir.path(folder))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let here = generate("in", "run").0;
    assert!(!here.is_empty());
    assert_eq!(generate("other", "../in/run").0, here);
    let resume = [
        "--recipe",
        "../in/run/recipe.json",
        "--out",
        "../in/run",
        "--resume",
    ];
    let resume = [&["train", "--no-tui"][..], &resume].concat();
    assert_eq!(error_in(&dir, "other", &resume), None);

    // As downloaded from somebody: the path that the recipe names may be anything.
    fs::remove_file(dir.path("in/run/vocabulary.txt")).unwrap();
    let (text, error) = generate("in", "run");
    assert_eq!(text, "");
    for part in ["in/vocabulary.txt", "no copy", "--tokenizer"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_second_process_in_the_folder_is_refused_and_harms_nothing() {
    let dir = Workdir::new();
    let run = |out: &'static str, more: &[&'static str]| {
        train(
            &[
                &[
                    "--set",
                    "steps=200",
                    "--set",
                    "steps_per_epoch=20",
                    "--out",
                    out,
                ],
                more,
            ]
            .concat(),
        )
    };
    dir.ok(&run("whole", &[]));
    let mut child = dir
        .command(&run("shared", &[]))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !dir.path("shared/checkpoints/1").exists() {
        assert!(started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut refused = 0;
    for more in [&["--resume"][..], &[], &["--resume"]] {
        let output = dir.run(&run("shared", more));
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains(&format!("process {}", child.id())) && errors.contains("--out") {
            refused += 1;
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(refused > 0, "no second process came in time");
    let read = |out: &str| {
        let metrics = fs::read_to_string(dir.path(out).join("metrics.jsonl")).unwrap();
        (
            metrics.lines().count(),
            tensors(&dir.path(out).join("model.safetensors")),
        )
    };
    assert!(read("shared") == read("whole"));
}

#[test]
fn what_killed_runs_left_is_removed() {
    let dir = Workdir::new();
    let run = train(&["--set", "steps=5", "--out", "run", "--resume"]);
    dir.ok(&train(&["--set", "steps=5", "--out", "run"]));
    for name in [
        ".incomplete-abc",
        "checkpoints/.incomplete-def",
        "checkpoints/1/.incomplete-ghi",
    ] {
        dir.write(&format!("run/{name}"), "half");
    }
    fs::create_dir(dir.path("run/checkpoints/2.incomplete")).unwrap();
    dir.ok(&run);
    let left = dir.files();
    let unfinished = |path: &&std::path::PathBuf| path.to_string_lossy().contains("incomplete");
    assert_eq!(left.iter().find(unfinished), None);
    assert!(!dir.path("run/checkpoints/2.incomplete").exists());
}

#[test]
fn numbers_that_no_machine_can_hold_are_refused_before_anything_is_written() {
    let dir = Workdir::new();
    for setting in [
        "model.n_layer=18446744073709551615",
        "model.vocab_size=18446744073709551615",
        "model.decay_rank=18446744073709551615",
        "model.value_rank=18446744073709551615",
        "model.ffn_size=18446744073709551615",
        "model.n_layer=100000000",
        "batch_size=1000000000",
        "batch_size=18446744073709551615",
        "max_digits=18446744073709551615",
        "steps=18446744073709551615",
        "keep_checkpoints=0",
    ] {
        let key = setting.split('=').next().unwrap();
        dir.fails(&train(&["--out", "run", "--set", setting]), &[key]);
        assert!(!dir.path("run").exists(), "{setting}");
    }
    let grow = r#"grow=[{"after":5,"to":{"n_embd":65536}}]"#;
    dir.fails(&train(&["--out", "run", "--set", grow]), &["memory"]);
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_refused_or_written_in_other_letters() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let dir = Workdir::new();
    let name = OsStr::from_bytes(b"odd\xff");
    let mut command = dir.command(&train(&["--set", "steps=5", "--out"]));
    let output = command.arg(name).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(dir.0.path().join(name).join("report.json").is_file());

    let data = Path::new(OsStr::from_bytes(b"text\xff.txt"));
    fs::write(dir.0.path().join(data), "abc ".repeat(500)).unwrap();
    let mut command = dir.command(&train(&["--recipe", "text", "--out", "run", "--data"]));
    let output = command.arg(data).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && !errors.contains("panicked"),
        "{errors}"
    );
    assert!(
        errors.contains("`data`") && errors.contains("UTF-8"),
        "{errors}"
    );
    assert!(!dir.path("run").exists());
}
