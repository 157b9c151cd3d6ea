//! Running states that grow with their model.

use burn::tensor::Tensor;
use rwkv7_core::{
    State,
    config::{ChannelMixerConfig, LayerDims},
    layers::{ChannelMixer, TimeMixState},
    state::LayerState,
};

use crate::{Growable, Plan, layer::Heads, plan::heads};

/// The state of a model whose channel mixers are `S`.
pub type StateOf<S> = State<<<S as ChannelMixerConfig>::Layer as ChannelMixer>::State>;

impl<S: Growable> Plan<S> {
    /// The growth of the heads' states. Naive methods copy nothing.
    fn state_heads(&self) -> Heads {
        let heads = heads(&self.from, &self.to);
        Heads {
            outside_norms: heads.outside_norms || self.method.is_naive(),
            ..heads
        }
    }

    /// The state of the larger model after the text that the smaller model has read. A generation in progress goes on with the same
    /// logits.
    pub fn grow_state(&self, state: StateOf<S>) -> StateOf<S> {
        let dims = self.to.dims();
        let batch = state.batch_size();
        let device = state.layers[0].att.wkv.device();
        let zero = |layer: usize| {
            self.to
                .init_block(layer, &device, 0)
                .zero_state(batch, &device)
        };
        let layers = self
            .blocks
            .iter()
            .enumerate()
            .map(|(layer, source)| match source {
                Some(source) => {
                    let old = state.layers[*source].clone();
                    let heads = self.state_heads();
                    LayerState {
                        att: TimeMixState {
                            shift: pad_channels(old.att.shift, heads, &dims),
                            wkv: grow_matrices(old.att.wkv, heads, &dims),
                        },
                        ffn: self.from.ffn.grow_state(old.ffn, heads, &dims),
                    }
                }
                None => zero(layer),
            });
        State {
            layers: layers.collect(),
        }
    }
}

/// `[batch, C]` with zeros for the new channels.
pub(crate) fn pad_channels(x: Tensor<2>, heads: Heads, to: &LayerDims) -> Tensor<2> {
    let [batch, width] = x.dims();
    let x = x.reshape([batch, width / heads.from, heads.from]);
    let x = pad(pad(x, 2, heads.to), 1, to.n_head());
    x.reshape([batch, to.n_embd])
}

/// `[batch, H, N, N]` in larger heads, and zeros for new heads.
pub(crate) fn grow_matrices(x: Tensor<4>, heads: Heads, to: &LayerDims) -> Tensor<4> {
    let x = match heads.copies() {
        Some(copies) => x.repeat_dim(2, copies).repeat_dim(3, copies),
        None => pad(pad(x, 2, heads.to), 3, heads.to),
    };
    pad(x, 1, to.n_head())
}

/// `x` with zeros at the end of an axis, up to `length`.
pub(crate) fn pad<const D: usize>(x: Tensor<D>, axis: usize, length: usize) -> Tensor<D> {
    let mut dims = x.dims();
    dims[axis] = length - dims[axis];
    if dims[axis] == 0 {
        return x;
    }
    let zeros = Tensor::zeros(dims, (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], axis)
}
