//! The growth of one layer, for authors of layers. A [`TensorRule`] says how a tensor becomes larger, by its official name and
//! layout (linear weights `[out, in]`); [`Growable`] gives the rule of each tensor of a layer.

mod meta_state;
mod naive;
mod rwkv7;

use rwkv7_core::{
    config::{ChannelMixerConfig, LayerDims},
    layers::ChannelMixer,
};

use crate::ScalingError;

pub(crate) use naive::{paper, paper_random, shrink_perturb};
pub(crate) use rwkv7::rule;

/// A channel mixer that can grow.
pub trait Growable: ChannelMixerConfig {
    /// Checks that `self` can become `to`.
    ///
    /// # Errors
    ///
    /// [`ScalingError`] names the field.
    fn check(&self, to: &Self) -> Result<(), ScalingError>;

    /// The tensor that cannot grow to `to` without changing what the layer computes, with the reason and the remedy. The default is
    /// none.
    fn obstacle(&self, _to: &Self, _axes: &GrowthAxes) -> Option<(&'static str, &'static str)> {
        None
    }

    /// The rule for the tensor called `name` within the layer; `to` is the larger layer's configuration.
    fn rule(&self, to: &Self, name: &str, axes: &GrowthAxes) -> TensorRule;

    /// Factor on the layer's normalised input; 1 by default.
    fn input_scale(&self, _heads: Heads) -> f64 {
        1.0
    }

    /// The layer's state in a model of these larger dimensions.
    fn grow_state(
        &self,
        state: LayerStateOf<Self>,
        heads: Heads,
        to: &LayerDims,
    ) -> LayerStateOf<Self>;
}

/// The state of a layer of this configuration.
type LayerStateOf<S> = <<S as ChannelMixerConfig>::Layer as ChannelMixer>::State;

/// The head sizes of a growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The model's.
    pub from: usize,
    /// The larger model's.
    pub to: usize,
    /// Whether the norms over a head leave its new channels out.
    pub outside_norms: bool,
}

impl Heads {
    /// How many copies of itself a head becomes. None if the new size is no multiple of the old one, or if the new channels are no
    /// copies.
    pub fn copies(&self) -> Option<usize> {
        let copies = self.to / self.from;
        let possible = self.to.is_multiple_of(self.from) && !self.outside_norms;
        (possible || self.to == self.from).then_some(copies)
    }
}

/// The values of new entries along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zero,
    /// The mean of the old entries along the axis.
    Mean,
    /// Random values as large as the old ones. They multiply zeros, so any value is exact, but zeros would never receive a
    /// gradient.
    Random,
    /// Random values a tenth of the old ones' size.
    Small,
    /// The values that the larger model starts with.
    Initial,
    /// The old entries once more. Each copy is multiplied by its share to this power. The shares add up to 1, so the sum over the
    /// copies is the old value. The shares are unequal, as equal copies would get equal gradients for ever.
    Copies(i32),
}

impl Fill {
    /// Plain copies of the old entries.
    pub const COPY: Self = Self::Copies(0);
    /// Copies of the old entries, each times its share.
    pub const SHARE: Self = Self::Copies(1);
}

/// How a tensor becomes longer along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AxisGrowth {
    /// The old entries come first.
    Plain(Fill),
    /// One entry stood for all old heads. Every old head gets a copy of that entry, and new heads get zeros.
    Spread {
        /// Number of old heads.
        old: usize,
    },
    /// Channels `[H, N]`. The old heads come first, and in every head the old channels come first.
    Channels {
        /// Entries of new heads.
        heads: Fill,
        /// New entries of all heads.
        size: Fill,
    },
}

impl From<Fill> for AxisGrowth {
    fn from(new: Fill) -> Self {
        Self::Plain(new)
    }
}

/// How a tensor of the larger model is made.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorRule {
    /// The old entries times `scale`, with new entries around them. If an entry is new along several axes, zeros win over random
    /// values, random values over means, and means over the others.
    Grow {
        /// Factor on the old entries.
        scale: f64,
        /// One for each axis.
        axes: Vec<AxisGrowth>,
        /// Whether the larger model's initial values are added to the old entries.
        perturbed: bool,
    },
    /// `c [I; 1/C 1ᵀ]`: from the old width to the new one.
    Lift,
    /// An embedding, or its norm, whose new channels come in pairs of opposite sign; see [`Embedding::Paired`].
    ///
    /// [`Embedding::Paired`]: crate::Embedding::Paired
    Paired,
    /// Ones on the diagonal.
    Identity,
    /// The initial values of a new model.
    Fresh,
    /// Small random values instead of an initial value of zero. A product of two factors that are both zero never learns, and one
    /// factor of zero costs a step.
    Small,
}

