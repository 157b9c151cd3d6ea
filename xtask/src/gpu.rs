//! `cargo xtask gpu`: what a machine with a GPU needs, in one folder, with one script that runs all of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Args;
use serde_json::Value;

/// The script beside the programs.
const SCRIPT: &str = include_str!("../gpu/run.sh");

/// The programs of the folder: the name of cargo's target, its kind, and the name in the folder.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("metastate", "bin", "metastate"),
    ("training_step", "bench", "training_step"),
    ("operator", "bench", "operator"),
    ("rwkv7_core", "lib", "tests"),
];

/// The options.
#[derive(Args)]
pub struct Gpu {
    /// Backends, as cargo's features.
    #[arg(long, value_delimiter = ',', default_values = ["cuda", "vulkan"])]
    features: Vec<String>,
    /// The folder to make.
    #[arg(long, value_name = "DIR", default_value = "target/gpu")]
    out: PathBuf,
    /// Build CUDA on a machine that cannot download LLVM: kernels go through CUDA C++ and NVRTC then. For measuring only.
    #[arg(long)]
    without_llvm: bool,
    /// Build without optimisation, to try the script.
    #[arg(long)]
    debug: bool,
}

impl Gpu {
    /// Builds the programs and copies them.
    pub fn run(&self) -> Result<(), String> {
        fs::create_dir_all(&self.out).map_err(|e| format!("{}: {e}", self.out.display()))?;
        let programs = self.build(&["build", "--bin", "metastate", "--benches"])?;
        let tests = self.build(&["test", "--no-run", "--lib"])?;
        for (target, kind, name) in PROGRAMS {
            let found = programs.iter().chain(&tests).find(|program| {
                // Of `metastate` there is a test program of the same name.
                let wanted = kind != "bin" || !program.is_test;
                program.target == target && program.kind == kind && wanted
            });
            let found = found.ok_or_else(|| format!("cargo built no {kind} {target}"))?;
            copy(&found.file, &self.out.join(name))?;
        }
        let script = self.out.join("run.sh");
        fs::write(&script, SCRIPT).map_err(|e| format!("{}: {e}", script.display()))?;
        eprintln!(
            "{} is complete; on the machine with the GPU: bash run.sh {}",
            self.out.display(),
            self.features.first().map_or("flex", String::as_str)
        );
        Ok(())
    }

    /// Runs cargo and says what it made.
    fn build(&self, words: &[&str]) -> Result<Vec<Program>, String> {
        let mut features = self.features.clone();
        let mut command = Command::new(env!("CARGO"));
        if self.without_llvm {
            // LLVM's functions are never called; the linker must not look for them.
            let flags = "-C link-arg=-Wl,--unresolved-symbols=ignore-all -C relro-level=off";
            command.env("DOCS_RS", "1").env("RUSTFLAGS", flags);
            features.push("cuda-nvrtc".into());
        }
        command
            .args(words)
            .args(["-p", "rwkv7-core", "-p", "metastate-cli"]);
        command.arg(format!("--features={}", features.join(",")));
        command.arg("--message-format=json-render-diagnostics");
        if !self.debug {
            command.arg("--release");
        }
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| format!("cargo: {e}"))?;
        if !output.status.success() {
            return Err(format!("cargo {}: {}", words.join(" "), output.status));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(Program::from_message).collect())
    }
}

/// A program that cargo built.
struct Program {
    target: String,
    kind: String,
    is_test: bool,
    file: PathBuf,
}

impl Program {
    /// From a line of cargo's messages, if the line tells of a program.
    fn from_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        Some(Self {
            file: message["executable"].as_str()?.into(),
            target: target["name"].as_str()?.into(),
            kind: target["kind"][0].as_str()?.into(),
            is_test: message["profile"]["test"].as_bool()?,
        })
    }
}

/// Copies a program and keeps its right to be run.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|e| format!("{} to {}: {e}", from.display(), to.display()))
}
