//! RWKV-7's initial values. They are part of the model, which trains worse with others.
//!
//! n is the channel, q = 1 - l/L and ρ = l/(L-1) for layer l of L. Source: official training code,
//! `RWKV-v7/train_temp/src/model.py`.
//!
//! The seed and the name of a tensor decide its random values. They depend neither on the device nor on the order in which
//! parameters are first used.

pub mod random;

use burn::{
    module::{Param, ParamId},
    nn::{Embedding, Linear},
    tensor::{Device, Shape, Tensor, TensorData},
};
use rand::RngExt;

use crate::{
    MatmulPrecision,
    config::{ChannelMixerConfig, LayerDims, Rwkv7Config},
    layers::{LayerNorm, TimeMix},
};

use random::{named_rng, orthogonal};

/// Makes the parameters of one layer with their initial values.
#[derive(Clone, Debug)]
pub struct LayerInit {
    layer: usize,
    n_layer: usize,
    head_size: usize,
    seed: u64,
    device: Device,
}

impl LayerInit {
    /// Initial values of layer `layer` (from 0) on `device`.
    pub fn new(layer: usize, dims: &LayerDims, device: &Device, seed: u64) -> Self {
        Self {
            layer,
            n_layer: dims.n_layer,
            head_size: dims.head_size,
            seed,
            device: device.clone(),
        }
    }

    /// The layer, from 0.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// q = 1 - l/L: 1 in the first layer, 1/L in the last.
    pub fn depth_left(&self) -> f64 {
        1.0 - self.layer as f64 / self.n_layer as f64
    }

    /// ρ = l/(L-1): 0 in the first layer (and the only one), 1 in the last.
    pub fn depth(&self) -> f64 {
        match self.n_layer {
            1 => 0.0,
            n => self.layer as f64 / (n - 1) as f64,
        }
    }

    /// A vector `[1, 1, width]` with the value `f(n)` in channel n.
    pub fn vector(
        &self,
        width: usize,
        f: impl Fn(usize) -> f64 + Send + Sync + 'static,
    ) -> Param<Tensor<3>> {
        parameter([1, 1, width], &self.device, move || {
            (0..width).map(|n| f(n) as f32).collect()
        })
    }

    /// A token-shift mix `[1, 1, width]`, 1 - (n/C)^power.
    pub fn shift_mix(&self, width: usize, power: f64) -> Param<Tensor<3>> {
        self.vector(width, move |n| 1.0 - (n as f64 / width as f64).powf(power))
    }

    /// A matrix of zeros.
    pub fn zeros<const D: usize>(&self, dims: [usize; D]) -> Param<Tensor<D>> {
        constant(dims, 0.0, &self.device)
    }

    /// An orthogonal matrix `[rows, cols]` times `gain`, random by the tensor's name within the layer.
    pub fn orthogonal(&self, name: &str, dims: [usize; 2], gain: f64) -> Param<Tensor<2>> {
        let name = format!("blocks.{}.{name}", self.layer);
        orthogonal_parameter(&name, dims, gain, &self.device, self.seed)
    }

    /// One matrix for each head, `[heads, rows, cols]`, each orthogonal times `gain`.
    pub fn orthogonal_heads(&self, name: &str, dims: [usize; 3], gain: f64) -> Param<Tensor<3>> {
        let [heads, rows, cols] = dims;
        let name = format!("blocks.{}.{name}", self.layer);
        let seed = self.seed;
        parameter(dims, &self.device, move || {
            let mut rng = named_rng(seed, &name);
            (0..heads)
                .flat_map(|_| orthogonal([rows, cols], gain as f32, &mut rng))
                .collect()
        })
    }

    /// The identity, `[size, size]`.
    pub fn identity(&self, size: usize) -> Param<Tensor<2>> {
        parameter([size, size], &self.device, move || {
            let one = |i| if i % (size + 1) == 0 { 1.0 } else { 0.0 };
            (0..size * size).map(one).collect()
        })
    }

    /// The scale 1 and shift 0 of a normalisation.
    pub fn norm(&self, width: usize, epsilon: f64) -> LayerNorm {
        layer_norm(width, epsilon, &self.device)
    }

    /// A linear layer `input -> output` with an orthogonal weight.
    pub fn orthogonal_linear(&self, name: &str, input: usize, output: usize, gain: f64) -> Linear {
        Linear {
            weight: self.orthogonal(name, [input, output], gain),
            bias: None,
        }
    }

    /// A linear layer `input -> output` with a weight of zeros: the block starts as the identity.
    pub fn zero_linear(&self, input: usize, output: usize) -> Linear {
        Linear {
            weight: self.zeros([input, output]),
            bias: None,
        }
    }
}

