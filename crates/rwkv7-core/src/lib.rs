//! RWKV-7 "Goose" (arXiv 2503.14456) for [Burn](https://burn.dev): operations, layers, the language model and its running state,
//! initial values and optimizer groups, checkpoints, tokenizers and generation.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use rwkv7_core::{Rwkv7Config, loss};
//!
//! let device = Device::default().autodiff();
//! let model = Rwkv7Config::new(256, 2, 64).init(&device);
//! let tokens = Tensor::<2, Int>::from_data([[72, 101, 108, 108]], &device);
//! let targets = Tensor::<2, Int>::from_data([[101, 108, 108, 111]], &device);
//! let (logits, _state) = model.forward(tokens, None);
//! let gradients = loss::cross_entropy(logits, targets, None).backward();
//! assert!(model.blocks[0].att.w0.grad(&gradients).is_some());
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`config`] | [`Rwkv7Config`]: dimensions, published sizes, parameter counts |
//! | crate root | [`Rwkv7`], the model: `forward`, `step`, `prefill`, `forward_ragged` |
//! | [`state`] | [`State`]: all that a model remembers of the tokens it has read |
//! | [`layers`] | time mixing, channel mixing, blocks, and [`ChannelMixer`](layers::ChannelMixer) for layers of your own |
//! | [`ops`] | the WKV-7 recurrence and the other operations with hand-written gradients |
//! | [`init`], [`optimizer`], [`loss`] | initial values, parameter groups and losses of the official training code |
//! | [`precision`] | products with the weight matrices in f32 or bf16 |
//! | [`checkpoint`] | official `.pth` files, safetensors, Burn records, state files |
//! | [`files`] | opening files whose names come from outside |
//! | [`tokenizer`], [`sampling`], [`generate`] | text, the choice of the next token, and [`Generator`] |
//!
//! No code here names a backend: a [`Device`](burn::tensor::Device) chooses the backend at run time, and features choose which
//! backends are compiled in.
//!
//! | feature | default | content |
//! |---|---|---|
//! | `flex` | yes | Burn's CPU backend, with SIMD kernels for it |
//! | `checkpoint` | yes | the module [`checkpoint`], with burn-store, safetensors and memmap2 |
//! | `text` | yes | the modules [`tokenizer`], [`sampling`] and [`generate`], with tokenizers |
//! | `vulkan`, `wgpu`, `webgpu`, `metal`, `cuda`, `rocm` | | Burn's GPU backends, with kernels for them |
//!
//! Without default features the crate holds the layers, the model, the state in memory, initial values, the optimizer and the
//! losses.

#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod config;
pub mod files;
#[cfg(feature = "text")]
pub mod generate;
pub mod init;
pub mod layers;
pub mod loss;
pub mod ops;
pub mod optimizer;
pub mod precision;
#[cfg(feature = "text")]
pub mod sampling;
pub mod state;
#[cfg(feature = "text")]
pub mod tokenizer;

mod messages;
mod model;

pub use config::Rwkv7Config;
#[cfg(feature = "text")]
pub use generate::Generator;
pub use model::{Rwkv7, Rwkv7Lm};
pub use precision::MatmulPrecision;
pub use state::State;

/// The code in the README and the book compiles.
#[cfg(all(doctest, feature = "checkpoint", feature = "text"))]
mod documents {
    #[doc = include_str!("../../../README.md")]
    struct Readme;

    #[doc = include_str!("../../../docs/src/library.md")]
    struct Library;
}
