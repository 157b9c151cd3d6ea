//! Rules applied to the values of tensors, in f64.

use rwkv7_core::init::random::normal_at;

use crate::layer::{AxisGrowth, Fill, Heads, TensorRule, share};

/// Values and shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Row-major.
    pub data: Vec<f64>,
    /// Extent along each axis.
    pub shape: Vec<usize>,
}

/// The larger tensor of shape `to`. `initial` makes the initial values of a new model, if the rule needs them. `seed` decides the
/// random values.
pub fn apply(
    rule: &TensorRule,
    old: &Values,
    to: &[usize],
    heads: Heads,
    seed: u64,
    initial: impl FnOnce() -> Vec<f64>,
) -> Vec<f64> {
    let TensorRule::Grow {
        scale,
        axes,
        perturbed,
    } = rule
    else {
        unreachable!("only `Grow` makes a tensor out of one tensor, and this is {rule:?}");
    };
    assert_eq!(old.shape.len(), to.len(), "growth keeps the number of axes");
    let origins = origins(axes, &old.shape, to, heads);
    let uses = |new: Fill| {
        let mut all = origins.iter().flatten();
        all.any(|origin| *origin == Origin::New(new))
    };
    let initial = if *perturbed || uses(Fill::Initial) {
        initial()
    } else {
        Vec::new()
    };
    let deviation = deviation(old);
    let means = Means::new(axes, old, to);
    let mut index = vec![0; to.len()];
    let entry = |flat: usize| {
        let value = match entry(&index, &origins, &old.shape) {
            Entry::Old { at, share } => {
                let moved = if *perturbed { initial[flat] } else { 0.0 };
                scale * share * old.data[at] + moved
            }
            Entry::New(Fill::Mean) => scale * means.at(&index, &origins, &old.shape),
            Entry::New(Fill::Random) => deviation * normal_at(seed, flat as u64),
            Entry::New(Fill::Small) => 0.1 * deviation * normal_at(seed, flat as u64),
            Entry::New(Fill::Initial) => initial[flat],
            Entry::New(Fill::Zero | Fill::Copies(_)) => 0.0,
        };
        advance(&mut index, to);
        value
    };
    (0..to.iter().product()).map(entry).collect()
}

/// Whether each entry of the larger tensor is an old one that has kept its position.
pub(crate) fn old_entries(
    axes: &[AxisGrowth],
    from: &[usize],
    to: &[usize],
    heads: Heads,
) -> Vec<bool> {
    let origins = origins(axes, from, to, heads);
    let mut index = vec![0; to.len()];
    let entry = |_| {
        let old =
            |(axis, &i): (&Vec<Origin>, &usize)| matches!(axis[i], Origin::Old { copy: false, .. });
        let old = origins.iter().zip(&index).all(old);
        advance(&mut index, to);
        old
    };
    (0..to.iter().product()).map(entry).collect()
}

/// `c [I; 1/E 1ᵀ]`, `[width, E]`.
pub fn lift(width: usize, embed_width: usize, scale: f64, heads: Heads) -> Vec<f64> {
    let axis = AxisGrowth::Channels {
        heads: Fill::Mean,
        size: Fill::Mean,
    };
    let rows = axis_origins(axis, embed_width, width, heads);
    let row = |origin: &Origin| match *origin {
        Origin::Old { at, .. } => {
            let mut row = vec![0.0; embed_width];
            row[at] = scale;
            row
        }
        Origin::New(_) => vec![scale / embed_width as f64; embed_width],
    };
    rows.iter().flat_map(row).collect()
}

/// Ones on the diagonal of `[size, size]`.
pub fn identity(size: usize) -> Vec<f64> {
    let entry = |i: usize| if i.is_multiple_of(size + 1) { 1.0 } else { 0.0 };
    (0..size * size).map(entry).collect()
}

