//! The plan of a growth, tensor by tensor.

mod check;
mod display;

use std::collections::{BTreeMap, BTreeSet};

use rwkv7_core::{Rwkv7Config, checkpoint, layers::ChannelMixer};
use serde::{Deserialize, Serialize};

use check::{check, check_paired};

use crate::{
    Growable, ScalingError, apply,
    layer::{self, AxisGrowth, Fill, GrowthAxes, Heads, TensorRule},
};

/// How a model is grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Method {
    /// The larger model computes what the smaller one does.
    #[default]
    Lossless,
    /// New blocks are copies of old ones, and widths grow as in `lossless`. The outputs change.
    Stack,
    /// The Meta-State paper's recipe: old entries as they are among the initial values of a new model. The outputs change.
    ///
    /// Eq. 7 to 11: the appended columns of W_oms are zero. W_in is the identity cut off, or random if `sse` becomes `projected`.
    Paper,
    /// The paper's recipe with small random values in the appended columns of W_oms. The outputs change.
    PaperRandom,
    /// Old matrices shrunk and added to those of a new model. The outputs change.
    ShrinkPerturb,
}

impl Method {
    /// Whether the method pays no regard to what the model computes.
    pub(crate) fn is_naive(self) -> bool {
        matches!(self, Self::Paper | Self::PaperRandom | Self::ShrinkPerturb)
    }
}

/// How the embedding of a wider model is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Embedding {
    /// The embedding keeps its width, and a new matrix `blocks.0.lift.weight` leads to the new one.
    #[default]
    Lift,
    /// The embedding becomes wider. Its new channels come in pairs of opposite sign, so that the norm's output is exact. All tensors
    /// are those of a plain RWKV-7, and other software can run the model.
    Paired,
}

/// How one tensor of the larger model is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its official name.
    pub name: String,
    /// The tensor that it grows out of; none for tensors of new blocks and for a lift.
    pub source: Option<String>,
    /// Shape of the source.
    pub from: Vec<usize>,
    /// Shape of the tensor.
    pub to: Vec<usize>,
    /// The rule that makes it.
    pub rule: TensorRule,
    /// Head sizes.
    pub heads: Heads,
    /// True for the second and later copies of a block ([`Method::Stack`]).
    pub is_copy: bool,
}

impl Step {
    /// Whether each entry existed before the growth and has kept its position, row-major.
    pub fn old_entries(&self) -> Vec<bool> {
        match &self.rule {
            TensorRule::Grow { axes, .. } if !self.is_copy => {
                apply::old_entries(axes, &self.from, &self.to, self.heads)
            }
            TensorRule::Paired => {
                let channels = AxisGrowth::Channels {
                    heads: Fill::Zero,
                    size: Fill::Zero,
                };
                let rows = AxisGrowth::Plain(Fill::Zero);
                let axes = [rows, channels];
                apply::old_entries(&axes[2 - self.to.len()..], &self.from, &self.to, self.heads)
            }
            _ => vec![false; self.to.iter().product()],
        }
    }
}

/// A growth from one configuration to another, tensor by tensor.
///
/// ```
/// use metastate_scaling::{Embedding, Method, Plan};
/// use rwkv7_core::Rwkv7Config;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let from = Rwkv7Config { head_size: 16, ..Rwkv7Config::new(256, 2, 32) };
/// let to = Rwkv7Config { n_layer: 4, n_embd: 48, ..from.clone() };
/// let plan = Plan::new(&from, &to, Method::Lossless, Embedding::Lift)?.with_new_blocks(&[2, 3])?.exact()?;
/// assert_eq!(plan.blocks, [Some(0), Some(1), None, None]);
/// // One line a tensor.
/// assert!(plan.to_string().contains("blocks.0.lift.weight [48, 32]: the embedding's width to the model's"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<S> {
    /// The model.
    pub from: Rwkv7Config<S>,
    /// The larger model.
    pub to: Rwkv7Config<S>,
    /// The method.
    pub method: Method,
    /// For each block of the larger model the old block that it grows out of; none for new blocks.
    pub blocks: Vec<Option<usize>>,
    /// One step for every tensor of the larger model.
    pub steps: Vec<Step>,
    /// The tensor that keeps a lossless growth from being exact, and the reason.
    pub obstacle: Option<(&'static str, String)>,
    paired: bool,
}

