//! Growing trained models: an RWKV-7 or [Meta-State](meta_state) model becomes a wider and deeper one that computes the same.
//!
//! ```text
//! x' = c [x, mean(x), …, mean(x)]     c = √(C'/C)
//! ```
//!
//! is the larger model's residual stream. Its mean is `c mean(x)` and its variance that of x, so every layer norm gives the old
//! channels what it gave before (its scale is divided by c) and the new channels zero (their shift is zero). What reads
//! normalised values may therefore have any weights for the new channels; what writes into the stream writes c times what it
//! wrote, and the mean of that into the new channels. New heads, hidden units and blocks write nothing at first. The
//! embedding keeps its width, and a matrix `lift` leads to the new one, because `ln0`'s output is not normalised again; or its
//! new channels come in pairs, see [`Embedding`]. Larger heads are copies of themselves, or have channels that norms leave out.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use rwkv7_core::Rwkv7Config;
//! use scaling::{Embedding, Method, Plan, grow_model};
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
//! // What was in progress goes on, with the same logits.
//! let (logits, state) = large.forward(tokens, Some(plan.grow_state(state)));
//! # Ok(()) }
//! ```
//!
//! Source: reference `growth-and-evaluation.md`, part B.

mod apply;
mod error;
mod grow;
mod optimizer;
mod plan;
mod rules;
mod verify;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use error::ScalingError;
pub use grow::{StateOf, grow, grow_model};
pub use optimizer::grow_optimizer;
pub use plan::{Embedding, Heads, Method, Plan, Step};
pub use rules::{Axes, Axis, Growable, New, Rule};
pub use verify::Difference;
