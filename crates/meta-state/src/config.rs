//! The choices that the paper leaves open, as data. Every field names the equation that it interprets.

use std::fmt;

use burn::config::Config;
use rwkv7_core::{
    config::{ChannelMixerConfig, ConfigError, LayerDims, is_positive},
    config_setters,
    init::LayerInit,
    ops::Side,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::MetaState;

/// How the heads come together in W_oms (eq. 4, "heads are recombined").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oms {
    /// One `W_oms [n, C]` for all heads, whose contributions add up. This is the only reading of eq. 4 in which the shapes fit. All
    /// heads together write at most n directions.
    Shared,
    /// A `W_oms [n, C]` of its own for each head.
    PerHead,
}

/// The matrix W_sse, which turns the query x' into z (eq. 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sse {
    /// The whole state of the head, `[N, N]`.
    State,
    /// The first n rows and columns of the state ("top-left submatrix"), n from 2 to N. z, ms and the layer norm then have n
    /// channels. κ̂ is cut off and not normalised again.
    TopLeft(usize),
    /// `W_1 W_2 S` with learned `W_1 [N, r]`, `W_2 [r, N]` for each head, r from 1 to N: r combinations of the state's rows (of its
    /// columns, read along the key side).
    LowRank(usize),
    /// `W_in S` with one learned `W_in [N, N]` for all heads: the expansion of eq. 7, which the paper has in grown models only.
    Projected,
    /// Each head's z is a learned mixture of what all heads read: the state as one block matrix, times `mix ⊗ I`.
    HeadMixed,
    /// A learned `[N, N]` for each head instead of the state: the layer without its idea, for comparison. No state is read, so
    /// only [`Side::Value`] is allowed.
    Learned,
}

/// The direction that a token removes from ms (eq. 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// κ̂ of the same layer's time mixing. The literal reading.
    TimeMix,
    /// z/|z|, the direction that the token is about to write.
    #[serde(rename = "self")]
    Own,
}

/// The size of z before it enters ms (eq. 2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Unchanged.
    None,
    /// Times a constant c above 0. The layer norm of eq. 4 undoes the factor, but its epsilon counts c⁻⁶ times as much.
    Constant(f64),
    /// z/|z|: every token weighs the same.
    L2,
}

/// Configuration of [`MetaState`](crate::MetaState). In JSON also `"paper"` or `"practical"`.
///
/// ```
/// use meta_state::{MetaStateConfig, Removal};
///
/// let config = MetaStateConfig::paper().with_removal(Removal::Own);
/// let json = serde_json::to_string(&config)?;
/// assert_eq!(serde_json::from_str::<MetaStateConfig>(&json)?, config);
/// assert_eq!(serde_json::from_str::<MetaStateConfig>(r#""paper""#)?, MetaStateConfig::paper());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetaStateConfig {
    /// Eq. 4: one W_oms or one for each head.
    pub oms: Oms,
    /// Eq. 1: the matrix W_sse.
    pub sse: Sse,
    /// Eq. 1: the side from which the state is read. Along the value side, z has the channels of the key, to which w and κ̂ of eq. 3
    /// belong. Along the key side, z has the channels of the value, and eq. 3 is applied to them all the same.
    pub side: Side,
    /// Eq. 3: the removal key of ms.
    pub removal: Removal,
    /// Eq. 2: whether the mean over z's channels is subtracted after the ReLU. With z ≥ 0, ms has one dominant direction.
    pub center: bool,
    /// Eq. 2: the size of z.
    pub scale: Scale,
    /// Eq. 6: whether x' is mixed with that of the token before, as in RWKV's channel mixing. The paper does not say.
    pub token_shift: bool,
    /// Eq. 4: whether the layer norm has a scale and a shift for each channel of each head. The paper does not say.
    pub norm_affine: bool,
    /// Eq. 3: whether gradients stop at the decay, removal key and in-context rate on their way from ms to time mixing.
    pub detach_decay: bool,
    /// Eq. 4: epsilon of the layer norm.
    pub norm_eps: f64,
}

impl MetaStateConfig {
    /// The literal reading of eq. 1 to 6.
    pub fn paper() -> Self {
        Self {
            oms: Oms::Shared,
            sse: Sse::State,
            side: Side::Value,
            removal: Removal::TimeMix,
            center: false,
            scale: Scale::None,
            token_shift: false,
            norm_affine: false,
            detach_decay: false,
            norm_eps: 1e-5,
        }
    }

    /// The choices that measured best (`docs/src/meta-state.md`): a W_oms for each head, the state read along its key side, z itself
    /// as the removal key of ms, and a soft layer norm. With z scaled down and a large epsilon, the layer norm keeps the size of its
    /// input, and its gradient is never steep.
    pub fn practical() -> Self {
        Self {
            oms: Oms::PerHead,
            side: Side::Key,
            removal: Removal::Own,
            scale: Scale::Constant(1.0 / 16.0),
            norm_eps: 1.0,
            ..Self::paper()
        }
    }

