//! The layers of RWKV-7: time mixing, channel mixing and the block that joins them.

mod block;
mod channel_mix;
mod norm;
mod time_mix;
mod token_shift;

use burn::{
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::MatmulPrecision;

pub use block::{Block, ChannelMixer};
pub use channel_mix::{ChannelMix, ChannelMixConfig, ChannelMixState};
pub use norm::{LayerNorm, head_norm};
pub use time_mix::{TimeMix, TimeMixState, TimeMixTrace};
pub use token_shift::{Lengths, last_token, token_shift};

/// `x W`, plus the bias if there is one, for `x [batch, time, in]`. One product over batch and time is twice as fast on the CPU as
/// a batched product.
pub(crate) fn project(linear: &Linear, x: Tensor<3>, precision: MatmulPrecision) -> Tensor<3> {
    let [batch, time, width] = x.dims();
    let y = precision.matmul(x.reshape([batch * time, width]), linear.weight.val());
    let y = match &linear.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    };
    let out = y.dims()[1];
    y.reshape([batch, time, out])
}

/// A running state of zeros. All running states are f32.
pub fn zero_state<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::zeros(dims, (device, burn::tensor::DType::F32))
}

/// Checks the shape of a running state; `name` is the name of its tensor in state files.
///
/// # Panics
///
/// If the state is of another size or batch than `expected`.
pub fn check_state<const D: usize>(name: &str, state: &Tensor<D>, expected: [usize; D]) {
    let found = state.dims();
    assert!(
        found == expected,
        "state tensor `{name}` has shape {found:?}, this layer needs {expected:?}: the state is of another model or for another batch"
    );
}
