//! RWKV-7 "Goose" for [Burn](https://burn.dev): the WKV-7 operator, the layers, the model and its state, initial values and
//! optimizer groups, official checkpoints and tokenizers.
//!
//! Nothing here names a backend: a [`Device`](burn::tensor::Device) chooses it at run time, cargo features choose what is
//! compiled in.

pub mod atomic;
pub mod checkpoint;
pub mod config;
pub mod init;
pub mod layers;
pub mod loss;
pub mod ops;
pub mod optimizer;
pub mod precision;
pub mod sampling;
pub mod state;
pub mod tokenizer;

mod model;

pub use config::Rwkv7Config;
pub use model::{Rwkv7, Rwkv7Lm};
pub use precision::MatmulPrecision;
pub use state::State;

/// The code in the README and the book compiles.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../README.md")]
    struct Readme;

    #[doc = include_str!("../../../docs/src/library.md")]
    struct Library;
}