/// Time mixing of `init`'s layer with its initial values.
pub(crate) fn time_mix<S: ChannelMixerConfig>(
    config: &Rwkv7Config<S>,
    init: &LayerInit,
) -> TimeMix {
    let c = config.n_embd;
    let heads = config.n_head();
    let (q, rho) = (init.depth_left(), init.depth());
    let head_size = init.head_size as f64;
    let zigzag = move |n: usize| {
        let half = (head_size - 1.0) / 2.0;
        let z = if half > 0.0 {
            ((n as f64 % head_size) - half) / half
        } else {
            0.0
        };
        z * z.abs()
    };
    let span = (c.max(2) - 1) as f64;
    let linear = move |n: usize| n as f64 / span - 0.5;
    let decay_power = 1.0 + if rho > 0.0 { rho.powf(0.3) } else { 0.0 };
    let low_rank = |name: &str, rank: usize| {
        let out = init.orthogonal(&format!("att.{name}2"), [rank, c], low_rank_gain(rank, c));
        (init.zeros([c, rank]), out)
    };
    let (w1, w2) = low_rank("w", config.decay_rank);
    let (a1, a2) = low_rank("a", config.in_context_rank);
    let (g1, g2) = low_rank("g", config.gate_rank);
    let (v0, v1, v2) = if init.layer == 0 {
        (None, None, None)
    } else {
        let (v1, v2) = low_rank("v", config.value_rank);
        let v0 = init.vector(c, move |n| 0.73 - 0.4 * linear(n));
        (Some(v0), Some(v1), Some(v2))
    };
    TimeMix {
        x_r: init.shift_mix(c, 0.2 * q),
        x_w: init.shift_mix(c, 0.9 * q),
        x_k: init.shift_mix(c, 0.7 * q),
        x_v: init.shift_mix(c, 0.7 * q),
        x_a: init.shift_mix(c, 0.9 * q),
        x_g: init.shift_mix(c, 0.2 * q),
        w0: init.vector(c, move |n| {
            -5.5 + 6.0 * (n as f64 / span).powf(decay_power) + 2.5 * zigzag(n)
        }),
        w1,
        w2,
        a0: init.vector(c, move |n| -0.19 + 0.3 * zigzag(n) + 0.4 * linear(n)),
        a1,
        a2,
        v0,
        v1,
        v2,
        g1,
        g2,
        k_k: init.vector(c, move |n| 0.71 - 0.1 * linear(n)),
        k_a: init.vector(c, |_| 1.02),
        r_k: constant([heads, config.head_size], -0.04, &init.device),
        receptance: init.orthogonal_linear("att.receptance", c, c, 1.0),
        key: init.orthogonal_linear("att.key", c, c, 0.1),
        value: init.orthogonal_linear("att.value", c, c, 1.0),
        output: init.zero_linear(c, c),
        ln_x: group_norm(config, init),
        norm_prefix: config.norm_prefix,
        precision: MatmulPrecision::F32,
    }
}

/// 0.1 max(1, √(rows/cols)).
fn low_rank_gain(rows: usize, cols: usize) -> f64 {
    0.1 * (rows as f64 / cols as f64).sqrt().max(1.0)
}

fn group_norm<S: ChannelMixerConfig>(config: &Rwkv7Config<S>, init: &LayerInit) -> LayerNorm {
    let gain = ((1 + init.layer) as f64 / init.n_layer as f64).powf(0.7) as f32;
    norm(config.n_embd, gain, config.group_norm_eps, &init.device)
}

/// A layer norm of weight 1 and bias 0.
pub(crate) fn layer_norm(width: usize, epsilon: f64, device: &Device) -> LayerNorm {
    norm(width, 1.0, epsilon, device)
}

fn norm(width: usize, gain: f32, epsilon: f64, device: &Device) -> LayerNorm {
    LayerNorm {
        gamma: constant([width], gain, device),
        beta: constant([width], 0.0, device),
        epsilon,
    }
}

/// The embedding, uniform in ±1e-4.
pub(crate) fn embedding(vocab: usize, width: usize, device: &Device, seed: u64) -> Embedding {
    let weight = parameter([vocab, width], device, move || {
        let mut rng = named_rng(seed, "emb");
        (0..vocab * width)
            .map(|_| rng.random_range(-1e-4..1e-4))
            .collect()
    });
    Embedding { weight }
}

/// The head, orthogonal with gain 0.5 max(1, √(V/C)).
pub(crate) fn head(width: usize, vocab: usize, device: &Device, seed: u64) -> Linear {
    let gain = 0.5 * (vocab as f64 / width as f64).sqrt().max(1.0);
    Linear {
        weight: orthogonal_parameter("head", [width, vocab], gain, device, seed),
        bias: None,
    }
}

fn constant<const D: usize>(dims: [usize; D], value: f32, device: &Device) -> Param<Tensor<D>> {
    parameter(dims, device, move || {
        vec![value; dims.iter().product::<usize>()]
    })
}

