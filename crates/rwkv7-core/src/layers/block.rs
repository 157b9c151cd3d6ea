//! A block: time mixing, then a channel mixer, each on the normalised residual stream.
//!
//! ```text
//! x = lift(ln0(x))               block 0 only: what leaves ln0, or the lift of a grown model, is the residual stream
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

/// What a block does after time mixing.
///
/// [`ChannelMix`](super::ChannelMix) is RWKV-7's. A layer of another crate implements this trait and gets the whole
/// model, its state, initialisation, checkpoints and training with it.
pub trait ChannelMixer: Module + ModuleDisplay + 'static {
    /// What the layer carries from token to token.
    type State: StateTensors;

    /// Name of the layer in checkpoints: its tensors are called `blocks.{i}.{NAME}.…`.
    const NAME: &'static str;

    /// Whether the layer reads the states of the recurrence token by token: then the trace holds them. `differentiated`
    /// tells whether the tensors are on a device with autodiff.
    fn reads_states(&self, _differentiated: bool) -> bool {
        false
    }

    /// The layer's contribution to the residual stream.
    ///
    /// # Shapes
    ///
    /// - `h`: `LN2(x)`, `[batch, time, C]`
    /// - output: `[batch, time, C]`; what it holds at padding is not looked at
    ///
    /// `trace` is what time mixing of the same block computed for the same tokens. At padding (`lengths`) the state must
    /// not change.
    fn forward(
        &self,
        h: Tensor<3>,
        trace: &TimeMixTrace,
        lengths: &Lengths,
        state: Self::State,
    ) -> (Tensor<3>, Self::State);

    /// The state before the first token.
    fn zero_state(&self, batch: usize, device: &Device) -> Self::State;

    /// How the layer multiplies with its weight matrices from now on.
    fn set_matmul_precision(&mut self, _products: MatmulPrecision) {}

    /// Names of what the layer can measure of itself.
    const MEASUREMENTS: &'static [&'static str] = &[];

    /// Switches on or off that the layer measures itself in every forward pass, which waits for the device.
    fn measure(&mut self, _on: bool) {}

    /// What the layer measured in its last forward pass, in the order of [`MEASUREMENTS`](Self::MEASUREMENTS); empty
    /// where measuring is off.
    fn measurements(&self) -> Vec<f64> {
        Vec::new()
    }
}

/// A block, generic over its channel mixer.
#[derive(Module, Debug)]
pub struct Block<M: ChannelMixer> {
    /// Normalises the embedding; block 0 only, absent where it is folded into the table.
    pub ln0: Option<LayerNorm>,
    /// From the width of the embedding to the model's, `E -> C`; block 0 of a grown model only.
    pub lift: Option<Linear>,
    /// Before time mixing.
    pub ln1: LayerNorm,
    /// Before the channel mixer.
    pub ln2: LayerNorm,
    /// Time mixing.
    pub att: TimeMix,
    /// The channel mixer; the checkpoint calls it by [`ChannelMixer::NAME`].
    pub ffn: M,
}

impl<M: ChannelMixer> Block<M> {
    /// Runs the block on `x [batch, time, C]`; returns the new residual stream and state.
    ///
    /// `value_first` is layer 0's value: layer 0 sets it, the others read it.
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

    /// How the block multiplies with its weight matrices from now on.
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
