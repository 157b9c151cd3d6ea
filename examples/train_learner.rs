//! Training with Burn's `Learner`: the task `reverse` as a dataset, RWKV-7 as the model.

use burn::{
    data::{dataloader::DataLoaderBuilder, dataset::Dataset},
    optim::lr_scheduler::{constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler},
    tensor::Device,
    train::{Learner, SupervisedTraining, renderer::CliMetricsRenderer},
};
use metastate_recipes::{
    data::{batch::LmBatcher, reverse::Reverse},
    train::{LmMetric, LmStep},
};
use rwkv7_core::Rwkv7Config;
use rwkv7_core::optimizer::{OptimizerConfig, decay_bias};

/// Trains for one epoch into a temporary folder.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::default().autodiff();
    let training = Reverse {
        min_digits: 1,
        max_digits: 4,
        numbers: 256,
        seed: 0,
        held_out: false,
    };
    let validation = Reverse {
        min_digits: 3,
        numbers: 64,
        held_out: true,
        ..training
    };
    println!("{} numbers to learn from", training.len());
    let [training, validation] = [training, validation].map(|task| {
        let loader = DataLoaderBuilder::new(LmBatcher).batch_size(32);
        loader.set_device(device.clone()).build(task)
    });

    let model = Rwkv7Config::new(256, 2, 32)
        .with_head_size(16)
        .init(&device);
    let optimizer = OptimizerConfig::default().init();
    // The decay bias trains at twice the rate of the other parameters.
    let rates = ModuleLrScheduler::new(ConstantLr::from(2e-3))
        .with_group(decay_bias(), ConstantLr::from(4e-3));
    let folder = tempfile::tempdir()?;
    let result = SupervisedTraining::new(folder.path(), training, validation)
        .metrics((LmMetric::loss(), LmMetric::accuracy()))
        .renderer(Box::new(CliMetricsRenderer::new()))
        .num_epochs(1)
        .launch(Learner::new(LmStep::new(model), optimizer, rates));
    let failed = |error| Err(format!("{error:?}").into());
    result.error.map_or(Ok(()), failed)
}
