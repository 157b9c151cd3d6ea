//! The kernels of the WKV-7 operator.
//!
//! Per batch row and head, `S` is `[value, key]`, `w = exp(log_w)`; `G_t` is the gradient of `S_t`, `Gn_t` the part of it
//! that comes from later tokens, and x, dz belong to the optional read `z_t = x_t S_t` (of
//! a read `z_t = S_t x_t` the backward pass is given dz in the place of x and x in that of dz):
//!
//! ```text
//! sa_t = S_{t-1} a_t          S_t = S_{t-1} diag(w_t) + sa_t b_tᵀ + v_t k_tᵀ          y_t = S_t r_t
//!
//! G_t  = Gn_t + dy_t r_tᵀ + x_tᵀ dz_t           Gn_{t-1} = G_t diag(w_t) + dsa_t a_tᵀ,  dsa_t = G_t b_t
//! dv_t = G_t k_t      dk_t = v_t G_t      db_t = sa_t G_t      dr_t = dy_t S_t      da_t = dsa_t S_{t-1}
//! ```
//!
//! # Who owns what
//!
//! A row of S (or of G) needs no other row, so the kernels that go through time give a unit one row, in registers, and
//! never exchange anything between units: two barriers per [`TILE`] tokens are for loading alone. A column of S needs no
//! other column once `sa` is known, and a column of G none once `dsa` is known. So whatever is a sum over rows is left to
//! kernels that own columns, start from the states kept at the chunks' beginnings, and run over all chunks at once.
//!
//! | launch | parallel over | sequential over | result |
//! |---|---|---|---|
//! | [`forward`] | batch, heads, rows | time | y, state, starts |
//! | [`replay`] | batch, heads, rows, chunks | a chunk | sa |
//! | [`read`], after `replay` | batch, heads, columns, chunks | a chunk | z |
//! | [`backward`] | batch, heads, rows | time | dv, dsa, gradients of the starts |
//! | [`gradient`], after `replay` and `backward` | batch, heads, columns, chunks | a chunk, forth and back | dr, dk, da, db, dlog_w |
//!
//! # The gradient of the log decay
//!
//! `dlog_w_t = w_t Σ_rows G_t ⊙ S_{t-1}` needs S and G of the same token, of which one runs forward and the other back.
//! No state is inverted or kept for it. With all sums over rows, so per column,
//!
//! ```text
//! Σ G_t ⊙ S_t         = dlog_w_t + b_t db_t + k_t dk_t            (S_t by the recurrence)
//! Σ G_t ⊙ S_t         = Σ Gn_t ⊙ S_t + r_t dr_t + z_t dz_t        (G_t by the recurrence)
//! Σ Gn_{t-1} ⊙ S_{t-1} = dlog_w_t + a_t da_t
//! ```
//!
//! so `dlog_w_t` follows from `Σ Gn ⊙ S` at the chunk's end by adding and subtracting products that are there anyway.
//! It is a difference of terms of the size of `r dr`: its rounding error is about 1e-7 of those, whatever the decay. From
//! w = 0.545 (the least that RWKV-7 makes) to 1 that is 1e-6 of the largest `dlog_w`; at w = 0.002 it is
//! 3e-5, at w = 1e-5 2e-3: decays far below what RWKV-7 makes keep a right gradient only in absolute terms.
//!
//! # Cost
//!
//! Reasoned, not measured. A unit holds 4 `key` bytes of a row in registers (64 of them at key size 64), or as many
//! columns as fill 128; loops over channels are written out so that they stay there. Vectors shared by the units of a cube
//! are read from shared memory four numbers at a time, each for one multiplication in a row kernel, where few warps run
//! and latency decides, and for two at head size 64 in a column kernel, where throughput decides. A cube has 32 units: the
//! kernels that go through time start `batch heads value / 32` of them. Beyond inputs and outputs a token and head moves
//! `4 value key / chunk` bytes of starts (written once, read by `replay`, `read` and `gradient`), as many of their
//! gradients (written once, read once) and 8 `value` bytes of sa and dsa. At head size 64 and chunk 16 a set of starts is
//! 1 KiB, as much as four f32 keys; a longer chunk makes it less and leaves fewer cubes to the chunk kernels.
//!
//! | kernel | buffers, packed (+ 1 for sizes) | shared memory in bytes, at head sizes 64 / 128 |
//! |---|---|---|
//! | forward | 7 | 11,264 / 21,504 |
//! | replay | 5 | 9,216 / 17,408 |
//! | read | 6 | 6,144 / 12,288 |
//! | backward, with a read | 7 | 14,336 / 26,624 |
//! | gradient, with a read | 7 | 10,240 / 20,480 |
//!
//! Every list of tensors may be given as one packed tensor instead, which keeps each kernel within the 8 storage buffers
//! of a browser; unpacked, `gradient` has 17 with a read, and needs no copy.
//!
//! # Types
//!
//! r, k, v, a, b, dy, x, dz and the results y and z are in one dtype, f32, f16 or (not on WGSL or SPIR-V) bf16. `log_w`,
//! states, scratch and the gradients that the kernels write are f32, and so is all arithmetic.

mod backward;
mod column;
mod forward;
mod gradient;
mod launch;
mod read;
mod replay;
mod row;
mod tile;

pub use launch::{backward, forward, gradient, read, replay};

/// Tokens that a cube holds in shared memory at a time; a chunk is a multiple of it.
pub const TILE: usize = 8;

/// The sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens, at least 1.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Value channels of a head: a multiple of 16, at most 128.
    pub value: usize,
    /// Key channels of a head: a multiple of 16, at most 128.
    pub key: usize,
    /// Tokens from one kept state to the next: a multiple of [`TILE`].
    pub chunk: usize,
}

/// What a kernel is compiled for. Neither batch nor time is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    value: usize,
    key: usize,
    chunk: usize,
    /// Units of a cube.
    lanes: usize,
    /// Columns of the state that a unit of the chunk kernels owns.
    columns: usize,
    /// Whether the keys (and the values) lie in one buffer each.
    packed: bool,
    /// Whether the backward pass has the read's x and dz.
    read: bool,
}

/// Why a kernel was not launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A head size that the kernels are not written for.
    #[error("wkv7: {name} size {size} per head: must be a multiple of 16, from 16 to 128")]
    HeadSize {
        /// "value" or "key".
        name: &'static str,
        /// The size found.
        size: usize,
    },
    /// A chunk length that the kernels are not written for.
    #[error("wkv7: chunk of {0} tokens: must be a positive multiple of 8")]
    Chunk(usize),
    /// More cubes than the device can launch, or none.
    #[error("wkv7: {size} {name}: must be from 1 to {most} on this device")]
    Grid {
        /// What is counted.
        name: &'static str,
        /// The number found.
        size: usize,
        /// The most that the device takes.
        most: u32,
    },
    /// A wrong number of tensors in a list.
    #[error("wkv7: {found} tensors in `{name}`, expected {expected}, or 1 packed")]
    Count {
        /// The list.
        name: &'static str,
        /// Tensors found.
        found: usize,
        /// Tensors expected.
        expected: usize,
    },
}
