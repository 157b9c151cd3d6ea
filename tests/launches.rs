//! How many kernels a training step launches on a GPU: a bound, and the numbers for the book with `--nocapture`.
//!
//! The counter sees the whole process, so this test has a program of its own.
#![cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "cuda",
    feature = "rocm",
    feature = "metal"
))]
#![allow(clippy::unwrap_used)]

use std::io::{Write, stderr};

use burn::{data::dataloader::batcher::Batcher, tensor::Device, train::TrainStep};
use recipes::{
    data::batch::{LmBatcher, Sequence},
    train::LmStep,
};
use rwkv7_core::{
    Rwkv7Config,
    launches::{LaunchCounter, Launches},
    optimizer::OptimizerConfig,
};

/// Launches of one step: of the forward and backward pass, and of clipping and AdamW.
struct StepLaunches {
    model: Launches,
    optimizer: Launches,
}

/// Launches of the fourth step, in which no kernel is chosen or compiled for the first time.
fn step_launches(layers: usize, device: &Device) -> StepLaunches {
    let device = device.clone().autodiff();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(64, layers, 32)
    };
    let mut model = LmStep::new(config.init(&device));
    let mut optimizer = OptimizerConfig::default().init();
    let mut last = None;
    for _ in 0..4 {
        let ids: Vec<i32> = (0..34).map(|i| i * 7 % 64).collect();
        let batch = LmBatcher.batch(ids.chunks(17).map(Sequence::new).collect(), &device);
        device.sync().unwrap();
        let counter = LaunchCounter::start();
        let grads = TrainStep::step(&model, batch).grads;
        device.sync().unwrap();
        let forward_and_backward = counter.stop();
        let counter = LaunchCounter::start();
        model = TrainStep::optimize(model, &mut optimizer, 1e-3.into(), grads);
        device.sync().unwrap();
        last = Some(StepLaunches {
            model: forward_and_backward,
            optimizer: counter.stop(),
        });
    }
    last.unwrap()
}

/// Would break: a change that takes an operation apart again costs each step hundreds of launches, and nothing else shows it.
#[test]
fn a_training_step_launches_few_kernels() {
    if std::env::var("BURN_DEVICE").is_ok_and(|name| name == "flex") {
        let _ = writeln!(stderr(), "skipped: BURN_DEVICE=flex asks for the CPU");
        return;
    }
    let device = Device::default();
    let [two, three] = [2, 3].map(|layers| step_launches(layers, &device));
    let _ = writeln!(
        stderr(),
        "model of 2 layers, forward and backward:\n{}clipping and AdamW:\n{}",
        two.model,
        two.optimizer
    );
    let mut all_of_twelve = 0;
    for (name, two, three) in [
        ("forward and backward", &two.model, &three.model),
        ("clipping and AdamW", &two.optimizer, &three.optimizer),
    ] {
        let (two, three) = (two.total(), three.total());
        let layer = three - two;
        let twelve = two + 10 * layer;
        let _ = writeln!(
            stderr(),
            "{name}: 2 layers {two}, 3 layers {three}, one layer {layer}, 12 layers {twelve}"
        );
        all_of_twelve += twelve;
    }
    assert!(
        all_of_twelve <= MOST,
        "{all_of_twelve} launches for a step of 12 layers, at most {MOST} expected"
    );
}

/// Launches of a step of 12 layers.
const MOST: usize = 1250;
