//! Training with Burn's `Learner`: the task `reverse` as a dataset, RWKV-7 as the model.

use std::error::Error;

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
use rwkv7_core::{
    Rwkv7Config,
    optimizer::{self, OptimizerConfig},
};

/// Trains for one epoch into a temporary folder.
pub fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default().autodiff();
    let training = Reverse {
        min_digits: 1,
        max_digits: 4,
        numbers: 256,
        seed: 0,
        held_out: false,
    };
    let validation = Reverse {
        numbers: 64,
        held_out: true,
        min_digits: 3,
        ..training
    };
    println!("{} numbers to learn from", training.len());
    let loader = |task: Reverse, device: &Device| {
        DataLoaderBuilder::new(LmBatcher)
            .batch_size(32)
            .set_device(device.clone())
            .build(task)
    };

    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(256, 2, 32)
    };
    // The decay bias trains at twice the rate of the other parameters.
    let rates = ModuleLrScheduler::new(ConstantLr::from(2e-3))
        .with_group(optimizer::decay_bias(), ConstantLr::from(4e-3));
    let learner = Learner::new(
        LmStep::new(config.init(&device)),
        OptimizerConfig::default().init(),
        rates,
    );
    let folder = tempfile::tempdir()?;
    let result = SupervisedTraining::new(
        folder.path(),
        loader(training, &device),
        loader(validation, &device),
    )
    .metrics((LmMetric::loss(), LmMetric::accuracy()))
    .renderer(Box::new(CliMetricsRenderer::new()))
    .num_epochs(1)
    .launch(learner);
    match result.error {
        Some(error) => Err(format!("{error:?}").into()),
        None => Ok(()),
    }
}