/// The embedding `[V, C']` and its norm's scale and shift `[C']` whose new channels come in pairs of opposite sign.
///
/// With x̂ the normalised embedding and q the mean of w x̂, the norm of the new embedding must give `c [w x̂ + b, q + mean(b), …]`.
/// Pairs +q, -q keep the mean at zero; embeddings of variance `m ε / (1 - m)` come out of the norm with variance m, so any
/// vector of mean zero and a mean square below one can be had exactly.
pub fn paired(
    embedding: &Values,
    weight: &[f64],
    bias: &[f64],
    width: usize,
    epsilon: f64,
    heads: Heads,
) -> [Vec<f64>; 3] {
    let old = weight.len();
    let scale = (width as f64 / old as f64).sqrt();
    let axis = AxisGrowth::Channels {
        heads: Fill::Mean,
        size: Fill::Mean,
    };
    let origins = axis_origins(axis, old, width, heads);
    let mut signs = [1.0, -1.0].into_iter().cycle();
    // The old channel, or the sign of a new one.
    let channels: Vec<Result<usize, f64>> = origins
        .iter()
        .map(|origin| match origin {
            Origin::Old { at, .. } => Ok(*at),
            Origin::New(_) => Err(signs.next().unwrap_or(1.0)),
        })
        .collect();
    let rows: Vec<(Vec<f64>, f64)> = embedding
        .data
        .chunks(old)
        .map(|row| {
            let mean = row.iter().sum::<f64>() / old as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / old as f64;
            let deviation = (variance + epsilon).sqrt();
            let normal: Vec<f64> = row.iter().map(|x| (x - mean) / deviation).collect();
            let written: f64 = normal.iter().zip(weight).map(|(x, w)| x * w).sum();
            (normal, written / old as f64)
        })
        .collect();
    let square = |(normal, q): &(Vec<f64>, f64)| {
        let squares: f64 = normal.iter().map(|x| x * x).sum();
        (squares + (width - old) as f64 * q * q) / width as f64
    };
    let largest = rows.iter().map(square).fold(f64::MIN_POSITIVE, f64::max);
    let shrink = (largest / 0.9).sqrt();
    let table = rows.iter().flat_map(|row| {
        let (normal, q) = row;
        let share = square(row) / (shrink * shrink);
        let size = (epsilon / (1.0 - share)).sqrt() / shrink;
        channels.iter().map(move |channel| match channel {
            Ok(at) => size * normal[*at],
            Err(sign) => size * sign * q,
        })
    });
    let mean = bias.iter().sum::<f64>() / old as f64;
    let weights = channels.iter().map(|channel| match channel {
        Ok(at) => scale * shrink * weight[*at],
        Err(sign) => scale * shrink * sign,
    });
    let biases = channels.iter().map(|channel| match channel {
        Ok(at) => scale * bias[*at],
        Err(_) => scale * mean,
    });
    [table.collect(), weights.collect(), biases.collect()]
}

/// The origin of one entry along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Origin {
    Old {
        at: usize,
        share: f64,
        /// Whether it is a further copy.
        copy: bool,
    },
    New(Fill),
}

/// The origin of every entry along every axis.
fn origins(axes: &[AxisGrowth], from: &[usize], to: &[usize], heads: Heads) -> Vec<Vec<Origin>> {
    assert_eq!(axes.len(), to.len(), "a rule has one entry for each axis");
    let lengths = from.iter().zip(to);
    let origins = axes.iter().zip(lengths);
    origins
        .map(|(axis, (from, to))| axis_origins(*axis, *from, *to, heads))
        .collect()
}

fn axis_origins(axis: AxisGrowth, from: usize, to: usize, heads: Heads) -> Vec<Origin> {
    let old = |at| Origin::Old {
        at,
        share: 1.0,
        copy: false,
    };
    let within = |i: usize, length: usize, to: usize, new: Fill| match new {
        Fill::Copies(power) => Origin::Old {
            at: i % length,
            share: share(i / length, to / length).powi(power),
            copy: i >= length,
        },
        _ if i < length => old(i),
        new => Origin::New(new),
    };
    let origin = |i: usize| match axis {
        _ if from == to => old(i),
        AxisGrowth::Spread { old } if i < old => Origin::Old {
            at: 0,
            share: 1.0,
            copy: i > 0,
        },
        AxisGrowth::Spread { .. } => Origin::New(Fill::Zero),
        AxisGrowth::Plain(new) => within(i, from, to, new),
        AxisGrowth::Channels { heads: new, size } => {
            let (head, channel) = (i / heads.to, i % heads.to);
            if head * heads.from >= from {
                return Origin::New(new);
            }
            match within(channel, heads.from, heads.to, size) {
                Origin::Old { at, share, copy } => Origin::Old {
                    at: head * heads.from + at,
                    share,
                    copy,
                },
                new => new,
            }
        }
    };
    (0..to).map(origin).collect()
}