    config_setters! {
        with_oms(oms: Oms);
        with_sse(sse: Sse);
        with_side(side: Side);
        with_removal(removal: Removal);
        with_center(center: bool);
        with_scale(scale: Scale);
        with_token_shift(token_shift: bool);
        with_norm_affine(norm_affine: bool);
        with_detach_decay(detach_decay: bool);
        with_norm_eps(norm_eps: f64);
    }

    /// Number n of z's channels for heads of `head_size`.
    pub fn size(&self, head_size: usize) -> usize {
        match self.sse {
            Sse::TopLeft(n) => n,
            _ => head_size,
        }
    }
}

impl Config for MetaStateConfig {}

impl Default for MetaStateConfig {
    fn default() -> Self {
        Self::practical()
    }
}

impl ChannelMixerConfig for MetaStateConfig {
    type Layer = MetaState;

    const ARCHITECTURE: &'static str = "meta-state";

    fn validate(&self, dims: &LayerDims) -> Result<(), ConfigError> {
        let size = dims.head_size;
        match self.sse {
            Sse::TopLeft(n) if n < 2 || n > size => {
                return Err(ConfigError::field(
                    "ffn.sse.top-left",
                    n,
                    format!(
                        "from 2 to the head size {size}, as the state of a head is [{size}, {size}] and the norm of a \
                         single channel is 0"
                    ),
                ));
            }
            Sse::LowRank(rank) if rank == 0 || rank > size => {
                return Err(ConfigError::field(
                    "ffn.sse.low-rank",
                    rank,
                    format!("from 1 to the head size {size}"),
                ));
            }
            Sse::Learned if self.side == Side::Key => {
                return Err(ConfigError::field(
                    "ffn.side",
                    "key",
                    "`value` where `sse` is `learned`, as no state is read then",
                ));
            }
            _ => {}
        }
        let expected = "above 0 in f32 (1.2e-38 to 3.4e38)";
        if let Scale::Constant(c) = self.scale
            && !is_positive(c)
        {
            return Err(ConfigError::field("ffn.scale.constant", c, expected));
        }
        if !is_positive(self.norm_eps) {
            return Err(ConfigError::field("ffn.norm_eps", self.norm_eps, expected));
        }
        Ok(())
    }

    fn num_params(&self, dims: &LayerDims) -> usize {
        let (heads, size, width) = (dims.n_head(), self.size(dims.head_size), dims.n_embd);
        let product = |factors: &[usize]| factors.iter().copied().fold(1, usize::saturating_mul);
        let oms = match self.oms {
            Oms::Shared => product(&[size, width]),
            Oms::PerHead => product(&[heads, size, width]),
        };
        let sse = match self.sse {
            Sse::State | Sse::TopLeft(_) => 0,
            Sse::LowRank(rank) => product(&[2, width, rank]),
            Sse::Projected => product(&[dims.head_size, dims.head_size]),
            Sse::HeadMixed => product(&[heads, heads]),
            Sse::Learned => product(&[width, dims.head_size]),
        };
        let norm = if self.norm_affine {
            product(&[2, heads, size])
        } else {
            0
        };
        let shift = if self.token_shift { width } else { 0 };
        [oms, sse, norm, shift]
            .into_iter()
            .fold(0, usize::saturating_add)
    }

    fn of_checkpoint(
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
        declared: Option<&serde_json::Value>,
    ) -> Result<Self, String> {
        let Some(declared) = declared else {
            return Err(match shape("ms.W_oms") {
                None => "no Meta-State model: blocks.0.ms.W_oms is missing".into(),
                Some(_) => "the file does not say its configuration, which the shapes of a Meta-State model do not show; \
                            put the config.json of its model beside it"
                    .into(),
            });
        };
        Self::deserialize(declared).map_err(|error| format!("ffn: {error}"))
    }

    fn num_state_values(&self, dims: &LayerDims) -> usize {
        let size = self.size(dims.head_size);
        let shift = if self.token_shift { dims.n_embd } else { 0 };
        let values = dims.n_head().saturating_mul(size).saturating_mul(size);
        values.saturating_add(shift)
    }

    fn init(&self, dims: &LayerDims, init: &LayerInit) -> MetaState {
        MetaState::new(self, dims, init)
    }
}

/// A preset's name, or an object. The object may leave out any field, which then has the value of `practical`.
impl<'de> Deserialize<'de> for MetaStateConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            remote = "MetaStateConfig",
            deny_unknown_fields,
            default = "MetaStateConfig::practical"
        )]
        struct Fields {
            oms: Oms,
            sse: Sse,
            side: Side,
            removal: Removal,
            center: bool,
            scale: Scale,
            token_shift: bool,
            norm_affine: bool,
            detach_decay: bool,
            norm_eps: f64,
        }
        struct NameOrFields;
        impl<'de> Visitor<'de> for NameOrFields {
            type Value = MetaStateConfig;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("`paper`, `practical` or an object")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<MetaStateConfig, E> {
                match name {
                    "paper" => Ok(MetaStateConfig::paper()),
                    "practical" => Ok(MetaStateConfig::practical()),
                    other => Err(E::unknown_variant(other, &["paper", "practical"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MetaStateConfig, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(NameOrFields)
    }
}
