//! Texts and tokenizers from outside: what a user gives, and what the program makes of it.
#![allow(clippy::unwrap_used)]

mod workdir;

use std::{io::Write, process::Stdio};

use workdir::Workdir;

const EVAL: [&str; 5] = ["eval", "--model", "reverse-rwkv7", "--json", "--data"];

/// A tokenizer with fewer ids than the model, so that nothing but the word of the program tells that it is a wrong one.
const WORDS: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "a"}}"#;

#[test]
fn another_tokenizer_than_the_models_is_said() {
    let dir = Workdir::new();
    dir.write("a.txt", "a a a a");
    dir.write("words.json", WORDS);
    let output = dir.run(&[&EVAL[..], &["a.txt", "--tokenizer", "words.json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for part in [
        "truncation to 1 tokens is switched off",
        "`words.json` is not `byte`",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(measured["tokens"], 5, "four words and the end of the text");
    let output = dir.run(&[&EVAL[..], &["a.txt", "--tokenizer", "byte"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("is not"),
        "{said}"
    );
}

/// Published tokenizers are larger than any recipe.
#[test]
fn a_large_tokenizer_in_the_folder_of_a_run_is_found() {
    let dir = Workdir::new();
    std::fs::create_dir(dir.path("run")).unwrap();
    dir.ok(&["convert", "reverse-rwkv7", "run/model.safetensors"]);
    dir.write("run/recipe.json", r#"{"tokenizer": "other/words.json"}"#);
    let large = format!("{WORDS}{}", " ".repeat(17 << 20));
    dir.write("run/tokenizer.json", large);
    dir.write("a.txt", "a a a a");
    let model = "run/model.safetensors";
    let measured = dir.json(&["eval", "--model", model, "--json", "--data", "a.txt"]);
    assert_eq!(measured["tokens"], 5, "four words and the end of the text");
}

#[test]
fn files_of_a_folder_that_are_left_out_are_counted() {
    let dir = Workdir::new();
    std::fs::create_dir(dir.path("texts")).unwrap();
    for name in ["A.TXT", "b.csv", "c.bin"] {
        dir.write(&format!("texts/{name}"), "some text");
    }
    let output = dir.run(&[&EVAL[..], &["texts"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("texts: read 1 of 3 files; left out, for example, texts/b.csv"),
        "{said}"
    );
    dir.fails(
        &[&EVAL[..], &["texts/b.csv"]].concat(),
        &["texts/b.csv", "is no plain text"],
    );
}

#[cfg(unix)]
#[test]
fn a_text_may_come_through_a_pipe() {
    let dir = Workdir::new();
    let mut command = dir.command(&[&EVAL[..], &["/dev/stdin"]].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"12345").unwrap();
    let output = child.wait_with_output().unwrap();
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(measured["tokens"], 6);
}

#[test]
fn tokenized_texts_are_shown_and_cleared() {
    let dir = Workdir::new();
    let files = || {
        dir.json(&["cache", "--json"])["files"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(files(), 0);
    dir.write("a.txt", "some text");
    dir.write("b.txt", "other text");
    for name in ["a.txt", "b.txt", "a.txt"] {
        dir.ok(&[&EVAL[..], &[name]].concat());
    }
    assert_eq!(files(), 2);
    // A process that was killed left this.
    dir.write("cache/metastate/.incomplete-x", "half");
    dir.ok(&[&EVAL[..], &["a.txt"]].concat());
    assert!(!dir.path("cache/metastate/.incomplete-x").exists());
    let shown = dir.ok(&["cache"]);
    assert!(
        shown.contains("token files: 2,") && shown.contains("minute ago"),
        "{shown}"
    );
    assert_eq!(dir.json(&["cache", "--clear", "--json"])["removed"], 2);
    assert_eq!(files(), 0);
}
