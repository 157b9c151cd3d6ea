//! Checks and measurements for people who work on this repository: `cargo xtask ci`, `cargo xtask bench`,
//! `cargo xtask study`, `cargo xtask growth`.

mod bench;
mod study;

use std::process::{Command, ExitCode};

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
}

/// A check: what it is for, the environment it needs, the command.
type Check = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

const LINTS_AND_TESTS: &[Check] = &[
    ("formatting", &[], "cargo fmt --all -- --check"),
    // DOCS_RS: type-checks the CUDA code without the LLVM download that building it needs.
    (
        "lints, with every GPU backend",
        &[("DOCS_RS", "1")],
        "cargo clippy --workspace --all-targets --features cuda,vulkan -- -D warnings",
    ),
    (
        "the libraries without any backend",
        &[],
        "cargo clippy -p rwkv7-core -p recipes --no-default-features -- -D warnings",
    ),
    ("tests on the CPU", &[], "cargo test --workspace"),
];

const WGPU_ENVIRONMENT: &[(&str, &str)] = &[
    ("BURN_DEVICE", "wgpu"),
    ("CUBECL_AUTOTUNE_LEVEL", "minimal"),
];

// WGSL, not the SPIR-V of the feature `vulkan`, which Mesa 22's software driver crashes on. Each in one process, as a
// software driver takes long to compile a kernel.
const WGPU: &[Check] = &[
    (
        "custom operation and model on WGPU",
        WGPU_ENVIRONMENT,
        "cargo test --workspace --features wgpu --lib -- operator::tests::custom model::tests",
    ),
    (
        "custom operation as in a browser, without fusion, on WGPU",
        &[
            ("BURN_DEVICE", "wgpu"),
            ("CUBECL_AUTOTUNE_LEVEL", "minimal"),
            ("RWKV7_OPERATOR", "packed"),
            ("BURN_FUSION_MAX_EXPLORATIONS", "0"),
        ],
        "cargo test --workspace --features wgpu --lib -- operator::tests::custom",
    ),
    (
        "WGPU against the CPU",
        WGPU_ENVIRONMENT,
        "cargo test --workspace --features wgpu --test devices",
    ),
];

// With the workspace's build folder, as it has most of what the project needs.
const EXAMPLE: &[Check] = &[
    (
        "formatting of the example",
        &[],
        "cargo fmt --manifest-path examples/own-model/Cargo.toml -- --check",
    ),
    (
        "a project of its own that uses the libraries",
        &[("BURN_DEVICE", "flex")],
        "cargo run --locked --manifest-path examples/own-model/Cargo.toml --target-dir target",
    ),
];

const DOCS: &[Check] = &[(
    "API documentation",
    &[("RUSTDOCFLAGS", "-D warnings"), ("DOCS_RS", "1")],
    "cargo doc --workspace --no-deps --features cuda,vulkan",
)];

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Ci { skip_wgpu } => return ci(skip_wgpu),
        Task::Bench(bench) => bench.run(),
        Task::Study(study) => study.run(),
        Task::Growth(growth) => growth.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ci(skip_wgpu: bool) -> ExitCode {
    let wgpu = if skip_wgpu { &[] } else { WGPU };
    for (what, environment, command) in LINTS_AND_TESTS
        .iter()
        .chain(EXAMPLE)
        .chain(wgpu)
        .chain(DOCS)
    {
        eprintln!("\n== {what}: {command}");
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap_or_default())
            .args(words)
            .envs(environment.iter().copied())
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("{what}: {status}");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("{what}: {command}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
