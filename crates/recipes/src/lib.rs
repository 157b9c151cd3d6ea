//! Training recipes for RWKV-7 and Meta-State models on burn-train: data, recipes as JSON, training with Burn's dashboard, evaluation.

mod atomic;
pub mod data;
pub mod evaluate;
pub mod recipe;
pub mod train;

pub use recipe::Recipe;
pub use train::train;
