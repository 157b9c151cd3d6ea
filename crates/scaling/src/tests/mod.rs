//! Growth changes nothing that it promises not to.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
use meta_state::{MetaStateConfig, Oms, Removal, Scale, Side, Sse};
use rwkv7_core::{
    Rwkv7, Rwkv7Config,
    checkpoint::{self, Checkpoint, Format},
    init::random::normal_at,
    layers::ChannelMixConfig,
};

use crate::{Embedding, Growable, Growth, Method, Plan};

mod lossless;
mod methods;
mod optimizer;

const VOCAB: usize = 17;
const TOKENS: [i32; 19] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8];

/// A small model's configuration; ranks differ from each other so that no mix-up of axes keeps a shape legal.
fn base(layers: usize, heads: usize) -> Rwkv7Config {
    Rwkv7Config {
        head_size: 8,
        decay_rank: 5,
        in_context_rank: 3,
        value_rank: 6,
        gate_rank: 4,
        ffn: ChannelMixConfig { ffn_size: 21 },
        ..Rwkv7Config::new(VOCAB, layers, 8 * heads)
    }
}

/// The same model with noise on every parameter.
fn shaken<M: Module>(module: M, seed: u64, dtype: FloatDType) -> M {
    struct Shake(u64, FloatDType);
    impl ModuleMapper for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.0 += 1;
            param.map(|x| {
                let count = x.shape().num_elements() as u64;
                let noise = (0..count).map(|i| 0.3 * normal_at(self.0, i) as f32);
                let noise = TensorData::new(noise.collect::<Vec<_>>(), x.shape());
                (x.clone() + Tensor::from_data(noise, &x.device())).cast(self.1)
            })
        }
    }
    module.map(&mut Shake(1000 * seed, dtype))
}

fn row(tokens: &[i32]) -> Tensor<2, Int> {
    let data = TensorData::new(tokens.to_vec(), [1, tokens.len()]);
    Tensor::from_data(data, &Device::default())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// Largest difference in units of the expected values' standard deviation.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f64;
    let mean = expected.iter().sum::<f64>() / n;
    let std = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let pairs = found.iter().zip(expected);
    let worst = pairs.fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst.is_finite() && std > 0.01);
    worst / std
}

/// A model with random weights, and the one that grew out of it through files.
struct Pair<S: Growable> {
    plan: Plan<S>,
    small: Rwkv7<S::Layer>,
    large: Rwkv7<S::Layer>,
}

impl<S: Growable> Pair<S> {
    fn new(
        from: &Rwkv7Config<S>,
        to: &Rwkv7Config<S>,
        method: Method,
        dtype: FloatDType,
        seed: u64,
    ) -> Self {
        let plan = Plan::new(from, to, method, Embedding::Lift).unwrap();
        Self::of_plan(plan, dtype, seed)
    }

    fn of_plan(plan: Plan<S>, dtype: FloatDType, seed: u64) -> Self {
        let device = Device::default();
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
        let small = shaken(plan.from.init_seeded(&device, seed), seed, dtype);
        checkpoint::save(&a, &plan.from, &small, Format::Official, None).unwrap();
        let source = Checkpoint::open(&a).unwrap();
        Growth::new(&plan).seed(seed).run(source, &b).unwrap();
        let grown = Checkpoint::open(&b).unwrap();
        assert_eq!(grown.config::<S>().unwrap(), plan.to);
        let large = grown.into_model(&plan.to, &device, dtype).unwrap();
        Self { plan, small, large }
    }

    /// Largest difference of the logits of the old vocabulary, for a text read at once and for one that was in the middle
    /// when the model grew.
    fn difference(&self) -> f64 {
        let expected = self.small.forward(row(&TOKENS), None).0;
        let old = |logits: Tensor<3>| values(logits.narrow(2, 0, VOCAB));
        let whole = difference(
            &old(self.large.forward(row(&TOKENS), None).0),
            &values(expected.clone()),
        );
        let (_, state) = self.small.forward(row(&TOKENS[..7]), None);
        let state = self.plan.grow_state(state);
        let (rest, _) = self.large.forward(row(&TOKENS[7..]), Some(state));
        let carried = difference(&old(rest), &values(expected.narrow(1, 7, 12)));
        whole.max(carried)
    }
}

