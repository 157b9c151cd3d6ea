//! A growth, tensor by tensor.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rwkv7_core::{Rwkv7Config, checkpoint, layers::ChannelMixer};
use serde::{Deserialize, Serialize};

use crate::{
    ScalingError, apply,
    rules::{self, Axes, Axis, Growable, New, Rule, at_least},
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
    /// What the Meta-State paper writes (eq. 7 to 11): old entries as they are, zeros in the appended columns of W_oms, all
    /// else as a new model starts; W_in is the identity cut off, or random where `sse` becomes `projected`. The outputs change.
    Paper,
    /// The same with small random values in the appended columns of W_oms.
    PaperRandom,
    /// Matrices shrunk and added to a new model's initial values. The outputs change.
    ShrinkPerturb,
}

impl Method {
    /// Whether entries are put beside each other without regard to what the model computes.
    pub(crate) fn is_naive(self) -> bool {
        matches!(self, Self::Paper | Self::PaperRandom | Self::ShrinkPerturb)
    }
}

/// How a wider model gets its embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Embedding {
    /// The embedding keeps its width, and a new matrix `blocks.0.lift` leads to the new one.
    #[default]
    Lift,
    /// The embedding becomes wider, with new channels in pairs of opposite sign, so that its norm gives what it must: all
    /// tensors are those of a plain RWKV-7, and other software can run the model.
    Paired,
}

/// Head sizes of a growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The model's.
    pub from: usize,
    /// The larger model's.
    pub to: usize,
    /// Whether norms over a head leave its new channels out.
    pub outside_norms: bool,
}

impl Heads {
    /// How many copies of itself a head becomes; none where its new size is no multiple, or its new channels are others.
    pub fn copies(&self) -> Option<usize> {
        let copies = self.to / self.from;
        let possible = self.to.is_multiple_of(self.from) && !self.outside_norms;
        (possible || self.to == self.from).then_some(copies)
    }
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
    /// Head sizes.
    pub heads: Heads,
    /// Whether its source is what another tensor grows out of already.
    pub again: bool,
}

impl Step {
    /// Which entries were there before, in their old places, row-major.
    pub fn old_entries(&self) -> Vec<bool> {
        match &self.rule {
            Rule::Grow { axes, .. } if !self.again => {
                apply::old_entries(axes, &self.from, &self.to, self.heads)
            }
            Rule::Paired => {
                let channels = Axis::Channels {
                    heads: New::Zero,
                    size: New::Zero,
                };
                let rows = Axis::Plain(New::Zero);
                let axes = [rows, channels];
                apply::old_entries(&axes[2 - self.to.len()..], &self.from, &self.to, self.heads)
            }
            _ => vec![false; self.to.iter().product()],
        }
    }
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
    /// The tensor that keeps a lossless growth from being exact, and why.
    pub obstacle: Option<(&'static str, &'static str)>,
    paired: bool,
}

impl<S: Growable> Plan<S> {
    /// The growth of a model of configuration `from` to the dimensions of `to`. New blocks are spread over the depth. How the
    /// larger model's embedding gets its width is not taken from `to`.
    ///
    /// # Errors
    ///
    /// [`ScalingError`] names what would shrink or cannot change.
    pub fn new(
        from: &Rwkv7Config<S>,
        to: &Rwkv7Config<S>,
        method: Method,
        embedding: Embedding,
    ) -> Result<Self, ScalingError> {
        let own = from.embed_width.unwrap_or(from.n_embd);
        let wider = to.n_embd > from.n_embd;
        let naive = method.is_naive();
        let paired = embedding == Embedding::Paired && wider;
        let lifted = from.embed_width.is_some() || (wider && !naive && !paired);
        let to = Rwkv7Config {
            embed_width: lifted.then_some(own),
            ..to.clone()
        };
        to.validate()?;
        check(from, &to)?;
        if paired {
            check_paired(from, &to, method)?;
        }
        let heads = heads(from, &to);
        let obstacle = match heads.copies() {
            None if !heads.outside_norms => Some((
                "att.ln_x",
                "norms are taken over each head, so a head of other channels computes something else unless they are copies of \
                 the old ones: grow the number of heads, or the head size by 2 or 4, or give the old head size as norm_prefix",
            )),
            _ => from.ffn.obstacle(heads),
        };
        let blocks = blocks(from.n_layer, to.n_layer, method);
        let mut plan = Self {
            from: from.clone(),
            to,
            method,
            blocks,
            steps: Vec::new(),
            obstacle,
            paired,
        };
        plan.steps = plan.steps();
        Ok(plan)
    }