fn orthogonal_parameter(
    name: &str,
    dims: [usize; 2],
    gain: f64,
    device: &Device,
    seed: u64,
) -> Param<Tensor<2>> {
    let name = name.to_string();
    parameter(dims, device, move || {
        orthogonal(dims, gain as f32, &mut named_rng(seed, &name))
    })
}

/// A parameter whose values are made when it is first used.
fn parameter<const D: usize>(
    dims: [usize; D],
    device: &Device,
    values: impl FnOnce() -> Vec<f32> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| {
            let data = TensorData::new(values(), dims);
            Tensor::from_data(data, device).set_require_grad(require_grad)
        },
        device.clone(),
        true,
        Shape::from(dims),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Rwkv7Config;

    /// Width and depth of the golden values, with small low-rank parts so that the test is quick.
    fn config() -> Rwkv7Config {
        Rwkv7Config {
            n_embd: 768,
            n_layer: 12,
            ..Rwkv7Config::new(8, 12, 64)
        }
    }

    fn values<const D: usize>(param: &Param<Tensor<D>>) -> Vec<f32> {
        param.val().into_data().try_to_vec().unwrap()
    }

    fn check(name: &str, found: &[f32], at: &[usize], expected: &[f64]) {
        for (&n, expected) in at.iter().zip(expected) {
            let error = (f64::from(found[n]) - expected).abs();
            assert!(
                error < 1e-6 * expected.abs().max(1.0),
                "{name}[{n}] = {}, expected {expected}",
                found[n]
            );
        }
    }

    /// Computed from the official formulas in numpy.
    #[test]
    fn golden_values() {
        let model = config().init(&Device::default());
        let at = [0, 1, 63, 64, 384, 767];
        let layers = [
            (
                0,
                [-8.0, -7.835967, -2.507171, -7.499348, -4.996089, 3.0],
                [1.0, 0.735194, 0.393549, 0.391636, 0.129449, 0.000261],
                0.17562,
            ),
            (
                5,
                [-8.0, -7.843748, -2.931469, -7.929511, -6.260142, 3.0],
                [1.0, 0.539346, 0.25304, 0.251666, 0.077684, 0.000152],
                0.615572,
            ),
            (
                11,
                [-8.0, -7.843779, -2.95952, -7.958225, -6.496086, 3.0],
                [1.0, 0.104819, 0.040821, 0.040569, 0.011486, 0.000022],
                1.0,
            ),
        ];
        for (layer, w0, x_r, ln_x) in layers {
            let block = &model.blocks[layer];
            check("w0", &values(&block.att.w0), &at, &w0);
            check("x_r", &values(&block.att.x_r), &at, &x_r);
            check("x_g", &values(&block.att.x_g), &at, &x_r);
            let gain = values(&block.att.ln_x.gamma);
            check("ln_x.weight", &gain, &at, &[ln_x; 6]);
        }
        let att = &model.blocks[0].att;
        check(
            "x_k",
            &values(&att.x_k),
            &at,
            &[1.0, 0.990445, 0.826306, 0.82438, 0.384428, 0.000912],
        );
        check(
            "x_w",
            &values(&att.x_w),
            &at,
            &[1.0, 0.99747, 0.894663, 0.893159, 0.464113, 0.001172],
        );
        check(
            "a0",
            &values(&att.a0),
            &[0, 63, 767],
            &[-0.69, -0.057145, 0.31],
        );
        check(
            "k_k",
            &values(&att.k_k),
            &[0, 63, 767],
            &[0.76, 0.751786, 0.66],
        );
        check(
            "v0",
            &values(model.blocks[1].att.v0.as_ref().unwrap()),
            &[0, 63, 767],
            &[0.93, 0.897145, 0.53],
        );
        let ffn = |layer: usize| values(&model.blocks[layer].ffn.x_k);
        check(
            "ffn.x_k",
            &ffn(0),
            &at,
            &[1.0, 0.998698, 0.917969, 0.916667, 0.5, 0.001302],
        );
        check(
            "ffn.x_k",
            &ffn(5),
            &at,
            &[1.0, 0.536652, 0.251398, 0.250032, 0.077123, 0.000151],
        );
    }

    #[test]
    fn a_seed_gives_the_same_model_whatever_is_used_first() {
        let config = Rwkv7Config::new(11, 2, 64);
        let device = Device::default();
        let (one, two) = (
            config.init_seeded(&device, 3),
            config.init_seeded(&device, 3),
        );
        let late = values(&one.head.weight);
        let early = values(&one.emb.weight);
        assert_eq!(early, values(&two.emb.weight));
        assert_eq!(late, values(&two.head.weight));
        assert_ne!(late, values(&config.init_seeded(&device, 4).head.weight));
    }
}
