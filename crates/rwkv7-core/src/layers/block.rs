//! A block: time mixing, then a channel mixer, each on the normalised residual stream.
//!
//! ```text
//! x = lift(ln0(x))               block 0 only; the lift in grown models only
//! x = x + att(ln1(x))
//! x = x + ffn(ln2(x))
//! ```

use burn::{
    module::{Module, ModuleDisplay},
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::MatmulPrecision;
use crate::state::{LayerState, StateTensors};

use super::{LayerNorm, Lengths, TimeMix, TimeMixTrace, project};

/// The layer of a block that follows time mixing.
///
/// [`ChannelMix`](super::ChannelMix) is RWKV-7's. A layer of another crate that implements this trait gets the model around it:
/// running state, initial values, checkpoints and training.
pub trait ChannelMixer: Module + ModuleDisplay + 'static {
    /// The layer's running state; `()` if it looks at one token only.
    type State: StateTensors;

    /// Name of the layer in checkpoints: its tensors are called `blocks.{i}.{NAME}.…`.
    const NAME: &'static str;

    /// Whether the layer reads the states of the recurrence token by token; if so, the trace holds them. `differentiated` tells
    /// whether the tensors are on a device with autodiff.
    fn reads_states(&self, _differentiated: bool) -> bool {
        false
    }

    /// The layer's contribution to the residual stream.
    ///
    /// # Shapes
    ///
    /// - `h`: `LN2(x)`, `[batch, time, C]`
    /// - output: `[batch, time, C]`; its values at padding have no effect
    ///
    /// `trace` holds the results of the same block's time mixing for the same tokens. The state must not change at padding, which
    /// `lengths` tells.
    fn forward(
        &self,
        h: Tensor<3>,
        trace: &TimeMixTrace,
        lengths: &Lengths,
        state: Self::State,
    ) -> (Tensor<3>, Self::State);

    /// The state before the first token.
    fn zero_state(&self, batch: usize, device: &Device) -> Self::State;

    /// Sets the arithmetic of the products with the layer's weight matrices.
    fn set_matmul_precision(&mut self, _precision: MatmulPrecision) {}

    /// Names of the layer's measurements of itself.
    const MEASUREMENTS: &'static [&'static str] = &[];

    /// Switches measuring on or off. A layer that measures itself waits for the device in every forward pass.
    fn measure(&mut self, _on: bool) {}

    /// The measurements of the last forward pass, in the order of [`MEASUREMENTS`](Self::MEASUREMENTS); empty if measuring is
    /// off.
    fn measurements(&self) -> Vec<f64> {
        Vec::new()
    }
}

/// A block, generic over its channel mixer.
#[derive(Module, Debug)]
pub struct Block<M: ChannelMixer> {
    /// Layer norm of the embedding. Block 0 has it, unless a checkpoint has the norm folded into the table.
    pub ln0: Option<LayerNorm>,
    /// From the width of the embedding to the model's, `E -> C`. Block 0 of some grown models has it.
    pub lift: Option<Linear>,
    /// Layer norm before time mixing.
    pub ln1: LayerNorm,
    /// Layer norm before the channel mixer.
    pub ln2: LayerNorm,
    /// Time mixing.
    pub att: TimeMix,
    /// The channel mixer. Checkpoints call it by [`ChannelMixer::NAME`].
    pub ffn: M,
}

impl<M: ChannelMixer> Block<M> {
    /// Runs the block on `x [batch, time, C]`; returns the new residual stream and state.
    ///
    /// `value_first` is the value of block 0: block 0 sets it, and the other blocks read it.
    pub fn forward(
        &self,
        x: Tensor<3>,
        value_first: &mut Option<Tensor<3>>,
        lengths: &Lengths,
        state: LayerState<M::State>,
    ) -> (Tensor<3>, LayerState<M::State>) {
        let x = match &self.ln0 {
            Some(ln0) => ln0.forward(x),
            None => x,
        };
        let x = match &self.lift {
            Some(lift) => project(lift, x, self.att.precision),
            None => x,
        };
        let h = self.ln1.forward(x.clone());
        let traced = self.ffn.reads_states(h.is_autodiff());
        let (mixed, att, trace) = self.att.forward(h, value_first, lengths, state.att, traced);
        let x = x + mixed;
        let h = self.ln2.forward(x.clone());
        let (mixed, ffn) = self.ffn.forward(h, &trace, lengths, state.ffn);
        (x + mixed, LayerState { att, ffn })
    }

    /// Sets the arithmetic of the products with the block's weight matrices.
    pub fn set_matmul_precision(&mut self, precision: MatmulPrecision) {
        self.att.precision = precision;
        self.ffn.set_matmul_precision(precision);
    }

    /// The state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> LayerState<M::State> {
        LayerState {
            att: self.att.zero_state(batch, device),
            ffn: self.ffn.zero_state(batch, device),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::{Deserialize, Serialize};

    use crate::{
        Rwkv7Config,
        config::{ChannelMixerConfig, LayerDims},
        init::LayerInit,
        layers::{ChannelMix, ChannelMixConfig},
    };

    /// A layer of one's own that says nothing but how it is made.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Own(ChannelMixConfig);

    impl ChannelMixerConfig for Own {
        type Layer = ChannelMix;

        const ARCHITECTURE: &'static str = "own";

        fn init(&self, dims: &LayerDims, init: &LayerInit) -> ChannelMix {
            self.0.init(dims, init)
        }
    }

    #[test]
    fn a_layer_that_does_not_count_itself_is_counted() {
        let config = Rwkv7Config::new(97, 3, 128);
        let own = config.with_ffn(Own(config.ffn.clone()));
        assert_eq!(own.num_params(), config.num_params());
        assert_eq!(own.num_state_values(), config.num_state_values());
        assert!(own.validate().is_ok());
        let declared = serde_json::json!(own.ffn);
        assert_eq!(Own::of_checkpoint(&|_| None, Some(&declared)), Ok(own.ffn));
        let error = Own::of_checkpoint(&|_| None, None).unwrap_err();
        assert!(error.contains("config.json"), "{error}");
    }
}
