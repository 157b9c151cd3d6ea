//! A channel mixer of one's own in RWKV-7: `W_out (silu(W_gate h) ⊙ W_in h)`, without a state.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Int, Tensor, activation::silu},
};
use rwkv7_core::{
    Rwkv7Config,
    config::{ChannelMixerConfig, LayerDims},
    init::LayerInit,
    layers::{ChannelMixer, Lengths, TimeMixTrace},
};
use serde::{Deserialize, Serialize};

/// The layer.
#[derive(Module, Debug)]
pub struct SwiGlu {
    gate: Linear,
    input: Linear,
    output: Linear,
}

/// Configuration of [`SwiGlu`]: its inner width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwiGluConfig {
    hidden: usize,
}

impl ChannelMixer for SwiGlu {
    type State = ();
    const NAME: &'static str = "swiglu";

    fn forward(&self, h: Tensor<3>, _: &TimeMixTrace, _: &Lengths, (): ()) -> (Tensor<3>, ()) {
        let hidden = silu(self.gate.forward(h.clone())) * self.input.forward(h);
        (self.output.forward(hidden), ())
    }

    fn zero_state(&self, _batch: usize, _device: &Device) {}
}

impl ChannelMixerConfig for SwiGluConfig {
    type Layer = SwiGlu;
    const ARCHITECTURE: &'static str = "rwkv7-swiglu";

    fn init(&self, dims: &LayerDims, init: &LayerInit) -> SwiGlu {
        let linear = |name| init.orthogonal_linear(name, dims.n_embd, self.hidden, 1.0);
        SwiGlu {
            gate: linear("swiglu.gate"),
            input: linear("swiglu.input"),
            output: init.zero_linear(self.hidden, dims.n_embd),
        }
    }
}

/// Builds a model with the layer, which is RWKV-7 but for the layer: the state carries a sequence from one call to the next.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = Rwkv7Config::new(64, 2, 32).with_head_size(16);
    let config = base.with_ffn(SwiGluConfig { hidden: 48 });
    let device = Device::default();
    let model = config.init(&device);
    println!("{} parameters", config.num_params());

    let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3, 4]], &device);
    let (whole, _) = model.forward(tokens.clone(), None);
    let (_, state) = model.forward(tokens.clone().narrow(1, 0, 2), None);
    let (second, _) = model.forward(tokens.narrow(1, 2, 2), Some(state));
    let difference = (whole.narrow(1, 2, 2) - second).abs().max();
    assert!(difference.into_scalar::<f32>() < 1e-5);
    Ok(())
}
