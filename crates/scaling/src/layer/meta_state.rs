//! The tensors of the Meta-State layer.

use meta_state::{MetaStateConfig, MetaStateState, Oms, Scale, Side, Sse};
use rwkv7_core::config::LayerDims;

use super::{AxisGrowth, Fill, Growable, GrowthAxes, Heads, TensorRule, at_least, copied};
use crate::{
    ScalingError,
    state::{grow_matrices, pad_channels},
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
        MetaStateState {
            ms: grow_matrices(state.ms * scale.powi(2), heads, to),
            shift: state
                .shift
                .map(|shift| pad_channels(shift * scale, heads, to)),
        }
    }
}
