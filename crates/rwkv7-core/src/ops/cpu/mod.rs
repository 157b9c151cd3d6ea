//! The operations on the CPU: forward and backward passes in f32, each in one pass over memory.
//!
//! All arrays are contiguous and row-major. `rows` is batch x time, `C` the channels, `N` the head size, `C = heads * N`. The
//! instructions are chosen at run time (AVX-512, AVX2, NEON or scalar code), rows are shared out with rayon, and results do
//! not depend on the number of threads.
//!
//! A kernel's `forward` takes its inputs and returns its outputs; `backward` takes the inputs and the gradients of the
//! outputs and returns the gradients of the inputs, each in the order of the fields of its structs in
//! [`backends`](super::backends). Slices of a wrong length break an invariant of the caller: they panic with the name of the
//! array.

pub mod activation;
pub mod adamw;
pub mod cross_entropy;
pub mod key_preparation;
pub mod layer_norm;
pub mod matmul_bf16;
pub mod read_out;
pub mod removal_key;
pub mod token_shift;
pub mod value_residual;
pub mod wkv7;

mod rows;
mod simd;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod check;
