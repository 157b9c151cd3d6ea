//! Why a recipe cannot be used.

use std::path::PathBuf;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a built-in recipe nor a file.
    #[error("no recipe `{name}`: neither a file nor one of {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The built-in recipes.
        known: String,
    },
    /// The file cannot be read.
    #[error("recipe {}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The JSON is wrong: its syntax, a key or a type.
    #[error("recipe {name}: {reason}")]
    Json {
        /// The recipe.
        name: String,
        /// The reason.
        reason: String,
    },
    /// An override of a key that there is not.
    #[error("--set {key}: a recipe has no such key; the keys are: {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// All keys.
        known: String,
    },
    /// An override without a value, or with one of the wrong type.
    #[error("--set {setting}: {reason}")]
    Override {
        /// The override as given.
        setting: String,
        /// The reason.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("recipe: `{key}` is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The allowed values.
        expected: &'static str,
    },
    /// A model or batches far larger than the memory.
    #[error(
        "recipe: training takes about {needed} of memory, for {parameters:.3e} parameters and {tokens:.3e} tokens a batch, and there \
         are {limit}; make model.n_layer, model.n_embd, model.vocab_size, batch_size or context smaller"
    )]
    TooLarge {
        /// The memory that it would take.
        needed: String,
        /// About the parameters of the model.
        parameters: f64,
        /// Tokens of a batch.
        tokens: f64,
        /// The memory that there can be.
        limit: String,
    },
}
