//! Meta-State (arXiv 2504.08247) for [Burn](https://burn.dev): a channel mixer for RWKV-7 blocks that uses the recurrent state as
//! its weight matrix.
//!
//! Meta-State takes the place of RWKV-7's channel mixing. The equations are those of one head. x' is the normalised residual
//! stream. S is the state of the same block's time mixing after the token's update; w, κ̂ and a are its decay, removal key and
//! in-context learning rate.
//!
//! ```text
//! z_t  = ReLU(x'_t S_t)                                          Self-State Encoder        eq. 1
//! ms_t = ms_{t-1} (diag(w_t) - κ̂_tᵀ (a_t ⊙ κ̂_t)) + z_tᵀ z_t      state of the state        eq. 2, 3
//! o_t  = LN(z_t ms_tᵀ) W_oms                                     summed over heads         eq. 4
//! x    = x + o                                                                             eq. 6
//! ```
//!
//! | symbol | here | shape |
//! |---|---|---|
//! | x' | `h`, LN2 of the residual stream | `[batch, time, C]`, split into H heads of N |
//! | wkv, W_sse | S, read by [`read_states`](rwkv7_core::ops::read_states); without gradients, along the key side, by [`wkv7`](rwkv7_core::ops::wkv7) with r = x' | `[batch, H, N, N]` for each token |
//! | z | | `[batch, time, H, n]`, n = N unless [`Sse::TopLeft`] |
//! | ms | [`MetaStateState::ms`] | `[batch, H, n, n]` |
//! | W_oms | [`MetaState::W_oms`] | `[1 or H, n, C]` |
//!
//! The recurrence of ms is the recurrence of time mixing with receptance, key and value z, so the same operation runs both. S, z
//! and ms are f32 whatever the model's dtype is.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use meta_state::{MetaStateConfig, MetaStateModelConfig};
//! use rwkv7_core::Rwkv7Config;
//!
//! let device = Device::default();
//! let config: MetaStateModelConfig =
//!     Rwkv7Config::new(256, 2, 64).with_ffn(MetaStateConfig::practical());
//! let model = config.init(&device);
//! let tokens = Tensor::<2, Int>::from_data([[77, 101, 116, 97]], &device);
//! let (logits, state) = model.forward(tokens, None);
//! assert_eq!(logits.dims(), [1, 4, 256]);
//! assert_eq!(state.num_values(), config.num_state_values());
//! ```
//!
//! | item | content |
//! |---|---|
//! | [`MetaStateConfig`] | the choices that the paper leaves open |
//! | [`MetaState`], [`MetaStateState`] | the layer and its running state |
//! | [`MetaStateLm`], [`MetaStateModelConfig`], [`MetaStateLmState`] | RWKV-7 with the layer |
//! | [`diagnostics`] | the layer's measurements of itself |
//!
//! The crate has no features. Backends and checkpoint files are features of rwkv7-core: a project that depends on both crates
//! chooses them there.

mod config;
pub mod diagnostics;
mod layer;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use rwkv7_core::{Rwkv7, Rwkv7Config, State};

pub use config::{MetaStateConfig, Oms, Removal, Scale, Sse};
pub use layer::{MetaState, MetaStateState};
pub use rwkv7_core::ops::Side;

/// A language model of RWKV-7 time mixing and Meta-State.
pub type MetaStateLm = Rwkv7<MetaState>;

/// Configuration of [`MetaStateLm`].
pub type MetaStateModelConfig = Rwkv7Config<MetaStateConfig>;

/// State of [`MetaStateLm`].
pub type MetaStateLmState = State<MetaStateState>;
