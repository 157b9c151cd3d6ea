//! Checks and measurements for people who work on this repository: `cargo xtask ci`, `cargo xtask bench`,
//! `cargo xtask study`, `cargo xtask growth`, `cargo xtask fuzz`.

#![allow(clippy::print_stderr)]

mod bench;
mod study;

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks and measurements for people who work on this repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs what `.ci/run` runs: formatting, lints, tests on the CPU and on WGPU, the CUDA type-check, the docs.
    Ci {
        /// Leaves out the tests on WGPU, for machines without an adapter.
        #[arg(long)]
        skip_wgpu: bool,
    },
    /// Measures the operator and whole training steps.
    Bench(bench::Bench),
    /// Trains RWKV-7, Meta-State and its options by the same recipes, and compares them.
    Study(study::MetaState),
    /// Trains small models that grow, and compares them with large ones from scratch.
    Growth(study::Growth),
    /// Gives damaged files to the loaders of models, states and configurations, as the test `fuzz` does, and many more of them.
    Fuzz {
        /// Number of files.
        #[arg(default_value_t = 100_000)]
        files: usize,
    },
}

/// A check: its name, the environment that it needs, its command.
type Check<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

// Type-checks, lints and documentation share one set of features, all tests another, so that Burn is compiled once for each.
// DOCS_RS type-checks the CUDA code without the LLVM download that building it needs.
const CHECKS: &[Check] = &[
    ("formatting", &[], "cargo fmt --all -- --check"),
    (
        "formatting of own-model",
        &[],
        "cargo fmt --manifest-path examples/own-model/Cargo.toml -- --check",
    ),
    (
        "lints, with CUDA and Vulkan",
        &[("DOCS_RS", "1")],
        "cargo clippy --workspace --all-targets --features cuda,vulkan -- -D warnings",
    ),
    (
        "API documentation",
        &[("DOCS_RS", "1"), ("RUSTDOCFLAGS", "-D warnings")],
        "cargo doc --workspace --no-deps --features cuda,vulkan",
    ),
    (
        "lints of the layers alone, without a backend",
        &[],
        "cargo clippy -p rwkv7-core --no-default-features -- -D warnings",
    ),
    (
        "build of the tests",
        &[],
        "cargo test --workspace --features wgpu --no-run",
    ),
    (
        "tests on the CPU",
        &[("BURN_DEVICE", "flex")],
        "cargo test --workspace --features wgpu",
    ),
    (
        "own-model, a project that uses the libraries",
        &[("BURN_DEVICE", "flex")],
        "cargo run --locked --features wgpu --manifest-path examples/own-model/Cargo.toml --target-dir target",
    ),
];

// The kernels of the feature `wgpu` are WGSL. Mesa's software driver crashes on the SPIR-V of the feature `vulkan`. Each check
// is one process, because a software driver takes long to compile a kernel.
const WGPU: &[Check] = &[
    (
        "operations and models on WGPU",
        &[
            ("BURN_DEVICE", "wgpu"),
            ("CUBECL_AUTOTUNE_LEVEL", "minimal"),
        ],
        "cargo test --workspace --features wgpu --lib -- ops::tests::custom ops::tests::fused ops::tests::loss ops::tests::parameters model::tests::step_and model::tests::padding",
    ),
    (
        "operations on WGPU as in a browser, without fusion",
        &[
            ("BURN_DEVICE", "wgpu"),
            ("CUBECL_AUTOTUNE_LEVEL", "minimal"),
            ("RWKV7_OP", "packed"),
            ("BURN_FUSION_MAX_EXPLORATIONS", "0"),
        ],
        "cargo test --workspace --features wgpu --lib -- ops::tests::custom ops::tests::fused ops::tests::loss ops::tests::parameters",
    ),
    (
        "WGPU against the CPU",
        &[
            ("BURN_DEVICE", "wgpu"),
            ("CUBECL_AUTOTUNE_LEVEL", "minimal"),
        ],
        "cargo test --workspace --features wgpu --test devices --test launches",
    ),
];

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Ci { skip_wgpu } => return ci(skip_wgpu),
        Task::Bench(bench) => bench.run(),
        Task::Study(study) => study.run(),
        Task::Growth(growth) => growth.run(),
        Task::Fuzz { files } => return fuzz(files),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the checks until one fails, then prints the seconds that each took.
fn ci(skip_wgpu: bool) -> ExitCode {
    let wgpu = if skip_wgpu { &[] } else { WGPU };
    let mut times = Vec::new();
    let passed = CHECKS.iter().chain(wgpu).all(|check| {
        let started = Instant::now();
        let passed = run(check);
        times.push((check.0, started.elapsed().as_secs()));
        passed
    });
    eprintln!("\n| check | seconds |\n|---|---|");
    for (name, seconds) in &times {
        eprintln!("| {name} | {seconds} |");
    }
    let total: u64 = times.iter().map(|(_, seconds)| seconds).sum();
    eprintln!("| together | {total} |");
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the test of damaged files on this many of them.
fn fuzz(files: usize) -> ExitCode {
    let passed = run(&(
        "damaged files",
        &[
            ("BURN_DEVICE", "flex"),
            ("METASTATE_FUZZ", &files.to_string()),
        ],
        "cargo test --workspace --features wgpu --test fuzz",
    ));
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a check and says whether it passed.
fn run((name, environment, command): &Check) -> bool {
    eprintln!("\n== {name}: {command}");
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .envs(environment.iter().copied())
        .status();
    match status {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("{name}: {status}");
            false
        }
        Err(error) => {
            eprintln!("{name}: {command}: {error}");
            false
        }
    }
}
