//! A training loop of one's own: RWKV-7 learns to count from the loss, the optimizer groups and a few lines.

use std::error::Error;

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Int, Tensor},
};
use rwkv7_core::{
    Rwkv7Config, loss,
    optimizer::{OptimizerConfig, clip_global_norm},
};

/// Trains for 60 steps and asks the model how a row goes on.
pub fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default().autodiff();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(32, 2, 32)
    };
    let mut model = config.init(&device);
    let mut optimizer = OptimizerConfig::default().init();

    // Eight rows that count upwards from different numbers, modulo the vocabulary.
    let start = Tensor::<1, Int>::arange(0..8, &device).reshape([8, 1]) * 3;
    let count = Tensor::<1, Int>::arange(0..17, &device).reshape([1, 17]);
    let rows = (start + count).remainder_scalar(32);
    let (inputs, targets) = (rows.clone().narrow(1, 0, 16), rows.narrow(1, 1, 16));

    let mut losses = Vec::new();
    for step in 0..60 {
        let (logits, _state) = model.forward(inputs.clone(), None);
        let loss = loss::cross_entropy(logits, targets.clone(), None);
        losses.push(loss.clone().into_scalar::<f32>());
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        clip_global_norm(&model, &mut gradients, 1.0);
        model = optimizer.step(5e-3, model, gradients);
        if step % 20 == 19 {
            println!("step {}: loss {:.3}", step + 1, losses[step]);
        }
    }

    let tokens = Tensor::<2, Int>::from_ints([[20, 21, 22, 23]], &device.inner());
    let (logits, _state) = model.valid().prefill(tokens, None);
    let next = logits.argmax(1).into_scalar::<i32>();
    println!("20, 21, 22, 23, {next}");
    assert!(losses[59] < 0.5 * losses[0], "{losses:?}");
    Ok(())
}
