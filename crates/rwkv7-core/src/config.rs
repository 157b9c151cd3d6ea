//! The architecture as data: every dimension is a field, and no dimension follows from a name.

mod limits;

use std::{fmt::Display, path::Path};

use burn::{
    config::{Config, ConfigError as LoadError},
    module::Module,
    tensor::Device,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    files,
    init::LayerInit,
    layers::{ChannelMixConfig, ChannelMixer},
};

pub use limits::{
    ConfigError, LARGEST_DEPTH, LARGEST_DIMENSION, LARGEST_MODEL, check_size, is_positive,
};

/// Setters as Burn's `derive(Config)` makes them. The derive takes no generic types and knows no attributes of `serde`.
#[doc(hidden)]
#[macro_export]
macro_rules! config_setters {
    ($($setter:ident($field:ident: $type:ty);)*) => {
        $(
            #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
            #[must_use]
            pub fn $setter(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )*
    };
}

/// Dimensions of a model that every layer sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDims {
    /// Number of layers L.
    pub n_layer: usize,
    /// Embedding width C.
    pub n_embd: usize,
    /// Head size N; there are C / N heads.
    pub head_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Channels of each head over which its norms are taken; all where none.
    pub norm_prefix: Option<usize>,
}

impl LayerDims {
    /// Number of heads H = C / N.
    pub fn n_head(&self) -> usize {
        self.n_embd.checked_div(self.head_size).unwrap_or(0)
    }
}

/// Configuration of a [`ChannelMixer`].
///
/// [`ChannelMixConfig`] is RWKV-7's. Other crates implement the trait for their own layers; [`init`](Self::init) and two names are
/// enough.
pub trait ChannelMixerConfig:
    Clone + std::fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The layer that this configuration builds.
    type Layer: ChannelMixer;

    /// Name that files have for the architecture of RWKV-7 with this channel mixer.
    const ARCHITECTURE: &'static str;

    /// Checks the configuration against the model's dimensions. The default accepts all.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, what was found and what is expected.
    fn validate(&self, _dims: &LayerDims) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Exact number of parameters of one layer. The default counts those of a layer.
    fn num_params(&self, dims: &LayerDims) -> usize {
        example(self, dims).num_params()
    }

    /// The configuration of the channel mixers in a checkpoint: `shape` gives the shape of a tensor of block 0 by its name
    /// (`ffn.key.weight`), and `declared` is the file's own description of the configuration, if it has one. The default reads the
    /// description, which files of this project have.
    ///
    /// # Errors
    ///
    /// A sentence for people that says what is missing and what to do.
    fn of_checkpoint(
        _shape: &dyn Fn(&str) -> Option<Vec<usize>>,
        declared: Option<&serde_json::Value>,
    ) -> Result<Self, String> {
        let Some(declared) = declared else {
            return Err("the file does not say its configuration; put the config.json of its model beside it".into());
        };
        Self::deserialize(declared).map_err(|error| format!("ffn: {error}"))
    }

    /// Number of values in the state of one layer, for one sequence. The default counts those of a layer.
    fn num_state_values(&self, dims: &LayerDims) -> usize {
        let state = example(self, dims).zero_state(1, &Device::default());
        crate::state::num_values(&state)
    }

    /// Builds the channel mixer of block `init.layer()` with its initial values, for a configuration that
    /// [`validate`](Self::validate) accepts.
    fn init(&self, dims: &LayerDims, init: &LayerInit) -> Self::Layer;
}

/// A layer of this configuration, whose parameters have no values yet.
fn example<S: ChannelMixerConfig>(config: &S, dims: &LayerDims) -> S::Layer {
    config.init(dims, &LayerInit::new(0, dims, &Device::default(), 0))
}

