//! The kernels for every CubeCL run time, in CubeCL 0.11: a folder or file for each operation.
//!
//! The neighbours of the recurrence work on tensors `[rows, C]`, a row for each token. Their kernels share one cut of the work:
//! a unit takes some neighbouring channels and goes down a block of rows, so that neighbouring units read neighbouring memory,
//! and what belongs to a channel stays in registers. [`rows`] has the cut. A parameter of the layer, one number for each
//! channel, gets its gradient in two steps without atomics: each block leaves its own sum, and [`sums`] adds the blocks up in a
//! fixed order.

pub mod activation;
pub mod cross_entropy;
pub mod key_preparation;
pub mod layer_norm;
pub mod parameters;
pub mod read_out;
pub mod removal_key;
pub mod rows;
pub mod sums;
pub mod token_shift;
pub mod value_residual;
pub mod wkv7;