impl TensorRule {
    /// The old entries as they are, with new entries around them.
    pub fn grow<const D: usize>(axes: [AxisGrowth; D]) -> Self {
        Self::scaled(1.0, axes)
    }

    /// The old entries times `scale`, with new entries around them.
    pub fn scaled<const D: usize>(scale: f64, axes: [AxisGrowth; D]) -> Self {
        Self::Grow {
            scale,
            axes: axes.into(),
            perturbed: false,
        }
    }

    /// A vector `[1, 1, C]` that grows along its last axis.
    pub fn vector(axis: AxisGrowth) -> Self {
        Self::grow([Fill::Zero.into(), Fill::Zero.into(), axis])
    }

    /// The rule for the mean of the gradients' powers of this order, which Adam keeps. A parameter θ' = sθ has the gradient g / s,
    /// and new entries have seen no gradient. None for a tensor without old entries.
    pub(crate) fn of_moment(&self, order: i32) -> Option<Self> {
        let seen = |new: Fill| match new {
            // If the next tensor splits its weight between copies, each copy gets that share of the gradient; a split tensor itself
            // gets the full gradient.
            Fill::COPY => Fill::Copies(order),
            Fill::Copies(_) => Fill::COPY,
            _ => Fill::Zero,
        };
        let axis = |axis: &AxisGrowth| match *axis {
            AxisGrowth::Spread { old } => AxisGrowth::Spread { old },
            AxisGrowth::Plain(new) => AxisGrowth::Plain(seen(new)),
            AxisGrowth::Channels { heads, size } => AxisGrowth::Channels {
                heads: seen(heads),
                size: seen(size),
            },
        };
        match self {
            Self::Grow {
                scale,
                axes,
                perturbed: false,
            } => {
                // The gradient of one entry for all heads is the sum over the heads.
                let shares = axes.iter().map(|axis| match axis {
                    AxisGrowth::Spread { old } => 1.0 / *old as f64,
                    _ => 1.0,
                });
                Some(Self::Grow {
                    scale: (shares.product::<f64>() / scale).powi(order),
                    axes: axes.iter().map(axis).collect(),
                    perturbed: false,
                })
            }
            _ => None,
        }
    }
}

/// The axes that the tensors of one growth have in common.
#[derive(Clone, Copy, Debug)]
pub struct GrowthAxes {
    /// c, the factor on the residual stream.
    pub scale: f64,
    /// The heads.
    pub heads: Heads,
    /// Number of heads of the smaller model.
    pub old_heads: usize,
    /// Number of heads that the larger model has more.
    pub new_heads: usize,
}

impl GrowthAxes {
    /// Channels of the residual stream.
    pub fn width(&self, new: Fill) -> AxisGrowth {
        AxisGrowth::Channels {
            heads: new,
            size: new,
        }
    }

    /// Channels of time mixing. `heads` fills new heads. `size` fills the new channels of a head; unless heads are copies of
    /// themselves, zeros take the place of copies.
    pub fn inner(&self, heads: Fill, size: Fill) -> AxisGrowth {
        let size = if self.heads.copies().is_some() {
            size
        } else {
            // Silent keys and outputs are exact if the norms leave the new channels out.
            match size {
                Fill::Copies(_) => Fill::Zero,
                other => other,
            }
        };
        AxisGrowth::Channels { heads, size }
    }

    /// Channels within one head, filled as `size` of [`inner`](Self::inner).
    pub fn within(&self, size: Fill) -> AxisGrowth {
        match self.inner(Fill::Zero, size) {
            AxisGrowth::Channels { size, .. } => AxisGrowth::Plain(size),
            other => other,
        }
    }
}

/// The share of the copy `copy` (from 0) of `copies`: 2/3 and 1/3, or 4/10 to 1/10.
pub(crate) fn share(copy: usize, copies: usize) -> f64 {
    let total: usize = (1..=copies).sum();
    (copies - copy) as f64 / total as f64
}

/// Copies if heads are copied. Otherwise any values are exact, and `free` fills the entries.
fn copied(axes: &GrowthAxes, free: Fill) -> Fill {
    axes.heads.copies().map_or(free, |_| Fill::COPY)
}

/// As [`copied`], with shares.
fn shared(axes: &GrowthAxes, free: Fill) -> Fill {
    axes.heads.copies().map_or(free, |_| Fill::SHARE)
}

pub(crate) fn at_least(field: &'static str, from: usize, to: usize) -> Result<(), ScalingError> {
    if to < from {
        return Err(ScalingError::Shrinks { field, from, to });
    }
    Ok(())
}