/// Configuration of an RWKV-7 model whose channel mixers are configured by `S`.
///
/// The symbols are those of the RWKV-7 paper (arXiv 2503.14456) and of the official training code.
///
/// ```
/// use burn::{config::Config, tensor::Device};
/// use rwkv7_core::Rwkv7Config;
///
/// let config = Rwkv7Config::new(256, 2, 128).with_head_size(32).with_decay_rank(16);
/// let model = config.init(&Device::default());
/// assert_eq!(model.blocks.len(), 2);
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("config.json");
/// config.save(&path)?;
/// assert_eq!(Rwkv7Config::load(&path)?, config);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rwkv7Config<S = ChannelMixConfig> {
    /// Vocabulary size V.
    pub vocab_size: usize,
    /// Number of layers L.
    pub n_layer: usize,
    /// Embedding width C, a multiple of `head_size`.
    pub n_embd: usize,
    /// Head size N; 64 in every released model.
    pub head_size: usize,
    /// Low-rank width of the decay (`w1 [C, D]`, `w2 [D, C]`).
    pub decay_rank: usize,
    /// Low-rank width of the in-context learning rate (`a1`, `a2`).
    pub in_context_rank: usize,
    /// Low-rank width of the value residual (`v1`, `v2`); layer 0 has none.
    pub value_rank: usize,
    /// Low-rank width of the gate (`g1`, `g2`).
    pub gate_rank: usize,
    /// Epsilon of ln0, ln1, ln2 and ln_out.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Epsilon of the per-head group norm; 64e-5 whatever the head size.
    #[serde(default = "group_norm_eps")]
    pub group_norm_eps: f64,
    /// Width E of the embedding of a grown model, if it is not C: `blocks.0.lift [E, C]` leads from E to C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embed_width: Option<usize>,
    /// Number of channels of each head, from the first, over which its norms take mean and variance; all channels if none.
    /// Grown models have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_prefix: Option<usize>,
    /// Whether `blocks.0.ln0` normalises the embedding; false if a checkpoint has the norm folded into the table.
    #[serde(default = "yes")]
    pub embedding_norm: bool,
    /// The channel mixer; `second_half` in older files.
    #[serde(alias = "second_half")]
    pub ffn: S,
}

fn layer_norm_eps() -> f64 {
    1e-5
}

fn group_norm_eps() -> f64 {
    64e-5
}

fn yes() -> bool {
    true
}

/// `round(x / 32) * 32`, ties to even, at least 32: how the official training script sizes its low-rank factors.
fn rank(x: f64) -> usize {
    ((x / 32.0).round_ties_even() as usize)
        .saturating_mul(32)
        .max(32)
}

/// Bytes of the largest configuration file that is loaded.
const LARGEST_FILE: u64 = 64 << 20;

/// Loading also takes the `config.json` of a training run, which has one more key, `architecture`.
impl<S: ChannelMixerConfig> Config for Rwkv7Config<S> {
    fn load<P: AsRef<Path>>(file: P) -> Result<Self, LoadError> {
        let path = file.as_ref();
        let named = |reason: &dyn Display| format!("{}: {reason}", path.display());
        let json = files::read(path, LARGEST_FILE)
            .map_err(|error| LoadError::FileNotFound(named(&error)))?;
        Self::load_binary(&json).map_err(|error| match error {
            LoadError::InvalidFormat(reason) => LoadError::InvalidFormat(named(&reason)),
            other => other,
        })
    }

    fn load_binary(data: &[u8]) -> Result<Self, LoadError> {
        let wrong = |error: serde_json::Error| LoadError::InvalidFormat(error.to_string());
        let mut json: serde_json::Value = serde_json::from_slice(data).map_err(wrong)?;
        let named = json
            .as_object_mut()
            .and_then(|fields| fields.remove("architecture"));
        match named {
            Some(name) if name != S::ARCHITECTURE => Err(LoadError::InvalidFormat(format!(
                "a model of architecture {name}, expected {}",
                S::ARCHITECTURE
            ))),
            _ => serde_json::from_value(json).map_err(wrong),
        }
    }
}