enum Entry {
    Old { at: usize, share: f64 },
    New(Fill),
}

fn entry(index: &[usize], origins: &[Vec<Origin>], from: &[usize]) -> Entry {
    let order = |new: Fill| match new {
        Fill::Zero => 0,
        Fill::Random | Fill::Small => 1,
        Fill::Mean => 2,
        Fill::Initial | Fill::Copies(_) => 3,
    };
    let (mut flat, mut product, mut first) = (0, 1.0, None);
    for ((axis, &i), length) in origins.iter().zip(index).zip(from) {
        match axis[i] {
            Origin::Old { at, share, .. } => {
                flat = flat * length + at;
                product *= share;
            }
            Origin::New(new) => match first {
                Some(before) if order(before) <= order(new) => {}
                _ => first = Some(new),
            },
        }
    }
    match first {
        Some(new) => Entry::New(new),
        None => Entry::Old {
            at: flat,
            share: product,
        },
    }
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

/// The means of the old entries, along the axis whose new entries are means.
struct Means {
    axis: usize,
    /// As the old tensor, with one entry along that axis.
    values: Vec<f64>,
}

impl Means {
    fn new(axes: &[AxisGrowth], old: &Values, to: &[usize]) -> Self {
        let is_mean = |axis: &AxisGrowth| match axis {
            AxisGrowth::Plain(new) | AxisGrowth::Channels { heads: new, .. } => *new == Fill::Mean,
            AxisGrowth::Spread { .. } => false,
        };
        let longer = |axis: &usize| is_mean(&axes[*axis]) && to[*axis] > old.shape[*axis];
        let Some(axis) = (0..axes.len()).find(longer) else {
            return Self {
                axis: 0,
                values: Vec::new(),
            };
        };
        let inner: usize = old.shape[axis + 1..].iter().product();
        let length = old.shape[axis];
        let mean = |block: &[f64]| -> Vec<f64> {
            let mut sums = vec![0.0; inner];
            for row in block.chunks(inner) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sums.iter().map(|sum| sum / length as f64).collect()
        };
        Self {
            axis,
            values: old.data.chunks(inner * length).flat_map(mean).collect(),
        }
    }

    /// The mean for an entry, times its shares along the other axes.
    fn at(&self, index: &[usize], origins: &[Vec<Origin>], shape: &[usize]) -> f64 {
        let (mut flat, mut product) = (0, 1.0);
        for (axis, (&i, &length)) in index.iter().zip(shape).enumerate() {
            match origins[axis][i] {
                _ if axis == self.axis => {}
                Origin::Old { at, share, .. } => {
                    flat = flat * length + at;
                    product *= share;
                }
                Origin::New(new) => unreachable!("{new:?} comes before the mean"),
            }
        }
        product * self.values[flat]
    }
}

/// A table `[rows, width]` with random rows of the old ones' size after them.
pub fn with_new_rows(table: &[f64], width: usize, rows: usize, seed: u64) -> Values {
    let old = Values {
        data: table.to_vec(),
        shape: vec![table.len() / width, width],
    };
    let deviation = deviation(&old);
    let new = (table.len()..rows * width).map(|i| deviation * normal_at(seed, i as u64));
    Values {
        data: table.iter().copied().chain(new).collect(),
        shape: vec![rows, width],
    }
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

/// Random values so small that their products with a vector of ones have a deviation of 0.1.
pub fn small(shape: &[usize], seed: u64) -> Vec<f64> {
    let longest = shape.iter().copied().max().unwrap_or(1);
    let deviation = 0.1 / (longest as f64).sqrt();
    let count = shape.iter().product::<usize>() as u64;
    (0..count).map(|i| deviation * normal_at(seed, i)).collect()
}
