//! A plan in words, one line a tensor.

use std::fmt;

use super::{Plan, Step};
use crate::layer::{AxisGrowth, Fill, Heads, TensorRule};

impl<S> fmt::Display for Plan<S> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for Step {
            name,
            source,
            from,
            to,
            rule,
            heads,
            ..
        } in &self.steps
        {
            write!(out, "{name} ")?;
            match source {
                Some(source) if source != name => write!(out, "(from {source}) ")?,
                _ => {}
            }
            match rule {
                TensorRule::Fresh => write!(out, "{to:?}: initial values")?,
                TensorRule::Small => write!(out, "{to:?}: small random values")?,
                TensorRule::Identity => write!(out, "{to:?}: the identity")?,
                TensorRule::Lift => write!(out, "{to:?}: the embedding's width to the model's")?,
                TensorRule::Paired => write!(out, "{from:?} -> {to:?}: new channels in pairs")?,
                TensorRule::Grow {
                    scale,
                    axes,
                    perturbed,
                } => {
                    write!(out, "{from:?} -> {to:?}: old entries")?;
                    if *scale != 1.0 {
                        write!(out, " times {scale:.6}")?;
                    }
                    if *perturbed {
                        write!(out, " plus initial values")?;
                    }
                    for (axis, kind) in axes.iter().enumerate() {
                        if to[axis] > from[axis] {
                            write!(out, ", {} new along axis {axis}: ", to[axis] - from[axis])?;
                            new_entries(out, *kind, from[axis], to[axis], *heads)?;
                        }
                    }
                }
            }
            writeln!(out)?;
        }
        if let Some((tensor, reason)) = self.obstacle.as_ref().filter(|_| !self.method.is_naive()) {
            writeln!(out, "not exact: {tensor}: {reason}")?;
        }
        Ok(())
    }
}

/// The new entries along an axis, in words.
fn new_entries(
    out: &mut fmt::Formatter,
    axis: AxisGrowth,
    from: usize,
    to: usize,
    heads: Heads,
) -> fmt::Result {
    let name = |new: Fill| match new {
        Fill::Zero => "zero",
        Fill::Mean => "the mean of the old ones",
        Fill::Random => "random",
        Fill::Small => "small and random",
        Fill::Initial => "initial values",
        Fill::Copies(0) => "copies",
        Fill::Copies(_) => "copies, shared out",
    };
    let (new, size) = match axis {
        AxisGrowth::Spread { old } => {
            return write!(out, "copies for the {old} old heads, else zero");
        }
        AxisGrowth::Plain(new) => return write!(out, "{}", name(new)),
        AxisGrowth::Channels { heads, size } => (heads, size),
    };
    if heads.from == heads.to || new == size {
        return write!(out, "{}", name(new));
    }
    write!(
        out,
        "{} within each head {}",
        heads.to - heads.from,
        name(size)
    )?;
    if to / heads.to > from / heads.from {
        write!(out, ", new heads {}", name(new))?;
    }
    Ok(())
}
