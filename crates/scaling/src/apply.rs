//! A rule applied to a tensor's values, in f64.

use crate::rules::{New, Rule};

/// Values and shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Row-major.
    pub data: Vec<f64>,
    /// Extent along each axis.
    pub shape: Vec<usize>,
}

/// The larger tensor of shape `to`. `initial` gives the values that the larger model starts with; it is asked only where
/// the rule needs them. `seed` decides the random values.
pub fn apply(
    rule: &Rule,
    old: &Values,
    to: &[usize],
    seed: u64,
    initial: impl FnOnce() -> Vec<f64>,
) -> Vec<f64> {
    match rule {
        Rule::Grow { scale, axes } => grow(old, to, *scale, axes, seed, initial),
        Rule::Fresh => initial(),
        Rule::Lift => unreachable!("a lift is made of nothing: see `lift`"),
    }
}

/// `c [I; 1/E 1ᵀ]`, `[width, E]`.
pub fn lift(width: usize, embed_width: usize, scale: f64) -> Vec<f64> {
    let entry = |row: usize, col: usize| match row {
        row if row == col => scale,
        row if row < embed_width => 0.0,
        _ => scale / embed_width as f64,
    };
    (0..width * embed_width)
        .map(|i| entry(i / embed_width, i % embed_width))
        .collect()
}

fn grow(
    old: &Values,
    to: &[usize],
    scale: f64,
    axes: &[New],
    seed: u64,
    initial: impl FnOnce() -> Vec<f64>,
) -> Vec<f64> {
    let from = &old.shape;
    assert_eq!(from.len(), to.len(), "growth keeps the number of axes");
    assert_eq!(axes.len(), to.len(), "a rule says something of every axis");
    let grows = |axis: usize| to[axis] > from[axis];
    let uses = |new: New| (0..axes.len()).any(|axis| axes[axis] == new && grows(axis));
    let initial = if uses(New::Initial) {
        initial()
    } else {
        Vec::new()
    };
    let deviation = deviation(old);
    let mut index = vec![0; to.len()];
    let entry = |flat: usize| {
        let value = match new_of(&index, from, axes) {
            None => scale * old.data[offset(&index, from)],
            Some(New::Zero) => 0.0,
            Some(New::Mean) => scale * mean(&index, old, axes),
            Some(New::Random) => deviation * gaussian(seed, flat as u64),
            Some(New::Initial) => initial[flat],
        };
        advance(&mut index, to);
        value
    };
    (0..to.iter().product()).map(entry).collect()
}

/// Where an entry comes from: none for an old one.
fn new_of(index: &[usize], from: &[usize], axes: &[New]) -> Option<New> {
    let new = |axis: &usize| index[*axis] >= from[*axis];
    let order = |new: New| match new {
        New::Zero => 0,
        New::Mean => 1,
        New::Initial => 2,
        New::Random => 3,
    };
    let kinds = (0..axes.len()).filter(new).map(|axis| axes[axis]);
    kinds.min_by_key(|&kind| order(kind))
}

fn offset(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i)
}

pub(crate) fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, n) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < *n {
            return;
        }
        *i = 0;
    }
}

/// The mean of the old entries along the axes on which the entry is new.
fn mean(index: &[usize], old: &Values, axes: &[New]) -> f64 {
    let axis = (0..axes.len()).find(|&a| index[a] >= old.shape[a]);
    let Some(axis) = axis else {
        unreachable!("an old entry has no mean");
    };
    let mut at = index.to_vec();
    let count = old.shape[axis];
    let sum: f64 = (0..count)
        .map(|i| {
            at[axis] = i;
            old.data[offset(&at, &old.shape)]
        })
        .sum();
    sum / count as f64
}

/// Root of the mean square, or of one over the length of the rows where all is zero.
fn deviation(old: &Values) -> f64 {
    let squares: f64 = old.data.iter().map(|x| x * x).sum();
    let rms = (squares / old.data.len().max(1) as f64).sqrt();
    if rms > 0.0 {
        rms
    } else {
        0.1 / (*old.shape.first().unwrap_or(&1) as f64).sqrt()
    }
}

/// A standard normal value that seed and place decide (splitmix64, Box-Muller).
pub fn gaussian(seed: u64, place: u64) -> f64 {
    let uniform = |stream: u64| {
        let mut x = seed ^ (2 * place + stream).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let radius = (-2.0 * (1.0 - uniform(0)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(1)).cos()
}

/// A seed for the tensor called `name`: FNV-1a.
pub fn named_seed(seed: u64, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
