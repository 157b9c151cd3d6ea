//! A folder in which tests run the command line.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rwkv7_core::checkpoint::Checkpoint;
use tempfile::TempDir;

pub fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name);
    path.to_str().unwrap().to_string()
}

/// A folder to work in, which also holds the cache.
pub struct Workdir(pub TempDir);

impl Workdir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metastate"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// A command that must fail, say all of `parts` and write nothing; the cache of tokenized text does not count.
    pub fn fails(&self, arguments: &[&str], parts: &[&str]) {
        let before = self.files();
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
        for part in parts {
            assert!(
                errors.contains(part),
                "{arguments:?}: `{part}` is not in: {errors}"
            );
        }
        assert_eq!(self.files(), before, "{arguments:?} wrote something");
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if !path.is_dir() {
                    found.push(path);
                } else if !path.ends_with("cache") {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// A run small enough for a test: one layer, a few steps.
const SMALL: [&str; 8] = [
    "model.n_layer=1",
    "model.n_embd=32",
    "model.head_size=16",
    "batch_size=8",
    "steps_per_epoch=5",
    "validation_batches=2",
    "max_digits=4",
    "learning_rate.warmup_steps=2",
];

pub fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let small = SMALL.iter().flat_map(|setting| ["--set", setting]);
    ["train", "--no-tui"]
        .into_iter()
        .chain(small)
        .chain(more.iter().copied())
        .collect()
}

pub fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let all = Checkpoint::open(path).unwrap().read_all().unwrap();
    all.into_iter()
        .map(|(name, data)| (name, data.as_bytes().to_vec()))
        .collect()
}
