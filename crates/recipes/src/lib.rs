//! Training recipes for RWKV-7 and Meta-State models on burn-train: data, recipes as JSON, training with Burn's dashboard, evaluation.

pub mod data;
pub mod evaluate;
pub mod model;
pub mod recipe;
pub mod train;
pub mod zoo;

pub use recipe::Recipe;
pub use train::train;
