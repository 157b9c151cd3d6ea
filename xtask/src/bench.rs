//! `cargo xtask bench`: the operator, whole training steps and generation; beside PyTorch if asked.

use std::{path::PathBuf, process::Command};

use clap::{Args, ValueEnum};
use serde_json::Value;

/// The options of the benchmark.
#[derive(Args)]
pub struct Bench {
    /// A device as `metastate --device` takes it; its cargo feature is switched on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Also run the same with this, and print ratios.
    #[arg(long, value_enum)]
    compare: Option<Other>,
    /// The Python that has torch.
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Leave out the benchmarks of single operations.
    #[arg(long)]
    skip_operator: bool,
    /// Arithmetic of the products with weight matrices; not every device has bf16.
    #[arg(long, value_delimiter = ',', default_values = ["f32", "bf16"])]
    precision: Vec<String>,
    #[arg(long, default_value_t = 6)]
    layers: usize,
    #[arg(long, default_value_t = 512)]
    width: usize,
    #[arg(long, default_value_t = 256)]
    vocab: usize,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 512)]
    time: usize,
    /// Steps measured.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Steps before, not measured.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
}

/// Ours, as the benchmark of a step calls them; ratios are to the first one.
const ARCHITECTURES: [&str; 3] = ["rwkv7", "meta-state", "meta-state-paper"];

/// A program to compare with.
#[derive(Clone, Copy, ValueEnum)]
enum Other {
    /// `xtask/bench/rwkv7_step.py`, eager and with torch.compile, f32 and bf16 autocast.
    Pytorch,
}

/// One line of the table.
struct Row {
    name: String,
    best: f64,
    median: f64,
    memory: f64,
}

impl Bench {
    /// Runs everything and prints the table.
    pub fn run(&self) -> Result<(), String> {
        let feature = self.device.split(':').next().unwrap_or("flex");
        let features = (feature != "flex").then(|| format!("--features={feature}"));
        if !self.skip_operator {
            for bench in ["operator", "products"] {
                let mut command = cargo("rwkv7-core", bench, features.as_deref());
                if feature != "flex" {
                    command.env("BURN_DEVICE", &self.device);
                }
                let status = command.status().map_err(|e| format!("cargo: {e}"))?;
                if !status.success() {
                    return Err(format!("the {bench}'s bench: {status}"));
                }
            }
        }

        let mut rows = Vec::new();
        let mut ours = 0;
        for arch in ARCHITECTURES {
            for precision in &self.precision {
                match self.step(arch, precision, features.as_deref()) {
                    Ok(row) => rows.push(row),
                    // The program has said why: a device without such products, above all.
                    Err(error) if !rows.is_empty() => eprintln!("{precision} is left out: {error}"),
                    Err(error) => return Err(error),
                }
            }
            if arch == ARCHITECTURES[0] {
                ours = rows.len();
            }
        }
        if let Some(Other::Pytorch) = self.compare {
            for (name, options) in [
                ("PyTorch eager f32", &["--dtype", "f32"][..]),
                ("PyTorch compiled f32", &["--dtype", "f32", "--compile"]),
                ("PyTorch compiled bf16", &["--dtype", "bf16", "--compile"]),
            ] {
                rows.push(self.pytorch(name, options)?);
            }
        }
        print(&rows, ours);
        Ok(())
    }

    fn step(&self, arch: &str, precision: &str, features: Option<&str>) -> Result<Row, String> {
        let mut command = cargo("metastate-cli", "training_step", features);
        command.args(["--", "--device", &self.device]);
        command.args(["--arch", arch, "--precision", precision]);
        let json = last_json(command.args(self.sizes()))?;
        let number = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
        Ok(Row {
            name: format!("{arch}, {precision}"),
            best: number("tokens_per_second_best"),
            median: number("tokens_per_second_median"),
            memory: number("peak_memory_bytes"),
        })
    }

    fn pytorch(&self, name: &str, options: &[&str]) -> Result<Row, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/rwkv7_step.py");
        let device = if self.device == "flex" { "cpu" } else { "cuda" };
        let mut command = Command::new(&self.python);
        command.args([script, "--device", device]).args(options);
        let json = last_json(command.args(self.sizes()))?;
        let speed = &json["tokens_per_second"];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        Ok(Row {
            name: name.into(),
            best: number(&speed["best"]),
            median: number(&speed["median"]),
            memory: number(&json["peak_memory_bytes"]),
        })
    }

    /// The sizes as both programs take them.
    fn sizes(&self) -> Vec<String> {
        let sizes = [
            ("--layers", self.layers),
            ("--width", self.width),
            ("--vocab", self.vocab),
            ("--batch", self.batch),
            ("--time", self.time),
            ("--steps", self.steps),
            ("--warmup", self.warmup),
        ];
        let words = sizes.map(|(name, value)| [name.to_string(), value.to_string()]);
        words.into_iter().flatten().collect()
    }
}

fn cargo(package: &str, bench: &str, features: Option<&str>) -> Command {
    let mut command = Command::new("cargo");
    command.args(["bench", "-p", package, "--bench", bench]);
    command.args(features);
    command
}

/// Runs a program and reads the last line of its output as JSON.
fn last_json(command: &mut Command) -> Result<Value, String> {
    eprintln!("\n== {command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|e| format!("{program} printed `{line}`: {e}"))
}

#[allow(clippy::print_stdout)]
fn print(rows: &[Row], ours: usize) {
    print!("\n| | tokens/s, best | median | peak memory, GB |");
    for row in &rows[..ours] {
        print!(" {} / this |", row.name);
    }
    println!("\n|---|---|---|---|{}", "---|".repeat(ours));
    for row in rows {
        let memory = row.memory / 1e9;
        print!(
            "| {} | {:.0} | {:.0} | {memory:.2} |",
            row.name, row.best, row.median
        );
        for ours in &rows[..ours] {
            print!(" {:.2} |", ours.best / row.best);
        }
        println!();
    }
}
