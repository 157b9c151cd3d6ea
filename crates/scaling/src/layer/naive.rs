//! Growth without regard to what the model computes.

use super::{AxisGrowth, Fill, TensorRule};

/// Factor of [`Method::ShrinkPerturb`](crate::Method::ShrinkPerturb) on the old entries.
const SHRINK: f64 = 0.4;

/// The paper's growth (eq. 7 to 11) instead of this exact rule. Old entries stay as they are, and new entries have the initial
/// values of a new model, which are zero for the appended columns of W_oms.
pub(crate) fn paper(rule: TensorRule) -> TensorRule {
    naive(rule, 1.0, false)
}

/// [`paper`] with small random values in the appended columns of W_oms.
pub(crate) fn paper_random(rule: TensorRule, name: &str) -> TensorRule {
    match paper(rule) {
        TensorRule::Grow {
            scale,
            mut axes,
            perturbed,
        } if name.ends_with(".W_oms") => {
            if let Some(columns) = axes.last_mut() {
                *columns = AxisGrowth::Channels {
                    heads: Fill::Small,
                    size: Fill::Small,
                };
            }
            TensorRule::Grow {
                scale,
                axes,
                perturbed,
            }
        }
        other => other,
    }
}

/// The old entries made smaller, plus the initial values of a new model; vectors as in [`paper`].
pub(crate) fn shrink_perturb(rule: TensorRule, is_vector: bool) -> TensorRule {
    match is_vector {
        true => paper(rule),
        false => naive(rule, SHRINK, true),
    }
}

fn naive(rule: TensorRule, scale: f64, perturbed: bool) -> TensorRule {
    let axis = |axis| match axis {
        AxisGrowth::Spread { old } => AxisGrowth::Spread { old },
        AxisGrowth::Plain(_) => Fill::Initial.into(),
        AxisGrowth::Channels { .. } => AxisGrowth::Channels {
            heads: Fill::Initial,
            size: Fill::Initial,
        },
    };
    match rule {
        TensorRule::Grow { axes, .. } => TensorRule::Grow {
            scale,
            axes: axes.into_iter().map(axis).collect(),
            perturbed,
        },
        // A new model starts with other values than the identity.
        TensorRule::Identity => TensorRule::Fresh,
        other => other,
    }
}