impl<S: Growable> Plan<S> {
    /// The growth of a model of configuration `from` to the dimensions of `to`. New blocks are spread over the depth. `embedding`
    /// decides on the width of the larger model's embedding, and not `to`.
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
        let axes = axes(from, &to);
        let obstacle = match axes.heads.copies() {
            None if !axes.heads.outside_norms => Some(("att.ln_x", other_heads(from.head_size))),
            _ => from
                .ffn
                .obstacle(&to.ffn, &axes)
                .map(|(tensor, reason)| (tensor, reason.into())),
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

    /// The plan with its new blocks at these positions of the larger model, counted from 0. An empty list changes nothing.
    ///
    /// # Errors
    ///
    /// [`ScalingError::NewBlocks`] if there cannot be new blocks at these positions.
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
        if let Some(position) = new.iter().find(|position| **position >= to) {
            return refused(format!(
                "{position} is not below {to}, the number of layers"
            ));
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

    /// The steps for the current [`blocks`](Self::blocks).
    fn steps(&self) -> Vec<Step> {
        let old = checkpoint::expected_tensors(&self.from);
        let axes = axes(&self.from, &self.to);
        checkpoint::expected_tensors(&self.to)
            .into_iter()
            .map(|(name, shape)| self.step(&old, &axes, name, shape))
            .collect()
    }

    /// The plan, unless its method is exact and the larger model would compute something else.
    ///
    /// # Errors
    ///
    /// [`ScalingError::NotExact`] names the tensor and the reason.
    pub fn exact(self) -> Result<Self, ScalingError> {
        match self.obstacle {
            Some((tensor, reason)) if !self.method.is_naive() => {
                Err(ScalingError::NotExact { tensor, reason })
            }
            obstacle => Ok(Self { obstacle, ..self }),
        }
    }

    /// c = √(C'/C), the factor on the residual stream.
    pub fn scale(&self) -> f64 {
        axes(&self.from, &self.to).scale
    }

    fn step(
        &self,
        old: &BTreeMap<String, Vec<usize>>,
        axes: &GrowthAxes,
        name: String,
        to: Vec<usize>,
    ) -> Step {
        let (block, part) = match in_block(&name) {
            Some((block, part)) => (Some(block), part),
            None => (None, name.as_str()),
        };
        // None for a new block.
        let source = match block.map(|block| self.blocks[block]) {
            None => Some(name.clone()),
            Some(source) => source.map(|source| format!("blocks.{source}.{part}")),
        };
        let rule = match &source {
            Some(_) => self.rule(part, axes),
            None if FIRST_FACTORS.contains(&part) => TensorRule::Small,
            None => TensorRule::Fresh,
        };
        let long = to.iter().filter(|&&length| length > 1).count();
        let rule = match self.method {
            Method::Lossless | Method::Stack => rule,
            Method::Paper => layer::paper(rule),
            Method::PaperRandom => layer::paper_random(rule, part),
            Method::ShrinkPerturb => layer::shrink_perturb(rule, long < 2),
        };
        let source = source.and_then(|source| old.get_key_value(&source));
        let rule = match (source, rule) {
            // A copy of block 0, which has no value residual.
            (None, TensorRule::Grow { .. }) => TensorRule::Fresh,
            (_, rule) => rule,
        };
        let is_copy = block.is_some_and(|block| self.blocks[..block].contains(&self.blocks[block]));
        Step {
            source: source.map(|(name, _)| name.clone()),
            from: source.map(|(_, shape)| shape.clone()).unwrap_or_default(),
            is_copy: is_copy && source.is_some(),
            name,
            to,
            rule,
            heads: axes.heads,
        }
    }

    /// The exact rule for a tensor that is not of a new block, by its name in its block or in the model.
    fn rule(&self, part: &str, axes: &GrowthAxes) -> TensorRule {
        let mixer = part
            .split_once('.')
            .filter(|(layer, _)| *layer == S::Layer::NAME);
        match mixer {
            _ if self.paired && ["emb.weight", "ln0.weight", "ln0.bias"].contains(&part) => {
                TensorRule::Paired
            }
            Some((_, inner)) => self.from.ffn.rule(&self.to.ffn, inner, axes),
            None => layer::rule(&self.from, part, axes),
        }
    }
}

/// The first factors of low-rank products. Their initial value of zero would keep the rest of a new block waiting.
const FIRST_FACTORS: [&str; 4] = ["att.w1", "att.a1", "att.v1", "att.g1"];

/// The axes of this growth.
fn axes<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>) -> GrowthAxes {
    GrowthAxes {
        scale: (to.n_embd as f64 / from.n_embd as f64).sqrt(),
        heads: heads(from, to),
        old_heads: from.n_head(),
        new_heads: to.n_head() - from.n_head(),
    }
}

/// Why heads of another size are not exact, and the sizes that are.
fn other_heads(size: usize) -> String {
    format!(
        "norms are taken over each head, so a head of other channels computes something else unless they are copies of the old ones: \
         grow the number of heads, or the head size to {}, {} or another multiple of {size}, or give \"norm_prefix\": {size}",
        2 * size,
        3 * size
    )
}

/// The head sizes of this growth.
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

/// For each block of the larger model the old block that it grows out of. Block 0 stays the first, as it owns the embedding's norm
/// and the value that the other blocks read.
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
