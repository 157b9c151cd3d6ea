//! A channel mixer of one's own in RWKV-7: `W_out (silu(W_gate h) ⊙ W_in h)`, without a state.

use std::error::Error;

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Int, Tensor, activation::silu},
};
use rwkv7_core::{
    Rwkv7Config,
    config::{ChannelMixerConfig, ConfigError, LayerDims},
    init::LayerInit,
    layers::{ChannelMixer, Lengths, TimeMixTrace},
    state::{StateError, StateTensors, TensorReader, TensorWriter},
};
use serde::{Deserialize, Serialize};

/// The layer; `hidden` is its inner width.
#[derive(Module, Debug)]
pub struct SwiGlu {
    gate: Linear,
    input: Linear,
    output: Linear,
}

/// Configuration of [`SwiGlu`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwiGluConfig {
    hidden: usize,
}

/// The state of a layer that looks at one token only.
#[derive(Clone, Debug)]
pub struct NoState;

impl StateTensors for NoState {
    fn write(&self, _out: &mut TensorWriter) {}

    fn read(&self, _from: &mut TensorReader) -> Result<Self, StateError> {
        Ok(Self)
    }

    fn detach(self) -> Self {
        self
    }
}

impl ChannelMixer for SwiGlu {
    type State = NoState;
    const NAME: &'static str = "swiglu";

    fn forward(
        &self,
        h: Tensor<3>,
        _trace: &TimeMixTrace,
        _lengths: &Lengths,
        state: NoState,
    ) -> (Tensor<3>, NoState) {
        let hidden = silu(self.gate.forward(h.clone())) * self.input.forward(h);
        (self.output.forward(hidden), state)
    }

    fn zero_state(&self, _batch: usize, _device: &Device) -> NoState {
        NoState
    }
}

impl ChannelMixerConfig for SwiGluConfig {
    type Layer = SwiGlu;
    const ARCHITECTURE: &'static str = "rwkv7-swiglu";

    fn validate(&self, _dims: &LayerDims) -> Result<(), ConfigError> {
        match self.hidden {
            0 => Err(ConfigError::field("ffn.hidden", 0, "at least 1")),
            _ => Ok(()),
        }
    }

    fn num_params(&self, dims: &LayerDims) -> usize {
        3 * dims.n_embd * self.hidden
    }

    fn of_checkpoint(
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
        _declared: Option<&serde_json::Value>,
    ) -> Result<Self, String> {
        match shape("swiglu.input.weight").as_deref() {
            Some(&[hidden, _]) => Ok(Self { hidden }),
            _ => Err("blocks.0.swiglu.input.weight: missing, or no matrix".into()),
        }
    }

    fn num_state_values(&self, _dims: &LayerDims) -> usize {
        0
    }

    fn init(&self, dims: &LayerDims, init: &LayerInit) -> SwiGlu {
        let linear = |name| init.orthogonal_linear(name, dims.n_embd, self.hidden, 1.0);
        SwiGlu {
            gate: linear("swiglu.gate"),
            input: linear("swiglu.input"),
            output: init.zero_linear(self.hidden, dims.n_embd),
        }
    }
}

/// Builds a model with the layer, and splits a sequence in two.
pub fn main() -> Result<(), Box<dyn Error>> {
    let base = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(64, 2, 32)
    };
    let config = base.with_ffn(SwiGluConfig { hidden: 48 });
    let device = Device::default();
    let model = config.init(&device);
    assert_eq!(model.num_params(), config.num_params());
    println!("{} parameters", config.num_params());

    // The model around the layer is RWKV-7's: the state carries a sequence from one call to the next.
    let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3, 4]], &device);
    let (whole, _) = model.forward(tokens.clone(), None);
    let (_, state) = model.forward(tokens.clone().narrow(1, 0, 2), None);
    let (second, _) = model.forward(tokens.narrow(1, 2, 2), Some(state));
    let difference = (whole.narrow(1, 2, 2) - second).abs().max();
    assert!(difference.into_scalar::<f32>() < 1e-5);
    Ok(())
}
