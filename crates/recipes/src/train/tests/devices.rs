//! Several devices take the same steps as one.

use std::sync::Arc;

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::lr_scheduler::constant::ConstantLr,
    tensor::Tensor,
    train::{ExecutionStrategy, Learner, MultiDeviceOptim, SupervisedTraining},
};
use rwkv7_core::{Rwkv7Config, optimizer::OptimizerConfig};

use super::*;
use crate::{
    data::{loader::Loader, reverse::Reverse},
    train::progress::PlainProgress,
};

/// All parameters after two epochs of two steps, each of two batches: on two devices or one after the other.
fn trained(devices: usize) -> Vec<f32> {
    struct Collect(Vec<f32>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let device = Device::flex().autodiff();
    let task = Reverse {
        min_digits: 1,
        max_digits: 3,
        numbers: 16,
        seed: 0,
        held_out: false,
    };
    let training = Loader::training(Arc::new(task), 2, 4, 0, &device);
    let validation = Loader::validation(Arc::new(task), 16, &device);
    let config = Rwkv7Config {
        head_size: 8,
        ..Rwkv7Config::new(256, 1, 16)
    };
    let step = LmStep::new(config.init(&device)).with_settings(StepSettings {
        accumulation: 2,
        ..StepSettings::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let run = SupervisedTraining::new(folder.path(), Arc::new(training), Arc::new(validation))
        .renderer(Box::new(PlainProgress::new(1)))
        .with_application_logger(None)
        .num_epochs(2);
    let run = match devices {
        1 => run.grads_accumulation(2),
        _ => {
            let devices = vec![device; devices];
            let strategy = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
            run.with_training_strategy(strategy.into())
        }
    };
    let optimizer = OptimizerConfig::default().init();
    let result = run.launch(Learner::new(step, optimizer, ConstantLr::from(1e-2)));
    assert!(result.error.is_none());
    let mut collect = Collect(Vec::new());
    result.model.visit(&mut collect);
    collect.0
}

#[test]
fn two_devices_take_the_steps_of_one_that_accumulates() {
    let (one, two) = (trained(1), trained(2));
    assert!(one.len() > 1000);
    assert_eq!(one, two);
}