impl Rwkv7Config<ChannelMixConfig> {
    /// A model of this size with head size 64, feed-forward width 4C and the low-rank widths of the official training
    /// script (2.5√C for decay and in-context rate, 1.7√C for the value residual, 5√C for the gate).
    pub fn new(vocab_size: usize, n_layer: usize, n_embd: usize) -> Self {
        let root = (n_embd as f64).sqrt();
        Self {
            vocab_size,
            n_layer,
            n_embd,
            head_size: 64,
            decay_rank: rank(2.5 * root),
            in_context_rank: rank(2.5 * root),
            value_rank: rank(1.7 * root),
            gate_rank: rank(5.0 * root),
            layer_norm_eps: layer_norm_eps(),
            group_norm_eps: group_norm_eps(),
            embed_width: None,
            norm_prefix: None,
            embedding_norm: true,
            ffn: ChannelMixConfig::new(n_embd.saturating_mul(4)),
        }
    }
}

impl<S> Rwkv7Config<S> {
    config_setters! {
        with_head_size(head_size: usize);
        with_decay_rank(decay_rank: usize);
        with_in_context_rank(in_context_rank: usize);
        with_value_rank(value_rank: usize);
        with_gate_rank(gate_rank: usize);
        with_layer_norm_eps(layer_norm_eps: f64);
        with_group_norm_eps(group_norm_eps: f64);
        with_embed_width(embed_width: Option<usize>);
        with_norm_prefix(norm_prefix: Option<usize>);
        with_embedding_norm(embedding_norm: bool);
    }

    /// The same dimensions with another channel mixer.
    pub fn with_ffn<T>(&self, ffn: T) -> Rwkv7Config<T> {
        Rwkv7Config {
            vocab_size: self.vocab_size,
            n_layer: self.n_layer,
            n_embd: self.n_embd,
            head_size: self.head_size,
            decay_rank: self.decay_rank,
            in_context_rank: self.in_context_rank,
            value_rank: self.value_rank,
            gate_rank: self.gate_rank,
            layer_norm_eps: self.layer_norm_eps,
            group_norm_eps: self.group_norm_eps,
            embed_width: self.embed_width,
            norm_prefix: self.norm_prefix,
            embedding_norm: self.embedding_norm,
            ffn,
        }
    }
}

impl<S: ChannelMixerConfig> Rwkv7Config<S> {
    /// Number of heads H = C / N.
    pub fn n_head(&self) -> usize {
        self.dims().n_head()
    }

    /// The part of the configuration that every layer sees.
    pub fn dims(&self) -> LayerDims {
        LayerDims {
            n_layer: self.n_layer,
            n_embd: self.n_embd,
            head_size: self.head_size,
            layer_norm_eps: self.layer_norm_eps,
            norm_prefix: self.norm_prefix,
        }
    }

