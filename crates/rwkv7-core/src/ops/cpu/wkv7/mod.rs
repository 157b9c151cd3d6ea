//! The WKV-7 operator on the CPU.
//!
//! Per batch row and head, with a state `S` of shape `[value, key]`:
//!
//! ```text
//! w_t = exp(log_w_t)    sa_t = S_{t-1} a_t
//! S_t = S_{t-1} diag(w_t) + sa_t b_tᵀ + v_t k_tᵀ
//! y_t = S_t r_t         z_t = x_t S_t
//! ```
//!
//! # How it is computed
//!
//! Four tokens make a *block* ([`block`]): with the state `S` before the block, the four `sa`
//! and the four outputs are products of `S` with decayed copies of `a` and `r`, plus a
//! triangular correction by scalars such as `b_i · diag(w_{i+1} … w_{t-1}) a_t`. The state is
//! then read and written once per block instead of once per token. Only products of decays
//! occur, never a quotient, so every `log_w <= 0` is safe, `w = 0` included.
//!
//! The working state is stored key-major in panels of value lanes ([`panel`]), so `S a` and
//! `S r` need no horizontal sums. The backward recomputes the block states of one chunk from
//! its start and walks the blocks in reverse with the gradient of the state.

// Indexed loops over several arrays of registers at once, unrolled by the compiler, are the form
// that stays in registers; the nested `if const` keeps code from being made for the inner arm.
#![allow(
    clippy::needless_range_loop,
    clippy::collapsible_if,
    clippy::excessive_precision
)]

mod backward;
mod block;
mod dims;
mod forward;
mod gradient;
mod heads;
mod panel;
mod read;
mod replay;
mod scratch;
mod step;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use backward::{Gradients, Query, backward};
pub use dims::{DEFAULT_CHUNK, Dims, Inputs, MAX_SIZE};
pub use forward::forward;
pub use read::read;
