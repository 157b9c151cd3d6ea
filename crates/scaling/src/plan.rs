//! A growth, tensor by tensor.

use std::{collections::BTreeMap, fmt};

use rwkv7_core::{Rwkv7Config, checkpoint, layers::SecondHalf};
use serde::{Deserialize, Serialize};

use crate::{
    ScalingError,
    rules::{self, Growable, New, Rule, at_least},
};

/// How a model is grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The larger model computes what the smaller one does.
    #[default]
    Lossless,
    /// New blocks are copies of old ones instead of blocks that add nothing; widths as in `lossless`. The outputs change.
    Stack,
}

/// What becomes of one tensor of the larger model.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its official name.
    pub name: String,
    /// The tensor that it grows out of; none for tensors of new blocks and for a lift.
    pub source: Option<String>,
    /// Shape of the source.
    pub from: Vec<usize>,
    /// Its shape.
    pub to: Vec<usize>,
    /// What is done.
    pub rule: Rule,
}

/// A growth from one configuration to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<S> {
    /// The model.
    pub from: Rwkv7Config<S>,
    /// The larger model.
    pub to: Rwkv7Config<S>,
    /// How.
    pub method: Method,
    /// For each block of the larger model the block that it comes from; none for new ones.
    pub blocks: Vec<Option<usize>>,
    /// Every tensor of the larger model.
    pub steps: Vec<Step>,
}

impl<S: Growable> Plan<S> {
    /// The growth of a model of configuration `from` to the dimensions of `to`. The larger model's embedding has the width of
    /// the smaller one's, whatever `to` says of it. New blocks are spread over the depth.
    ///
    /// # Errors
    ///
    /// [`ScalingError`] names what would shrink or cannot change.
    pub fn new(
        from: &Rwkv7Config<S>,
        to: &Rwkv7Config<S>,
        method: Method,
    ) -> Result<Self, ScalingError> {
        let width = from.embed_width.unwrap_or(from.n_embd);
        let lifted = from.embed_width.is_some() || to.n_embd > from.n_embd;
        let to = Rwkv7Config {
            embed_width: lifted.then_some(width),
            ..to.clone()
        };
        to.validate()?;
        check(from, &to)?;
        let blocks = blocks(from.n_layer, to.n_layer, method);
        let scale = (to.n_embd as f64 / from.n_embd as f64).sqrt();
        let old = checkpoint::expected_tensors(from);
        let steps = checkpoint::expected_tensors(&to)
            .into_iter()
            .map(|(name, shape)| step(from, &old, &blocks, scale, name, shape))
            .collect();
        Ok(Self {
            from: from.clone(),
            to,
            method,
            blocks,
            steps,
        })
    }

    /// c = √(C'/C), the factor on the residual stream.
    pub fn scale(&self) -> f64 {
        (self.to.n_embd as f64 / self.from.n_embd as f64).sqrt()
    }
}

fn step<S: Growable>(
    from: &Rwkv7Config<S>,
    old: &BTreeMap<String, Vec<usize>>,
    blocks: &[Option<usize>],
    scale: f64,
    name: String,
    to: Vec<usize>,
) -> Step {
    let fresh = |name: String, to: Vec<usize>| Step {
        name,
        source: None,
        from: Vec::new(),
        to,
        rule: Rule::Fresh,
    };
    let (source, rule) = match in_block(&name) {
        None => (name.clone(), rules::rule(from, &name, scale)),
        Some((block, part)) => {
            let Some(Some(source)) = blocks.get(block) else {
                return fresh(name, to);
            };
            let prefix = format!("{}.", S::Layer::NAME);
            let rule = match part.strip_prefix(&prefix) {
                Some(inner) => from.second_half.rule(inner, scale),
                None => rules::rule(from, part, scale),
            };
            (format!("blocks.{source}.{part}"), rule)
        }
    };
    match old.get(&source) {
        Some(shape) => Step {
            name,
            source: Some(source),
            from: shape.clone(),
            to,
            rule,
        },
        None if rule == Rule::Lift => Step {
            rule,
            ..fresh(name, to)
        },
        // A copy of block 0, which has no value residual.
        None => fresh(name, to),
    }
}

/// The block that a tensor belongs to, and its name there.
fn in_block(name: &str) -> Option<(usize, &str)> {
    let (block, part) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((block.parse().ok()?, part))
}

fn check<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>) -> Result<(), ScalingError> {
    for (field, from, to) in [
        ("vocab_size", from.vocab_size, to.vocab_size),
        ("n_layer", from.n_layer, to.n_layer),
        ("n_embd", from.n_embd, to.n_embd),
        ("decay_rank", from.decay_rank, to.decay_rank),
        ("in_context_rank", from.in_context_rank, to.in_context_rank),
        ("value_rank", from.value_rank, to.value_rank),
        ("gate_rank", from.gate_rank, to.gate_rank),
    ] {
        at_least(field, from, to)?;
    }
    let differs = |field, from: &dyn fmt::Debug, to: &dyn fmt::Debug, reason| {
        Err(ScalingError::Differs {
            field,
            from: format!("{from:?}"),
            to: format!("{to:?}"),
            reason,
        })
    };
    if from.head_size != to.head_size {
        let reason = "its norms are taken over each head, so a head with other channels computes something else; grow the \
                      number of heads";
        return differs("head_size", &from.head_size, &to.head_size, reason);
    }
    if from.embedding_norm != to.embedding_norm {
        let reason = "the embedding is normalised or it is not; keep it";
        return differs(
            "embedding_norm",
            &from.embedding_norm,
            &to.embedding_norm,
            reason,
        );
    }
    let epsilons = [from.layer_norm_eps, from.group_norm_eps];
    let wanted = [to.layer_norm_eps, to.group_norm_eps];
    if epsilons != wanted {
        return differs(
            "epsilons",
            &epsilons,
            &wanted,
            "they are part of what the model computes; keep them",
        );
    }
    from.second_half.check(&to.second_half)
}

/// Where each block of the larger model comes from. The first one is always the first one: it owns the embedding's norm and
/// the value that the others read.
fn blocks(from: usize, to: usize, method: Method) -> Vec<Option<usize>> {
    match method {
        Method::Lossless => {
            let done = |i: usize| (i * from).div_ceil(to);
            let source = |i: usize| (done(i + 1) > done(i)).then_some(done(i));
            (0..to).map(source).collect()
        }
        Method::Stack => (0..to).map(|i| Some(i % from)).collect(),
    }
}

impl<S> fmt::Display for Plan<S> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for Step {
            name,
            source,
            from,
            to,
            rule,
        } in &self.steps
        {
            write!(out, "{name} ")?;
            match source {
                Some(source) if source != name => write!(out, "(from {source}) ")?,
                _ => {}
            }
            match rule {
                Rule::Fresh => write!(out, "{to:?}: initial values")?,
                Rule::Lift => write!(out, "{to:?}: the embedding's width to the model's")?,
                Rule::Grow { scale, axes } => {
                    write!(out, "{from:?} -> {to:?}: old entries")?;
                    if *scale != 1.0 {
                        write!(out, " times {scale:.6}")?;
                    }
                    for (axis, new) in axes.iter().enumerate() {
                        if to[axis] > from[axis] {
                            let new = match new {
                                New::Zero => "zero",
                                New::Mean => "the mean of the old ones",
                                New::Random => "random",
                                New::Initial => "initial values",
                            };
                            write!(
                                out,
                                ", {} new along axis {axis}: {new}",
                                to[axis] - from[axis]
                            )?;
                        }
                    }
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
