//! What becomes of each tensor, by its official name and layout (linear weights `[out, in]`).

use meta_state::{MetaStateConfig, MetaStateState, Sse};
use rwkv7_core::{
    Rwkv7Config,
    config::{LayerDims, SecondHalfConfig},
    layers::{ChannelMixConfig, ChannelMixState, SecondHalf},
};

use crate::{ScalingError, grow::pad};

/// Where the new entries along an axis come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New {
    /// Zeros.
    Zero,
    /// The mean of the old entries along the axis.
    Mean,
    /// Random values of the old ones' size: what they multiply is zero, and they must not be.
    Random,
    /// The values that the larger model starts with.
    Initial,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The old entries times `scale` come first along every axis; `axes` says where the others come from. Where an entry is
    /// new along several axes, zeros win over means, and means over the others.
    Grow {
        /// Factor on the old entries.
        scale: f64,
        /// One an axis.
        axes: Vec<New>,
    },
    /// `c [I; 1/C 1ᵀ]`: from the old width to the new one.
    Lift,
    /// All of it at its initial value.
    Fresh,
}

impl Rule {
    fn grow<const D: usize>(axes: [New; D]) -> Self {
        Self::scaled(1.0, axes)
    }

    fn scaled<const D: usize>(scale: f64, axes: [New; D]) -> Self {
        Self::Grow {
            scale,
            axes: axes.into(),
        }
    }

    /// A vector `[1, 1, C]`.
    fn vector(new: New) -> Self {
        Self::grow([New::Zero, New::Zero, new])
    }
}

/// A second half that can grow.
pub trait Growable: SecondHalfConfig {
    /// Checks that `self` can become `to`.
    ///
    /// # Errors
    ///
    /// [`ScalingError`] names the field.
    fn check(&self, to: &Self) -> Result<(), ScalingError>;

    /// The rule for the tensor called `name` within the second half; `scale` is c.
    fn rule(&self, name: &str, scale: f64) -> Rule;

    /// The layer's state in a model of these larger dimensions.
    fn grow_state(&self, state: StateOf<Self>, to: &LayerDims) -> StateOf<Self>;
}

/// What a layer of this configuration carries.
type StateOf<S> = <<S as SecondHalfConfig>::Layer as SecondHalf>::State;

impl Growable for ChannelMixConfig {
    fn check(&self, to: &Self) -> Result<(), ScalingError> {
        at_least("ffn_size", self.ffn_size, to.ffn_size)
    }

    fn rule(&self, name: &str, scale: f64) -> Rule {
        match name {
            "x_k" => Rule::vector(New::Initial),
            "key.weight" => Rule::grow([New::Random, New::Random]),
            "value.weight" => Rule::scaled(scale, [New::Mean, New::Zero]),
            other => unreachable!("no tensor of channel mixing is called {other}"),
        }
    }

    fn grow_state(&self, state: ChannelMixState, to: &LayerDims) -> ChannelMixState {
        ChannelMixState {
            shift: pad(state.shift, 1, to.n_embd),
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
            sse: if rank(self).is_some() && rank(to).is_some() {
                to.sse
            } else {
                self.sse
            },
            ..self.clone()
        };
        if alike != *to {
            return Err(ScalingError::Differs {
                field: "second_half",
                from: format!("{self:?}"),
                to: format!("{to:?}"),
                reason: "the choices of the Meta-State layer are part of what the model computes; keep them",
            });
        }
        Ok(())
    }

    fn rule(&self, name: &str, scale: f64) -> Rule {
        match name {
            "x_k" => Rule::vector(New::Initial),
            // New heads write nothing, even once they have woken up.
            "W_oms" => Rule::scaled(scale, [New::Zero, New::Zero, New::Mean]),
            "sse1" => Rule::grow([New::Random, New::Zero, New::Random]),
            "sse2" => Rule::grow([New::Random, New::Zero, New::Zero]),
            "mix" => Rule::grow([New::Initial, New::Initial]),
            "W_sse" => Rule::grow([New::Random, New::Zero, New::Zero]),
            "ln.weight" | "ln.bias" => Rule::grow([New::Initial]),
            other => unreachable!("no tensor of Meta-State is called {other}"),
        }
    }

    fn grow_state(&self, state: MetaStateState, to: &LayerDims) -> MetaStateState {
        MetaStateState {
            ms: pad(state.ms, 1, to.n_head()),
            shift: state.shift.map(|shift| pad(shift, 1, to.n_embd)),
        }
    }
}

/// The rule for a tensor outside the second halves: of a block, by its name there, or of the whole model.
pub(crate) fn rule<S>(config: &Rwkv7Config<S>, name: &str, scale: f64) -> Rule {
    match name {
        "emb.weight" => Rule::grow([New::Random, New::Zero]),
        "head.weight" => Rule::grow([New::Random, New::Random]),
        "ln0.weight" | "ln0.bias" => Rule::grow([New::Zero]),
        "lift.weight" if config.embed_width.is_some() => {
            Rule::scaled(scale, [New::Mean, New::Zero])
        }
        "lift.weight" => Rule::Lift,
        "ln1.weight" | "ln2.weight" | "ln_out.weight" => Rule::scaled(1.0 / scale, [New::Mean]),
        "ln1.bias" | "ln2.bias" | "ln_out.bias" => Rule::grow([New::Zero]),
        "att.x_r" | "att.x_w" | "att.x_k" | "att.x_v" | "att.x_a" | "att.x_g" | "att.w0"
        | "att.a0" | "att.v0" | "att.k_k" | "att.k_a" => Rule::vector(New::Initial),
        "att.ln_x.weight" | "att.ln_x.bias" => Rule::grow([New::Initial]),
        "att.r_k" => Rule::grow([New::Initial, New::Zero]),
        "att.receptance.weight" | "att.key.weight" | "att.value.weight" => {
            Rule::grow([New::Random, New::Random])
        }
        "att.w1" | "att.a1" | "att.v1" | "att.g1" => Rule::grow([New::Random, New::Random]),
        // Sigmoid of zero is not zero: only the second factor can keep new ranks silent.
        "att.w2" | "att.a2" | "att.v2" | "att.g2" => Rule::grow([New::Zero, New::Random]),
        "att.output.weight" => Rule::scaled(scale, [New::Mean, New::Zero]),
        other => unreachable!("no tensor of RWKV-7 is called {other}"),
    }
}

pub(crate) fn at_least(field: &'static str, from: usize, to: usize) -> Result<(), ScalingError> {
    if to < from {
        return Err(ScalingError::Shrinks { field, from, to });
    }
    Ok(())
}