    /// Checks that a model with these dimensions exists.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, what was found and what is expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value, largest) in [
            ("vocab_size", self.vocab_size, LARGEST_DIMENSION),
            ("n_layer", self.n_layer, LARGEST_DEPTH),
            ("n_embd", self.n_embd, LARGEST_DIMENSION),
            ("head_size", self.head_size, LARGEST_DIMENSION),
            ("decay_rank", self.decay_rank, LARGEST_DIMENSION),
            ("in_context_rank", self.in_context_rank, LARGEST_DIMENSION),
            ("value_rank", self.value_rank, LARGEST_DIMENSION),
            ("gate_rank", self.gate_rank, LARGEST_DIMENSION),
            (
                "embed_width",
                self.embed_width.unwrap_or(1),
                LARGEST_DIMENSION,
            ),
        ] {
            check_size(field, value, largest)?;
        }
        if self.head_size < 2 {
            let expected = "at least 2, as the norm of a single channel is 0";
            return Err(ConfigError::field("head_size", self.head_size, expected));
        }
        if let Some(prefix) = self.norm_prefix
            && !(2..=self.head_size).contains(&prefix)
        {
            return Err(ConfigError::field(
                "norm_prefix",
                prefix,
                format!("from 2 to head_size = {}", self.head_size),
            ));
        }
        if !self.n_embd.is_multiple_of(self.head_size) {
            return Err(ConfigError::field(
                "n_embd",
                self.n_embd,
                format!("a multiple of head_size = {}", self.head_size),
            ));
        }
        for (field, eps) in [
            ("layer_norm_eps", self.layer_norm_eps),
            ("group_norm_eps", self.group_norm_eps),
        ] {
            if !(is_positive(eps) && eps < 1.0) {
                let expected = "above 0 in f32 (1.2e-38) and below 1";
                return Err(ConfigError::field(field, eps, expected));
            }
        }
        self.ffn.validate(&self.dims())?;
        match self.num_params() {
            parameters if parameters as u64 <= LARGEST_MODEL => Ok(()),
            parameters => Err(ConfigError::TooLarge {
                parameters,
                bytes: 4 * parameters as u128,
            }),
        }
    }

    /// Exact number of parameters that the model holds; the largest integer where the number is larger.
    ///
    /// Layer 0 has no value residual and so no `v0`, `v1`, `v2`; see [`Self::num_params_official`].
    pub fn num_params(&self) -> usize {
        let product = |a: usize, b: usize| a.saturating_mul(b);
        let sum = |terms: &[usize]| terms.iter().copied().fold(0, usize::saturating_add);
        let c = self.n_embd;
        let low_rank = |rank: usize| product(product(2, c), rank);
        // ln1, ln2, ln_x: 6; x_r..x_g: 6; w0, a0: 2; k_k, k_a: 2; r_k: 1; receptance, key, value, output: 4 C².
        let layer = sum(&[
            product(17, c),
            product(product(4, c), c),
            low_rank(self.decay_rank),
            low_rank(self.in_context_rank),
            low_rank(self.gate_rank),
            self.ffn.num_params(&self.dims()),
        ]);
        let value_residual = c.saturating_add(low_rank(self.value_rank));
        let e = self.embed_width.unwrap_or(c);
        let ln0 = if self.embedding_norm {
            product(2, e)
        } else {
            0
        };
        let lift = self.embed_width.map_or(0, |e| product(e, c));
        sum(&[
            product(self.vocab_size, e.saturating_add(c)),
            ln0,
            lift,
            product(2, c),
            product(self.n_layer, layer),
            product(self.n_layer.saturating_sub(1), value_residual),
        ])
    }

    /// Number of values in the running state of one sequence, whatever its length.
    pub fn num_state_values(&self) -> usize {
        let att = self.n_embd.saturating_mul(self.head_size.saturating_add(1));
        let layer = att.saturating_add(self.ffn.num_state_values(&self.dims()));
        self.n_layer.saturating_mul(layer)
    }

    /// The count that the official code prints: with layer 0's unused value-residual factors.
    pub fn num_params_official(&self) -> usize {
        let factors = self.value_rank.saturating_mul(2).saturating_add(1);
        self.num_params()
            .saturating_add(self.n_embd.saturating_mul(factors))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_new_model() {
        for (width, ranks) in [
            (64, [32, 32, 32, 32]),
            (128, [32, 32, 32, 64]),
            (512, [64, 64, 32, 128]),
            (768, [64, 64, 32, 128]),
            (1024, [64, 64, 64, 160]),
            (2048, [128, 128, 64, 224]),
            (2560, [128, 128, 96, 256]),
            (4096, [160, 160, 96, 320]),
        ] {
            let c = Rwkv7Config::new(256, 2, width);
            let found = [c.decay_rank, c.in_context_rank, c.value_rank, c.gate_rank];
            assert_eq!(found, ranks, "C = {width}");
        }
    }

    #[test]
    fn json_round_trip_and_unknown_fields() {
        let config = Rwkv7Config::new(97, 3, 128);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Rwkv7Config>(&json).unwrap(), config);
        let wrong = json.replace("n_layer", "layers");
        let error = serde_json::from_str::<Rwkv7Config>(&wrong).unwrap_err();
        assert!(error.to_string().contains("layers"), "{error}");
    }

    #[test]
    fn the_configuration_beside_a_trained_model_is_read() {
        let config = Rwkv7Config::new(97, 3, 128);
        let mut json = serde_json::json!(config);
        let read = |json: &serde_json::Value| {
            Rwkv7Config::<ChannelMixConfig>::load_binary(json.to_string().as_bytes())
        };
        assert_eq!(read(&json).unwrap(), config);
        json["architecture"] = "rwkv7".into();
        assert_eq!(read(&json).unwrap(), config);
        json["architecture"] = "meta-state".into();
        let error = read(&json).unwrap_err().to_string();
        assert!(
            error.contains("meta-state") && error.contains("expected rwkv7"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_configuration_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let check = || {
            let error = Rwkv7Config::<ChannelMixConfig>::load(&path)
                .unwrap_err()
                .to_string();
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
        };
        check();
        for content in ["{", "[]", r#"{"architecture": "other"}"#] {
            std::fs::write(&path, content).unwrap();
            check();
        }
    }

    #[test]
    fn impossible_dimensions_are_named() {
        let config = Rwkv7Config {
            n_embd: 100,
            ..Rwkv7Config::new(97, 3, 128)
        };
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(
            error,
            "configuration: `n_embd` is 100, expected a multiple of head_size = 64"
        );
    }

    #[test]
    fn sizes_beyond_any_memory_are_refused_and_never_wrap() {
        type Set = fn(&mut Rwkv7Config, usize);
        let fields: [(&str, Set); 10] = [
            ("vocab_size", |c, n| c.vocab_size = n),
            ("n_layer", |c, n| c.n_layer = n),
            ("n_embd", |c, n| c.n_embd = n),
            ("head_size", |c, n| c.head_size = n),
            ("decay_rank", |c, n| c.decay_rank = n),
            ("in_context_rank", |c, n| c.in_context_rank = n),
            ("value_rank", |c, n| c.value_rank = n),
            ("gate_rank", |c, n| c.gate_rank = n),
            ("embed_width", |c, n| c.embed_width = Some(n)),
            ("ffn.ffn_size", |c, n| c.ffn.ffn_size = n),
        ];
        for (field, set) in fields {
            for n_layer in [1, 2] {
                for n in [0, 1 << 30, usize::MAX / 4 + 1, usize::MAX] {
                    let mut config = Rwkv7Config::new(97, n_layer, 128);
                    set(&mut config, n);
                    let _ = (config.num_params(), config.num_params_official());
                    let _ = (config.num_state_values(), config.n_head());
                    let error = config.validate().unwrap_err().to_string();
                    assert!(error.contains(field), "{field} = {n}: {error}");
                }
            }
        }
        // Each size is allowed, all of them together are no model of any computer.
        let config = Rwkv7Config::new(1 << 16, 1 << 10, 1 << 14);
        let error = config.validate().unwrap_err().to_string();
        let bytes = (4 * config.num_params()).to_string();
        assert!(error.contains(&bytes), "{error}");
        Rwkv7Config::new(1, 1, usize::MAX).validate().unwrap_err();
    }

    #[test]
    fn an_epsilon_that_is_0_in_f32_is_refused() {
        for eps in [0.0, 1e-300, 1e-39, f64::NAN, 1.0, -1e-5] {
            for field in ["layer_norm_eps", "group_norm_eps"] {
                let mut config = Rwkv7Config::new(97, 3, 128);
                match field {
                    "layer_norm_eps" => config.layer_norm_eps = eps,
                    _ => config.group_norm_eps = eps,
                }
                let error = config.validate().unwrap_err().to_string();
                assert!(error.contains(field), "{eps}: {error}");
            }
        }
    }
}
