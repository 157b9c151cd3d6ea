//! Growing trained models: an RWKV-7 or [Meta-State](meta_state) model becomes a wider and deeper one that computes the same.
//!
//! ```text
//! x' = c [x, mean(x), …, mean(x)]     c = √(C'/C)
//! ```
//!
//! is the larger model's residual stream. Its mean is `c mean(x)` and its variance that of x. So every layer norm gives the old
//! channels their old values if its scale is divided by c, and gives the new channels zero if their shift is zero. Tensors that read
//! normalised values may have any weights for the new channels. Tensors that write into the stream write c times their old values,
//! and the mean of these into the new channels. New heads, hidden units and blocks write nothing at first. The embedding keeps its
//! width, and a matrix `lift` leads to the new width, because nothing normalises the output of `ln0` again; or the embedding gets
//! new channels in pairs ([`Embedding`]). Larger heads are copies of themselves, or have channels that the norms leave out.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use rwkv7_core::Rwkv7Config;
//! use metastate_scaling::{Embedding, Method, Plan, grow_model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::default();
//! let from = Rwkv7Config { head_size: 16, ..Rwkv7Config::new(256, 2, 32) };
//! let small = from.init(&device);
//! let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
//! let (_, state) = small.forward(tokens.clone(), None);
//!
//! let to = Rwkv7Config { n_layer: 3, n_embd: 48, ..from.clone() };
//! let plan = Plan::new(&from, &to, Method::Lossless, Embedding::Lift)?.exact()?;
//! let large = grow_model(&small, &plan, &device, 0)?;
//! // The text in progress goes on, with the same logits.
//! let (logits, state) = large.forward(tokens, Some(plan.grow_state(state)));
//! # Ok(()) }
//! ```
//!
//! | item | what grows |
//! |---|---|
//! | [`Plan`] | the configuration: every tensor of the larger model and how it is made |
//! | [`Growth`] | a checkpoint file |
//! | [`grow_model`] | a model in memory |
//! | [`grow_optimizer`] | the state of Adam or AdamW |
//! | [`Plan::grow_state`] | the running state of a generation |
//! | [`Difference`] | nothing: it compares two models |
//! | [`layer`] | a layer of one's own, for authors of layers |
//!
//! The feature `clap` makes [`Method`] a value of command lines.

mod apply;
mod error;
mod growth;
pub mod layer;
mod optimizer;
mod plan;
mod state;
mod tensors;
mod verify;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use error::ScalingError;
pub use growth::Growth;
pub use layer::Growable;
pub use optimizer::grow_optimizer;
pub use plan::{Embedding, Method, Plan, Step};
pub use state::StateOf;
pub use tensors::grow_model;
pub use verify::Difference;
