//! Sizes that no model exceeds, and the error for a configuration that no model can have.

use std::borrow::Cow;

/// Largest size of one dimension, such as the vocabulary or the width. Products of two of them fit 64 bits.
pub const LARGEST_DIMENSION: usize = 1 << 24;

/// Largest number of layers.
pub const LARGEST_DEPTH: usize = 1 << 16;

/// Largest number of parameters. In f32 they take a terabyte, which no memory of one computer holds together with what computing
/// needs.
pub const LARGEST_MODEL: u64 = 1 << 38;

/// A configuration that no model can have.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A field holds a value that no model can have.
    #[error("configuration: `{field}` is {found}, expected {expected}")]
    Field {
        /// Name of the field.
        field: Cow<'static, str>,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// More parameters than any memory holds.
    #[error(
        "configuration: the model has {parameters} parameters, which take {bytes} bytes in f32, expected at most \
         {LARGEST_MODEL} parameters; make it narrower or less deep"
    )]
    TooLarge {
        /// Number of parameters; the largest integer stands for even more.
        parameters: usize,
        /// Bytes of the parameters in f32.
        bytes: u128,
    },
    /// No preset of this name.
    #[error("unknown model preset `{name}`; the presets are: {known}")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// All names, separated by commas.
        known: String,
    },
}

impl ConfigError {
    /// A field with a value that is not allowed.
    pub fn field(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}

/// Checks a size against the largest one.
///
/// # Errors
///
/// [`ConfigError::Field`].
pub fn check_size(field: &'static str, size: usize, largest: usize) -> Result<(), ConfigError> {
    match size {
        0 => Err(ConfigError::field(field, 0, "at least 1")),
        size if size > largest => Err(ConfigError::field(
            field,
            size,
            format!("at most {largest}"),
        )),
        _ => Ok(()),
    }
}

/// Whether this is a positive number in f32 as well, where numbers below 1.2e-38 count as 0.
pub fn is_positive(x: f64) -> bool {
    let x = x as f32;
    x.is_finite() && x >= f32::MIN_POSITIVE
}
