//! The tensors of the Meta-State layer.

use meta_state::{MetaStateConfig, MetaStateState, Oms, Scale, Side, Sse};
use rwkv7_core::config::LayerDims;

use super::{AxisGrowth, Fill, Growable, GrowthAxes, Heads, TensorRule, at_least, copied};
use crate::{
    ScalingError,
    state::{grow_matrices, pad, pad_channels},
};

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

    fn obstacle(&self, to: &Self, axes: &GrowthAxes) -> Option<(&'static str, &'static str)> {
        let larger = axes.heads.from != axes.heads.to;
        let copied = larger && axes.heads.copies().is_some();
        let padded = larger && !copied && !matches!(self.sse, Sse::TopLeft(_));
        let l2 = self.scale == Scale::L2;
        let reason = if copied && matches!(self.sse, Sse::TopLeft(_)) {
            "the state's first n rows and columns are a smaller part of a larger head; grow the number of heads, or give the old \
             head size as norm_prefix"
        } else if copied && l2 {
            "z of length 1 stays of length 1 in a larger head, so z msᵀ becomes smaller against the norm's epsilon; grow the number \
             of heads, or give the old head size as norm_prefix"
        } else if padded && self.center {
            "z has another mean over more channels; grow the number of heads, or the head size to a multiple of the old one"
        } else if padded && self.side == Side::Key {
            "read along its key side, the state gives the new channels of a head something to write; grow the number of heads, or \
             the head size to a multiple of the old one"
        } else if l2 && to.oms == Oms::Shared && axes.new_heads > 0 {
            "a new head reads rounding errors, which `l2` makes as long as every other z, and the W_oms of all heads writes them; \
             give each head its own W_oms: {\"ffn\": {\"oms\": \"per-head\"}}"
        } else {
            return None;
        };
        Some(("W_oms", reason))
    }

    fn rule(&self, to: &Self, name: &str, axes: &GrowthAxes) -> TensorRule {
        let random = || Fill::Random.into();
        match name {
            "x_k" => TensorRule::vector(axes.width(Fill::Initial)),
            // New heads write nothing, even after they have learned to read.
            "W_oms" => TensorRule::scaled(
                axes.scale,
                [
                    match to.oms {
                        Oms::PerHead if self.oms == Oms::Shared => AxisGrowth::Spread {
                            old: axes.old_heads,
                        },
                        _ => Fill::Zero.into(),
                    },
                    axes.within(Fill::SHARE),
                    axes.width(Fill::Mean),
                ],
            ),
            "sse1" => TensorRule::grow([random(), random(), random()]),
            "sse2" => TensorRule::grow([random(), Fill::Zero.into(), axes.within(Fill::SHARE)]),
            // At first nothing reads the state's new rows.
            "W_in" if self.sse == Sse::Projected => TensorRule::grow([random(), Fill::Zero.into()]),
            "W_in" => TensorRule::Identity,
            "mix" => TensorRule::grow([Fill::Initial.into(), Fill::Initial.into()]),
            "W_sse" => TensorRule::grow([random(), random(), axes.within(Fill::COPY)]),
            // n channels a head, whatever the head size is.
            "ln.weight" | "ln.bias" if matches!(self.sse, Sse::TopLeft(_)) => {
                TensorRule::grow([Fill::Initial.into()])
            }
            "ln.weight" | "ln.bias" => {
                TensorRule::grow([axes.inner(Fill::Initial, copied(axes, Fill::Initial))])
            }
            other => unreachable!("no tensor of Meta-State is called {other}"),
        }
    }

    /// A head of k copies sums k times as many products of three factors in z msᵀ.
    fn input_scale(&self, heads: Heads) -> f64 {
        match heads.copies() {
            Some(copies) => (copies as f64).powf(-1.0 / 3.0),
            None => 1.0,
        }
    }

    fn grow_state(&self, state: MetaStateState, heads: Heads, to: &LayerDims) -> MetaStateState {
        let scale = self.input_scale(heads);
        let ms = state.ms * scale.powi(2);
        MetaStateState {
            ms: match self.sse {
                Sse::TopLeft(_) => pad(ms, 1, to.n_head()),
                _ => grow_matrices(ms, heads, to),
            },
            shift: state
                .shift
                .map(|shift| pad_channels(shift * scale, heads, to)),
        }
    }
}
