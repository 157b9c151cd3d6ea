//! A whole training step or token-by-token generation, timed; prints one JSON object. `cargo xtask bench` runs it and
//! its PyTorch counterpart `xtask/bench/rwkv7_step.py` side by side.

#[path = "../src/device.rs"]
mod device;
// The bench reports no progress and has no tests.
#[allow(dead_code, unused_imports)]
#[path = "../src/kernels.rs"]
mod kernels;
#[path = "../src/memory.rs"]
mod memory;

use std::{error::Error, time::Instant};

use burn::{
    data::dataloader::batcher::Batcher,
    optim::GradientsAccumulator,
    tensor::{Device, Int, Tensor, TensorData},
    train::TrainStep,
};
use clap::Parser;
use meta_state::MetaStateConfig;
use recipes::{
    data::batch::{LmBatcher, Sequence},
    train::{LmStep, StepSettings},
};
use rwkv7_core::{
    MatmulPrecision, Rwkv7Config, config::ChannelMixerConfig, optimizer::OptimizerConfig,
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 6)]
    layers: usize,
    #[arg(long, default_value_t = 512)]
    width: usize,
    #[arg(long, default_value_t = 256)]
    vocab: usize,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 512)]
    time: usize,
    /// Steps measured.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Steps before, not measured.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// rwkv7, meta-state (practical) or meta-state-paper.
    #[arg(long, default_value = "rwkv7")]
    arch: String,
    /// f32 or bf16.
    #[arg(long, default_value = "f32")]
    precision: String,
    #[arg(long)]
    device: Option<String>,
    /// Measure this many tokens of generation, batch 1, instead of training.
    #[arg(long)]
    generate: Option<usize>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    memory::keep_pages();
    let args = Args::parse();
    let device = device::open(args.device.as_deref())?;
    let base = Rwkv7Config::new(args.vocab, args.layers, args.width);
    match args.arch.as_str() {
        "rwkv7" => measure(&args, &base, &device),
        "meta-state" => measure(&args, &base.with_ffn(MetaStateConfig::practical()), &device),
        "meta-state-paper" => measure(&args, &base.with_ffn(MetaStateConfig::paper()), &device),
        other => Err(format!("unknown architecture {other}").into()),
    }
}

/// Measures a model and prints the result.
fn measure<S: ChannelMixerConfig>(
    args: &Args,
    config: &Rwkv7Config<S>,
    device: &Device,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let seconds = match args.generate {
        Some(tokens) => generate(config, device, tokens, args.warmup + args.steps)?,
        None => train(args, config, device)?,
    };
    let tokens = args.generate.unwrap_or(args.batch * args.time) as f64;
    let mut sorted = seconds[args.warmup..].to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let report = json!({
        "arch": args.arch,
        "products": args.precision,
        "parameters": config.num_params(),
        "tokens_per_second_best": tokens / sorted[0],
        "tokens_per_second_median": tokens / median,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "device": args.device,
    });
    #[allow(clippy::print_stdout)]
    {
        println!("{report}");
    }
    Ok(())
}

/// Seconds of every training step: forward, backward, clipping, AdamW.
fn train<S: ChannelMixerConfig>(
    args: &Args,
    config: &Rwkv7Config<S>,
    device: &Device,
) -> Result<Vec<f64>, Box<dyn Error + Send + Sync>> {
    let precision: MatmulPrecision = serde_json::from_value(json!(args.precision))?;
    precision.check(device)?;
    let device = device.clone().autodiff();
    let settings = StepSettings {
        accumulation: 1,
        clip_norm: 1.0,
        l2_wrap: false,
        diagnostics: false,
        precision,
    };
    let mut model = LmStep::new(config.init(&device)).with_settings(settings);
    let mut optimizer = OptimizerConfig::default().init();
    let mut seconds = Vec::new();
    for step in 0..args.warmup + args.steps {
        let ids: Vec<i32> = (0..args.batch * (args.time + 1))
            .map(|i| ((i * 7919 + step * 104_729) % 1_000_003 % args.vocab) as i32)
            .collect();
        let rows = ids.chunks(args.time + 1).map(Sequence::new).collect();
        let started = Instant::now();
        let output = TrainStep::step(&model, LmBatcher.batch(rows, &device));
        let mut grads = GradientsAccumulator::new();
        grads.accumulate(&model, output.grads);
        model = TrainStep::optimize(model, &mut optimizer, 1e-3.into(), grads.grads());
        device.sync()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Seconds of every repetition of generating `tokens` tokens one by one.
fn generate<S: ChannelMixerConfig>(
    config: &Rwkv7Config<S>,
    device: &Device,
    tokens: usize,
    repetitions: usize,
) -> Result<Vec<f64>, Box<dyn Error + Send + Sync>> {
    let model = config.init_seeded(device, 0);
    let mut seconds = Vec::new();
    for _ in 0..repetitions {
        let mut state = model.zero_state(1, device);
        let started = Instant::now();
        let mut id = 1;
        for _ in 0..tokens {
            let token = Tensor::<1, Int>::from_data(TensorData::new(vec![id], [1]), device);
            let (logits, next) = model.step(token, state);
            state = next;
            id = logits.argmax(1).into_scalar::<i32>();
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Largest resident memory of the process so far, in bytes; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kib.unwrap_or(0)
}