    /// The plan with its new blocks at these places of the larger model, counted from 0; spread over the depth where none are given.
    ///
    /// # Errors
    ///
    /// [`ScalingError::NewBlocks`] if there cannot be new blocks at these places.
    pub fn with_new_blocks(mut self, new: &[usize]) -> Result<Self, ScalingError> {
        if new.is_empty() {
            return Ok(self);
        }
        let refused = |reason: String| Err(ScalingError::NewBlocks { reason });
        if self.method == Method::Stack {
            return refused("`stack` makes copies of blocks and no new ones".into());
        }
        let (from, to) = (self.from.n_layer, self.to.n_layer);
        let unique: BTreeSet<_> = new.iter().collect();
        if (new.len(), unique.len()) != (to - from, to - from) {
            return refused(format!(
                "from {from} to {to} layers there are {} new blocks, and {} different places are given",
                to - from,
                unique.len()
            ));
        }
        if unique.contains(&0) {
            return refused("block 0 owns the embedding's norm and the value that the others read; it stays the first".into());
        }
        if let Some(place) = new.iter().find(|place| **place >= to) {
            return refused(format!("{place} is not below {to}, the number of layers"));
        }
        let mut old = 0..from;
        self.blocks = (0..to)
            .map(|block| match unique.contains(&block) {
                true => None,
                false => old.next(),
            })
            .collect();
        self.steps = self.steps();
        Ok(self)
    }

    /// Every tensor of the larger model, for blocks that come from these.
    fn steps(&self) -> Vec<Step> {
        let old = checkpoint::expected_tensors(&self.from);
        let heads = heads(&self.from, &self.to);
        checkpoint::expected_tensors(&self.to)
            .into_iter()
            .map(|(name, shape)| self.step(&old, heads, name, shape))
            .collect()
    }

    /// The plan, if the larger model will compute what the smaller one does or if that is not its method.
    ///
    /// # Errors
    ///
    /// [`ScalingError::NotExact`] names the tensor and the reason.
    pub fn exact(self) -> Result<Self, ScalingError> {
        match self.obstacle {
            Some((tensor, reason)) if !self.method.is_naive() => {
                Err(ScalingError::NotExact { tensor, reason })
            }
            _ => Ok(self),
        }
    }

    /// c = √(C'/C), the factor on the residual stream.
    pub fn scale(&self) -> f64 {
        (self.to.n_embd as f64 / self.from.n_embd as f64).sqrt()
    }

    fn step(
        &self,
        old: &BTreeMap<String, Vec<usize>>,
        heads: Heads,
        name: String,
        to: Vec<usize>,
    ) -> Step {
        let paired = self.paired;
        let axes = Axes {
            scale: self.scale(),
            heads,
            old_heads: self.from.n_embd / self.from.head_size,
        };
        let fresh = |name: String, to: Vec<usize>, rule| Step {
            name,
            source: None,
            from: Vec::new(),
            to,
            rule,
            heads,
            again: false,
        };
        let (source, rule, again) = match in_block(&name) {
            None if paired && name == "emb.weight" => (name.clone(), Rule::Paired, false),
            None => (name.clone(), rules::rule(&self.from, &name, &axes), false),
            Some((block, part)) => {
                let Some(Some(source)) = self.blocks.get(block) else {
                    let first = ["att.w1", "att.a1", "att.v1", "att.g1"].contains(&part);
                    return fresh(name, to, if first { Rule::Small } else { Rule::Fresh });
                };
                let prefix = format!("{}.", S::Layer::NAME);
                let rule = match part.strip_prefix(&prefix) {
                    Some(inner) => self.from.ffn.rule(&self.to.ffn, inner, &axes),
                    None if paired && part.starts_with("ln0.") => Rule::Paired,
                    None => rules::rule(&self.from, part, &axes),
                };
                let again = self.blocks[..block].contains(&Some(*source));
                (format!("blocks.{source}.{part}"), rule, again)
            }
        };
        let long = to.iter().filter(|&&length| length > 1).count();
        let rule = match self.method {
            Method::Lossless | Method::Stack => rule,
            Method::Paper => rules::paper(rule),
            Method::PaperRandom => rules::paper_random(rule, &name),
            Method::ShrinkPerturb => rules::shrink_perturb(rule, long < 2),
        };
        match old.get(&source) {
            Some(shape) => Step {
                name,
                source: Some(source),
                from: shape.clone(),
                to,
                rule,
                heads,
                again,
            },
            None if matches!(rule, Rule::Lift | Rule::Identity) => fresh(name, to, rule),
            // A copy of block 0, which has no value residual.
            None => fresh(name, to, Rule::Fresh),
        }
    }
}

