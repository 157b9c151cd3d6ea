//! Training recipes for RWKV-7 and Meta-State models on burn-train: data, recipes as JSON, training with Burn's dashboard,
//! evaluation.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use burn::tensor::Device;
//! use metastate_recipes::{Recipe, train, train::Options};
//!
//! let settings = ["arch=meta-state", "steps=2000"].map(String::from);
//! let mut recipe = Recipe::load("shakespeare-char")?.with_overrides(&settings)?;
//! recipe.data = vec!["input.txt".into()];
//! let report = train(&recipe, Path::new("runs/mine"), &Device::default(), Options::default())?;
//! println!("{}: epoch {}", report.model.display(), report.epoch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | |
//! |---|---|
//! | [`recipe`] | a training run as a small JSON file |
//! | [`mod@train`] | trains by a recipe; [`train::LmStep`] trains in a program of one's own |
//! | [`data`] | text files, token files, datasets and batches |
//! | [`evaluate`] | measures a model on text or on reversed numbers |
//!
//! | feature | |
//! |---|---|
//! | `tui` | Burn's dashboard on a terminal |
//!
//! The crate prints nothing but the lines of plain progress, which take the place of the dashboard. Everything else goes to
//! [`log`], under targets that begin with `metastate_recipes`.

mod atomic;
pub mod data;
pub mod evaluate;
pub mod recipe;
pub mod train;

pub use recipe::Recipe;
pub use train::train;
