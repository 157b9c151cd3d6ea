//! Fused CPU kernels of RWKV-7 around the WKV recurrence: forward and backward in one pass over memory.
//!
//! All arrays are `f32`, contiguous and row-major. `rows` is batch x time, `C` the channels, `N` the head
//! size, `C = heads * N`. Every input is read from memory once and every output is written once.
//! Instructions are chosen at run time (AVX-512, AVX2, NEON or scalar), rows are shared out with rayon, and
//! results do not depend on the number of threads.
//!
//! Slices of a wrong length are a broken invariant of the caller: they panic with the name of the array.

pub mod activation;
pub mod adamw;
pub mod cross_entropy;
pub mod key_preparation;
pub mod layer_norm;
pub mod product;
pub mod read_out;
pub mod removal_key;
pub mod token_shift;
pub mod value_residual;

mod blocks;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod check;