/// A random Meta-State layer with any choice of every option, and the one that it grows into.
fn random_mixer(seed: u64) -> [MetaStateConfig; 2] {
    let pick = |place: u64, below| pick(seed, 100 + place, below);
    let from = MetaStateConfig {
        oms: [Oms::Shared, Oms::PerHead][pick(0, 2)],
        sse: [
            Sse::State,
            Sse::TopLeft(5),
            Sse::TopLeft(8),
            Sse::LowRank(3),
            Sse::Projected,
            Sse::HeadMixed,
            Sse::Learned,
        ][pick(1, 7)],
        side: [Side::Value, Side::Key][pick(2, 2)],
        removal: [Removal::TimeMix, Removal::Own][pick(3, 2)],
        center: pick(4, 2) == 0,
        scale: [Scale::None, Scale::Constant(1.0 / 16.0), Scale::L2][pick(5, 3)],
        token_shift: pick(6, 2) == 0,
        norm_affine: pick(7, 2) == 0,
        detach_decay: pick(8, 2) == 0,
        norm_eps: [1e-5, 1.0][pick(9, 2)],
    };
    let side = match from.sse {
        Sse::Learned => Side::Value,
        _ => from.side,
    };
    let from = MetaStateConfig { side, ..from };
    let to = MetaStateConfig {
        oms: [from.oms, Oms::PerHead][pick(10, 2)],
        sse: match from.sse {
            Sse::LowRank(rank) => Sse::LowRank(rank + pick(11, 3)),
            Sse::State if pick(11, 3) == 0 => Sse::Projected,
            other => other,
        },
        ..from.clone()
    };
    [from, to]
}

/// The growth to `to`, or to the part of it that is exact: without larger heads, and with a W_oms for each head.
fn exact_part(
    from: &Rwkv7Config<MetaStateConfig>,
    to: Rwkv7Config<MetaStateConfig>,
) -> Plan<MetaStateConfig> {
    let same_heads = Rwkv7Config {
        n_embd: to.n_head() * from.head_size,
        head_size: from.head_size,
        norm_prefix: from.norm_prefix,
        ..to.clone()
    };
    let per_head = same_heads.with_ffn(MetaStateConfig {
        oms: Oms::PerHead,
        ..to.ffn.clone()
    });
    let mut targets = [to, same_heads, per_head].into_iter();
    targets
        .find_map(|to| plan(from, &to, Method::Lossless).exact().ok())
        .unwrap()
}

/// A number from 0 to `below - 1` that seed and place decide.
fn pick(seed: u64, place: u64, below: usize) -> usize {
    (normal_at(seed, place).abs() * 1e6) as usize % below
}

/// A random growth of RWKV-7: some dimensions stay, others grow by any ratio, heads by copies or outside of the norms. Some models
/// have heads of 11 whose norms are taken over 8 channels, as after an earlier growth.
fn random_plan(seed: u64) -> (Rwkv7Config, Rwkv7Config) {
    let pick = |place, below| pick(seed, place, below);
    let mut from = base(1 + pick(0, 3), 1 + pick(1, 3));
    let grown_before = pick(12, 4) == 0;
    if grown_before {
        (from.n_embd, from.head_size) = (11 * from.n_head(), 11);
        from.norm_prefix = Some(8);
    }
    let head_size = match grown_before {
        true => [11, 11, 22, 13, 33, 16][pick(10, 6)],
        false => [8, 8, 16, 24, 11, 16][pick(10, 6)],
    };
    let outside_norms = grown_before || head_size == 11 || pick(11, 2) == 0;
    let to = Rwkv7Config {
        vocab_size: VOCAB + pick(2, 2) * 5,
        n_layer: from.n_layer + pick(3, 4),
        head_size,
        norm_prefix: outside_norms.then_some(8),
        n_embd: head_size * (from.n_head() + pick(4, 4)),
        decay_rank: from.decay_rank + pick(5, 3),
        in_context_rank: from.in_context_rank + pick(6, 3),
        value_rank: from.value_rank + pick(7, 3),
        gate_rank: from.gate_rank + pick(8, 3),
        ffn: ChannelMixConfig {
            ffn_size: 21 + pick(9, 20),
        },
        ..from.clone()
    };
    (from, to)
}

/// The choices of the Meta-State layer that growth has to do with.
fn mixers() -> Vec<MetaStateConfig> {
    let practical = MetaStateConfig::practical;
    let base = || {
        practical()
            .with_side(Side::Value)
            .with_removal(Removal::TimeMix)
    };
    vec![
        MetaStateConfig::paper(),
        practical(),
        base(),
        base().with_token_shift(true).with_norm_affine(true),
        base().with_removal(Removal::Own).with_scale(Scale::L2),
        base()
            .with_oms(Oms::Shared)
            .with_center(true)
            .with_side(Side::Key),
        base().with_sse(Sse::LowRank(3)),
        base().with_sse(Sse::HeadMixed),
        practical().with_sse(Sse::Projected),
        base().with_sse(Sse::Learned),
        base().with_sse(Sse::TopLeft(5)),
    ]
}

fn plan<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>, method: Method) -> Plan<S> {
    Plan::new(from, to, method, Embedding::Lift).unwrap()
}
