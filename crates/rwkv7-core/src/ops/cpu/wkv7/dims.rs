//! Sizes and inputs of the operator.

/// Largest supported key or value size.
pub const MAX_SIZE: usize = 256;

/// Tokens between two saved states. For heads of 64, speed is the same from 32 to 128 tokens; 64
/// saves one `[time, heads, 64]` array of states and keeps the backward in a 512 KiB cache.
pub const DEFAULT_CHUNK: usize = 64;

/// The sizes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch rows.
    pub batch: usize,
    /// Tokens per row.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Rows of the state (value size), 1 to [`MAX_SIZE`].
    pub value: usize,
    /// Columns of the state (key size), 1 to [`MAX_SIZE`].
    pub key: usize,
}

impl Dims {
    /// Elements of a `[batch, time, heads, key]` array.
    pub fn keys(&self) -> usize {
        self.batch * self.time * self.heads * self.key
    }

    /// Elements of a `[batch, time, heads, value]` array.
    pub fn values(&self) -> usize {
        self.batch * self.time * self.heads * self.value
    }

    /// Elements of a `[batch, heads, value, key]` array.
    pub fn states(&self) -> usize {
        self.batch * self.heads * self.state()
    }

    /// Elements of the `[batch, heads, ceil(time / chunk), key, value]` chunk starts.
    pub fn starts(&self, chunk: usize) -> usize {
        self.states() * self.time.div_ceil(chunk)
    }

    /// Batch rows times heads.
    pub(crate) fn count(&self) -> usize {
        self.batch * self.heads
    }

    pub(crate) fn state(&self) -> usize {
        self.value * self.key
    }

    pub(crate) fn check(&self) {
        assert!(
            (1..=MAX_SIZE).contains(&self.value) && (1..=MAX_SIZE).contains(&self.key),
            "key and value sizes must lie in 1..={MAX_SIZE}, found {self:?}"
        );
    }
}

/// What drives the state: f32, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Logarithm of the decay, at most 0: `[batch, time, heads, key]`.
    pub log_w: &'a [f32],
    /// Replacement key: `[batch, time, heads, key]`.
    pub k: &'a [f32],
    /// Value: `[batch, time, heads, value]`.
    pub v: &'a [f32],
    /// Removal key, negated (`-κ̂`): `[batch, time, heads, key]`.
    pub a: &'a [f32],
    /// Removal key times the in-context learning rate: `[batch, time, heads, key]`.
    pub b: &'a [f32],
}

impl Inputs<'_> {
    pub(crate) fn check(&self, dims: &Dims) {
        dims.check();
        for (name, array) in [
            ("log_w", self.log_w),
            ("k", self.k),
            ("a", self.a),
            ("b", self.b),
        ] {
            check_len(name, array, dims.keys());
        }
        check_len("v", self.v, dims.values());
    }
}

pub(crate) fn check_len(name: &str, array: &[f32], expected: usize) {
    assert!(
        array.len() == expected,
        "{name} has {} elements, expected {expected}",
        array.len()
    );
}
