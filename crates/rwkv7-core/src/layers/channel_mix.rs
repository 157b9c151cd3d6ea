//! Channel mixing, the channel mixer of an RWKV-7 block: `W_v relu(W_k (h + Δ ⊙ x_k))²`, `Δ_t = h_{t-1} - h_t`.

use burn::{
    config::Config,
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{
    MatmulPrecision,
    config::{ChannelMixerConfig, ConfigError, LARGEST_DIMENSION, LayerDims, check_size},
    init::LayerInit,
    ops,
    state::{StateError, StateTensors, TensorReader, TensorWriter},
};

use super::{
    ChannelMixer, Lengths, TimeMixTrace, check_state, last_token, project, token_shift, zero_state,
};

/// Configuration of [`ChannelMix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelMixConfig {
    /// Feed-forward width F; 4C in every released model.
    pub ffn_size: usize,
}

/// Channel mixing. The fields bear the names of the official checkpoint's tensors `blocks.{i}.ffn.…`.
#[derive(Module, Debug)]
pub struct ChannelMix {
    /// Token-shift mix, `[1, 1, C]`.
    pub x_k: Param<Tensor<3>>,
    /// `C -> F`.
    pub key: Linear,
    /// `F -> C`.
    pub value: Linear,
    /// Arithmetic of the products with the weight matrices.
    #[module(skip)]
    pub precision: MatmulPrecision,
}

/// State of [`ChannelMix`].
#[derive(Clone, Debug)]
pub struct ChannelMixState {
    /// Normalised input of the last token, `[batch, C]`.
    pub shift: Tensor<2>,
}

impl Config for ChannelMixConfig {}

impl ChannelMixConfig {
    /// Channel mixing of this feed-forward width.
    pub fn new(ffn_size: usize) -> Self {
        Self { ffn_size }
    }
}

impl ChannelMixerConfig for ChannelMixConfig {
    type Layer = ChannelMix;

    const ARCHITECTURE: &'static str = "rwkv7";

    fn validate(&self, _dims: &LayerDims) -> Result<(), ConfigError> {
        check_size("ffn.ffn_size", self.ffn_size, LARGEST_DIMENSION)
    }

    fn num_params(&self, dims: &LayerDims) -> usize {
        let factors = self.ffn_size.saturating_mul(2).saturating_add(1);
        dims.n_embd.saturating_mul(factors)
    }

    fn of_checkpoint(
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
        _declared: Option<&serde_json::Value>,
    ) -> Result<Self, String> {
        match shape("ffn.key.weight").as_deref() {
            Some(&[ffn_size, _]) => Ok(Self { ffn_size }),
            Some(other) => Err(format!(
                "blocks.0.ffn.key.weight: expected a matrix, found shape {other:?}"
            )),
            None => Err("blocks.0.ffn.key.weight: missing".into()),
        }
    }

    fn num_state_values(&self, dims: &LayerDims) -> usize {
        dims.n_embd
    }

    fn init(&self, dims: &LayerDims, init: &LayerInit) -> ChannelMix {
        let (c, f) = (dims.n_embd, self.ffn_size);
        ChannelMix {
            x_k: init.shift_mix(c, init.depth_left().powi(4)),
            key: init.orthogonal_linear("ffn.key", c, f, 1.0),
            value: init.zero_linear(f, c),
            precision: MatmulPrecision::F32,
        }
    }
}

impl ChannelMixer for ChannelMix {
    type State = ChannelMixState;

    const NAME: &'static str = "ffn";

    fn forward(
        &self,
        h: Tensor<3>,
        _trace: &TimeMixTrace,
        lengths: &Lengths,
        state: ChannelMixState,
    ) -> (Tensor<3>, ChannelMixState) {
        let [batch, _, width] = h.dims();
        check_state("ffn.shift", &state.shift, [batch, width]);
        let shift = last_token(&h, &state.shift, lengths);
        let x_k = token_shift(h, state.shift, self.x_k.val());
        let hidden = ops::relu_squared(project(&self.key, x_k, self.precision));
        let out = project(&self.value, hidden, self.precision);
        (out, ChannelMixState { shift })
    }

    fn set_matmul_precision(&mut self, precision: MatmulPrecision) {
        self.precision = precision;
    }

    fn zero_state(&self, batch: usize, device: &Device) -> ChannelMixState {
        let [_, _, width] = self.x_k.shape().dims();
        ChannelMixState {
            shift: zero_state([batch, width], device),
        }
    }
}

impl StateTensors for ChannelMixState {
    fn write(&self, out: &mut TensorWriter) {
        out.put("ffn.shift", &self.shift);
    }

    fn read(&self, from: &mut TensorReader) -> Result<Self, StateError> {
        Ok(Self {
            shift: from.take("ffn.shift", &self.shift)?,
        })
    }

    fn detach(self) -> Self {
        Self {
            shift: self.shift.detach(),
        }
    }
}
