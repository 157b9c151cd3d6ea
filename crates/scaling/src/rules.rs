//! What becomes of each tensor, by its official name and layout (linear weights `[out, in]`).

use burn::tensor::Tensor;
use meta_state::{MetaStateConfig, MetaStateState, Oms, Scale, Side, Sse};
use rwkv7_core::{
    Rwkv7Config,
    config::{ChannelMixerConfig, LayerDims},
    layers::{ChannelMixConfig, ChannelMixState, ChannelMixer},
};

use crate::{ScalingError, grow::pad, plan::Heads};

/// Factor of [`Method::ShrinkPerturb`](crate::Method::ShrinkPerturb) on what was learned.
const SHRINK: f64 = 0.4;

/// What the new entries along an axis are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New {
    /// Zeros.
    Zero,
    /// The mean of the old entries along the axis.
    Mean,
    /// Random values of the old ones' size: what they multiply is zero, and they must not be.
    Random,
    /// Random values a tenth of the old ones' size.
    Small,
    /// The values that the larger model starts with.
    Initial,
    /// The old ones once more, each copy times its share to this power. With shares, copies of what they multiply add up to
    /// what it was. The shares are unequal: equal ones would get equal gradients for ever.
    Copies(i32),
}

impl New {
    /// The old ones once more.
    const COPY: Self = Self::Copies(0);
    /// The old ones once more, shared out.
    const SHARE: Self = Self::Copies(1);
}

/// Where the old entries are along an axis, and what the others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The old ones first.
    Plain(New),
    /// One entry that stood for every old head: it is copied to each, and new heads have zeros.
    Spread {
        /// Number of old heads.
        old: usize,
    },
    /// Channels `[H, N]`: the old ones first in every head, the old heads first.
    Channels {
        /// Entries of new heads.
        heads: New,
        /// New entries of all heads.
        size: New,
    },
}

impl From<New> for Axis {
    fn from(new: New) -> Self {
        Self::Plain(new)
    }
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The old entries times `scale`, and others around them. Where an entry is new along several axes, zeros win over
    /// means, and means over the others.
    Grow {
        /// Factor on the old entries.
        scale: f64,
        /// One an axis.
        axes: Vec<Axis>,
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
    /// All of it at its initial value.
    Fresh,
    /// Small random values, where the initial value is zero: a product of two factors that are both zero never learns, and one
    /// of them being zero costs a step.
    Small,
}

impl Rule {
    fn grow<const D: usize>(axes: [Axis; D]) -> Self {
        Self::scaled(1.0, axes)
    }

    fn scaled<const D: usize>(scale: f64, axes: [Axis; D]) -> Self {
        Self::Grow {
            scale,
            axes: axes.into(),
            perturbed: false,
        }
    }

    /// A vector `[1, 1, C]`.
    fn vector(axis: Axis) -> Self {
        Self::grow([New::Zero.into(), New::Zero.into(), axis])
    }