/// How heads grow.
pub(crate) fn heads<S>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>) -> Heads {
    Heads {
        from: from.head_size,
        to: to.head_size,
        outside_norms: to.norm_prefix != from.norm_prefix
            || (to.norm_prefix.is_some() && !to.head_size.is_multiple_of(from.head_size)),
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
        ("number of heads", from.n_head(), to.n_head()),
        ("decay_rank", from.decay_rank, to.decay_rank),
        ("in_context_rank", from.in_context_rank, to.in_context_rank),
        ("value_rank", from.value_rank, to.value_rank),
        ("gate_rank", from.gate_rank, to.gate_rank),
    ] {
        at_least(field, from, to)?;
    }
    if to.head_size < from.head_size {
        let reason = "smaller heads are other slices of the same channels; for more heads make the model wider";
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
    for (field, from, to) in [
        ("layer_norm_eps", from.layer_norm_eps, to.layer_norm_eps),
        ("group_norm_eps", from.group_norm_eps, to.group_norm_eps),
    ] {
        if from != to {
            let reason = "it is part of what the model computes; keep it";
            return differs(field, &from, &to, reason);
        }
    }
    let prefix = from.norm_prefix.unwrap_or(from.head_size);
    if to.norm_prefix != from.norm_prefix && to.norm_prefix != Some(prefix) {
        return differs(
            "norm_prefix",
            &from.norm_prefix,
            &to.norm_prefix,
            "what norms over a head are taken over stays the same: leave it out, or give the old head size",
        );
    }
    from.ffn.check(&to.ffn)
}

/// What an embedding with paired channels asks for.
fn check_paired<S>(
    from: &Rwkv7Config<S>,
    to: &Rwkv7Config<S>,
    method: Method,
) -> Result<(), ScalingError> {
    let refused = |reason| Err(ScalingError::Paired { reason });
    if method.is_naive() {
        return refused("they are a way to lose nothing, and this method is not; leave them out");
    }
    if from.embed_width.is_some() {
        return refused("the model has a lift already; grow its lift");
    }
    if !from.embedding_norm {
        return refused("they need the embedding's norm, which this model has folded; use a lift");
    }
    if !(to.n_embd - from.n_embd).is_multiple_of(2) {
        return refused("they need an even number of new channels");
    }
    Ok(())
}

fn differs<T>(
    field: &'static str,
    from: &dyn fmt::Debug,
    to: &dyn fmt::Debug,
    reason: &'static str,
) -> Result<T, ScalingError> {
    Err(ScalingError::Differs {
        field,
        from: format!("{from:?}"),
        to: format!("{to:?}"),
        reason,
    })
}

/// Where each block of the larger model comes from. The first one is always the first one: it owns the embedding's norm and
/// the value that the others read.
fn blocks(from: usize, to: usize, method: Method) -> Vec<Option<usize>> {
    match method {
        Method::Stack => (0..to).map(|i| Some(i % from)).collect(),
        _ => {
            let done = |i: usize| (i * from).div_ceil(to);
            let source = |i: usize| (done(i + 1) > done(i)).then_some(done(i));
            (0..to).map(source).collect()
        }
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
                Rule::Fresh => write!(out, "{to:?}: initial values")?,
                Rule::Small => write!(out, "{to:?}: small random values")?,
                Rule::Identity => write!(out, "{to:?}: the identity")?,
                Rule::Lift => write!(out, "{to:?}: the embedding's width to the model's")?,
                Rule::Paired => write!(out, "{from:?} -> {to:?}: new channels in pairs")?,
                Rule::Grow {
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
        if let Some((tensor, reason)) = self.obstacle.filter(|_| !self.method.is_naive()) {
            writeln!(out, "not exact: {tensor}: {reason}")?;
        }
        Ok(())
    }
}

/// What the new entries along an axis are.
fn new_entries(
    out: &mut fmt::Formatter,
    axis: Axis,
    from: usize,
    to: usize,
    heads: Heads,
) -> fmt::Result {
    let name = |new: New| match new {
        New::Zero => "zero",
        New::Mean => "the mean of the old ones",
        New::Random => "random",
        New::Small => "small and random",
        New::Initial => "initial values",
        New::Copies(0) => "copies",
        New::Copies(_) => "copies, shared out",
    };
    let (new, size) = match axis {
        Axis::Spread { old } => return write!(out, "copies for the {old} old heads, else zero"),
        Axis::Plain(new) => return write!(out, "{}", name(new)),
        Axis::Channels { heads, size } => (heads, size),
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