    /// What becomes of the mean of the gradients' powers of this order, which Adam keeps: θ' = sθ has the gradient g / s. New
    /// entries have seen nothing. None where no old entries are.
    pub(crate) fn of_moment(&self, order: i32) -> Option<Self> {
        let seen = |new: New| match new {
            // What is shared out further on gets a share of the gradient; what is shared out itself gets all of it.
            New::COPY => New::Copies(order),
            New::Copies(_) => New::COPY,
            _ => New::Zero,
        };
        let axis = |axis: &Axis| match *axis {
            Axis::Spread { old } => Axis::Spread { old },
            Axis::Plain(new) => Axis::Plain(seen(new)),
            Axis::Channels { heads, size } => Axis::Channels {
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
                // What one entry did for all heads, each head's own does for one of them.
                let shares = axes.iter().map(|axis| match axis {
                    Axis::Spread { old } => 1.0 / *old as f64,
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

/// How the axes of one growth's tensors become longer.
#[derive(Clone, Copy, Debug)]
pub struct Axes {
    /// c, the factor on the residual stream.
    pub scale: f64,
    /// The heads.
    pub heads: Heads,
    /// Number of heads of the smaller model.
    pub old_heads: usize,
}

impl Axes {
    /// Channels of the residual stream.
    pub fn width(&self, new: New) -> Axis {
        Axis::Channels {
            heads: new,
            size: new,
        }
    }

    /// Channels of time mixing: those of new heads, and those within a head where it is a copy of the old ones.
    fn inner(&self, heads: New, size: New) -> Axis {
        let size = if self.heads.copies().is_some() {
            size
        } else {
            // Silent keys and outputs: exact where the norms leave the new channels out.
            match size {
                New::Copies(_) => New::Zero,
                other => other,
            }
        };
        Axis::Channels { heads, size }
    }

    /// Channels within one head.
    fn within(&self, size: New) -> Axis {
        match self.inner(New::Zero, size) {
            Axis::Channels { size, .. } => Axis::Plain(size),
            other => other,
        }
    }
}

/// A channel mixer that can grow.
pub trait Growable: ChannelMixerConfig {
    /// Checks that `self` can become `to`.
    ///
    /// # Errors
    ///
    /// [`ScalingError`] names the field.
    fn check(&self, to: &Self) -> Result<(), ScalingError>;

    /// The tensor that cannot be grown without changing what is computed, and the reason; heads of more channels are copies of
    /// themselves where `heads` says so.
    fn obstacle(&self, heads: Heads) -> Option<(&'static str, &'static str)>;

    /// The rule for the tensor called `name` within the channel mixer, which becomes `to`.
    fn rule(&self, to: &Self, name: &str, axes: &Axes) -> Rule;

    /// Factor on the channel mixer's normalised input.
    fn input_scale(&self, heads: Heads) -> f64;

    /// The layer's state in a model of these larger dimensions.
    fn grow_state(
        &self,
        state: LayerStateOf<Self>,
        heads: Heads,
        to: &LayerDims,
    ) -> LayerStateOf<Self>;
}

/// What a layer of this configuration carries.
type LayerStateOf<S> = <<S as ChannelMixerConfig>::Layer as ChannelMixer>::State;

impl Growable for ChannelMixConfig {
    fn check(&self, to: &Self) -> Result<(), ScalingError> {
        at_least("ffn_size", self.ffn_size, to.ffn_size)
    }

    fn obstacle(&self, _heads: Heads) -> Option<(&'static str, &'static str)> {
        None
    }

    fn rule(&self, _to: &Self, name: &str, axes: &Axes) -> Rule {
        let random = || New::Random.into();
        match name {
            "x_k" => Rule::vector(axes.width(New::Initial)),
            "key.weight" => Rule::grow([random(), axes.width(New::Random)]),
            "value.weight" => Rule::scaled(axes.scale, [axes.width(New::Mean), New::Zero.into()]),
            other => unreachable!("no tensor of channel mixing is called {other}"),
        }
    }

    fn input_scale(&self, _heads: Heads) -> f64 {
        1.0
    }

    fn grow_state(&self, state: ChannelMixState, heads: Heads, to: &LayerDims) -> ChannelMixState {
        ChannelMixState {
            shift: pad_channels(state.shift, heads, to),
        }
    }
}

impl Growable for MetaStateConfig {
    fn check(&self, to: &Self) -> Result<(), ScalingError> {
        let rank = |config: &Self| match config.sse {
            Sse::LowRank(rank) => Some(rank),
            _ => None,
        };
        if let (Some(from), Some(to)) = (rank(self), rank(to)) {
            at_least("sse.low-rank", from, to)?;
        }
        let alike = Self {
            oms: if self.oms == Oms::Shared {
                to.oms
            } else {
                self.oms
            },
            sse: match (self.sse, to.sse) {
                (Sse::LowRank(_), Sse::LowRank(_)) | (Sse::State, Sse::Projected) => to.sse,
                _ => self.sse,
            },
            ..self.clone()
        };
        if alike != *to {
            return Err(ScalingError::Differs {
                field: "ffn",
                from: format!("{self:?}"),
                to: format!("{to:?}"),
                reason: "the choices of the Meta-State layer are part of what the model computes; keep them, but for oms, which may \
                         become per-head, and sse, where `state` may become `projected`",
            });
        }
        Ok(())
    }

    fn obstacle(&self, heads: Heads) -> Option<(&'static str, &'static str)> {
        if heads.from == heads.to {
            return None;
        }
        let copies = heads.copies().is_some();
        match self {
            Self {
                sse: Sse::TopLeft(_),
                ..
            } if copies => Some((
                "W_oms",
                "the state's first n rows and columns are a smaller part of a larger head",
            )),
            Self {
                scale: Scale::L2, ..
            } if copies => Some((
                "W_oms",
                "z of length 1 stays of length 1 in a larger head, so z msᵀ becomes smaller against the norm's epsilon",
            )),
            Self { center: true, .. } if !copies => {
                Some(("W_oms", "z has another mean over more channels"))
            }
            Self {
                side: Side::Key,
                sse,
                ..
            } if !copies && *sse != Sse::Learned => Some((
                "W_oms",
                "read along its key side, the state gives the new channels of a head something to write",
            )),
            _ => None,
        }
    }

    fn rule(&self, to: &Self, name: &str, axes: &Axes) -> Rule {
        let random = || New::Random.into();
        match name {
            "x_k" => Rule::vector(axes.width(New::Initial)),
            // New heads write nothing, even once they have woken up.
            "W_oms" => Rule::scaled(
                axes.scale,
                [
                    match to.oms {
                        Oms::PerHead if self.oms == Oms::Shared => Axis::Spread {
                            old: axes.old_heads,
                        },
                        _ => New::Zero.into(),
                    },
                    axes.within(New::SHARE),
                    axes.width(New::Mean),
                ],
            ),
            "sse1" => Rule::grow([random(), random(), random()]),
            "sse2" => Rule::grow([random(), New::Zero.into(), axes.within(New::SHARE)]),
            // The state's new rows are read by nothing at first.
            "W_in" if self.sse == Sse::Projected => Rule::grow([random(), New::Zero.into()]),
            "W_in" => Rule::Identity,
            "mix" => Rule::grow([New::Initial.into(), New::Initial.into()]),
            "W_sse" => Rule::grow([random(), random(), axes.within(New::COPY)]),
            "ln.weight" | "ln.bias" => {
                Rule::grow([axes.inner(New::Initial, copied(axes, New::Initial))])
            }
            other => unreachable!("no tensor of Meta-State is called {other}"),
        }
    }

    /// z and ms of k copies of a head: z msᵀ has k times as many products of three factors.
    fn input_scale(&self, heads: Heads) -> f64 {
        match heads.copies() {
            Some(copies) => (copies as f64).powf(-1.0 / 3.0),
            None => 1.0,
        }
    }

    fn grow_state(&self, state: MetaStateState, heads: Heads, to: &LayerDims) -> MetaStateState {
        let scale = self.input_scale(heads);
        MetaStateState {
            ms: grow_matrices(state.ms * scale.powi(2), heads, to),
            shift: state
                .shift
                .map(|shift| pad_channels(shift * scale, heads, to)),
        }
    }
}

/// `[batch, C]` with zeros for the new channels.
pub(crate) fn pad_channels(x: Tensor<2>, heads: Heads, to: &LayerDims) -> Tensor<2> {
    let [batch, width] = x.dims();
    let x = x.reshape([batch, width / heads.from, heads.from]);
    let x = pad(pad(x, 2, heads.to), 1, to.n_head());
    x.reshape([batch, to.n_embd])
}

/// `[batch, H, n, n]` in larger heads, and zeros for new heads.
pub(crate) fn grow_matrices(x: Tensor<4>, heads: Heads, to: &LayerDims) -> Tensor<4> {
    let size = x.dims()[3];
    let x = match heads.copies() {
        Some(copies) => x.repeat_dim(2, copies).repeat_dim(3, copies),
        // A part of the state that has its own size keeps it.
        None if size == heads.from => pad(pad(x, 2, heads.to), 3, heads.to),
        None => x,
    };
    pad(x, 1, to.n_head())
}

/// The rule for a tensor outside the channel mixers: of a block, by its name there, or of the whole model.
pub(crate) fn rule<S: Growable>(config: &Rwkv7Config<S>, name: &str, axes: &Axes) -> Rule {
    let scale = axes.scale;
    let random = || New::Random.into();
    match name {
        "emb.weight" => Rule::grow([random(), axes.width(New::Zero)]),
        // As likely as a token is on average: nothing is known of them.
        "head.weight" => Rule::grow([New::Mean.into(), axes.width(New::Random)]),
        "ln0.weight" | "ln0.bias" => Rule::grow([axes.width(New::Zero)]),
        "lift.weight" if config.embed_width.is_some() => {
            Rule::scaled(scale, [axes.width(New::Mean), New::Zero.into()])
        }
        "lift.weight" => Rule::Lift,
        "ln1.weight" | "ln_out.weight" => Rule::scaled(1.0 / scale, [axes.width(New::Mean)]),
        "ln2.weight" => {
            let input = config.ffn.input_scale(axes.heads);
            Rule::scaled(input / scale, [axes.width(New::Mean)])
        }
        "ln2.bias" => {
            let input = config.ffn.input_scale(axes.heads);
            Rule::scaled(input, [axes.width(New::Zero)])
        }
        "ln1.bias" | "ln_out.bias" => Rule::grow([axes.width(New::Zero)]),
        "att.x_r" | "att.x_w" | "att.x_k" | "att.x_v" | "att.x_a" | "att.x_g" => {
            Rule::vector(axes.width(New::Initial))
        }
        "att.w0" | "att.a0" | "att.v0" | "att.k_k" | "att.k_a" => {
            Rule::vector(axes.inner(New::Initial, copied(axes, New::Initial)))
        }
        "att.ln_x.weight" | "att.ln_x.bias" => {
            Rule::grow([axes.inner(New::Initial, copied(axes, New::Initial))])
        }
        "att.r_k" => Rule::grow([New::Initial.into(), copied(axes, New::Initial).into()]),
        "att.receptance.weight" => Rule::grow([
            axes.inner(New::Random, shared(axes, New::Random)),
            axes.width(New::Random),
        ]),
        "att.key.weight" => {
            Rule::grow([axes.inner(New::Random, New::COPY), axes.width(New::Random)])
        }
        "att.value.weight" => Rule::grow([
            axes.inner(New::Random, copied(axes, New::Random)),
            axes.width(New::Random),
        ]),
        "att.w1" | "att.a1" | "att.v1" | "att.g1" => {
            Rule::grow([axes.width(New::Random), random()])
        }
        // Sigmoid of zero is not zero: only the second factor can keep new ranks silent.
        "att.w2" | "att.a2" | "att.v2" | "att.g2" => Rule::grow([
            New::Zero.into(),
            axes.inner(New::Random, copied(axes, New::Random)),
        ]),
        "att.output.weight" => Rule::scaled(
            scale,
            [axes.width(New::Mean), axes.inner(New::Zero, New::SHARE)],
        ),
        other => unreachable!("no tensor of RWKV-7 is called {other}"),
    }
}

/// Copies where heads are copied, else what is free to be anything.
fn copied(axes: &Axes, free: New) -> New {
    axes.heads.copies().map_or(free, |_| New::COPY)
}

fn shared(axes: &Axes, free: New) -> New {
    axes.heads.copies().map_or(free, |_| New::SHARE)
}

/// The share of the copy `copy` (from 0) of `copies`: 2/3 and 1/3, or 4/10 to 1/10.
pub(crate) fn share(copy: usize, copies: usize) -> f64 {
    let total: usize = (1..=copies).sum();
    (copies - copy) as f64 / total as f64
}

/// The paper's growth (eq. 7 to 11) of a tensor that this rule would grow exactly: old entries as they are, the others as the
/// larger model starts. That is zero for the appended columns of W_oms.
pub(crate) fn paper(rule: Rule) -> Rule {
    naive(rule, 1.0, false)
}

/// The same with small random values in the appended columns of W_oms.
pub(crate) fn paper_random(rule: Rule, name: &str) -> Rule {
    match paper(rule) {
        Rule::Grow {
            scale,
            mut axes,
            perturbed,
        } if name.ends_with(".W_oms") => {
            if let Some(columns) = axes.last_mut() {
                *columns = Axis::Channels {
                    heads: New::Small,
                    size: New::Small,
                };
            }
            Rule::Grow {
                scale,
                axes,
                perturbed,
            }
        }
        other => other,
    }
}

/// What was learned made smaller, plus the larger model's initial values; vectors as in [`paper`].
pub(crate) fn shrink_perturb(rule: Rule, is_vector: bool) -> Rule {
    match is_vector {
        true => paper(rule),
        false => naive(rule, SHRINK, true),
    }
}

fn naive(rule: Rule, scale: f64, perturbed: bool) -> Rule {
    let axis = |axis| match axis {
        Axis::Spread { old } => Axis::Spread { old },
        Axis::Plain(_) => New::Initial.into(),
        Axis::Channels { .. } => Axis::Channels {
            heads: New::Initial,
            size: New::Initial,
        },
    };
    match rule {
        Rule::Grow { axes, .. } => Rule::Grow {
            scale,
            axes: axes.into_iter().map(axis).collect(),
            perturbed,
        },
        // Instead of an identity the values of a new model.
        Rule::Identity => Rule::Fresh,
        other => other,
    }
}

pub(crate) fn at_least(field: &'static str, from: usize, to: usize) -> Result<(), ScalingError> {
    if to < from {
        return Err(ScalingError::Shrinks { field, from, to });
    }
    Ok(())
}
