//! The layer against the equations, and the model it makes against itself.

mod config;
mod golden;
mod model;
mod oracle;
mod stability;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
use rwkv7_core::Rwkv7Config;

use crate::{MetaStateConfig, MetaStateModelConfig, Oms, Removal, Scale, Side, Sse};

/// Every option by itself, and some together.
fn variants() -> Vec<(&'static str, MetaStateConfig)> {
    let base = || MetaStateConfig::paper().with_oms(Oms::PerHead);
    let key_side = |sse| base().with_sse(sse).with_side(Side::Key);
    vec![
        ("paper", MetaStateConfig::paper()),
        ("per-head", base()),
        ("practical", MetaStateConfig::practical()),
        ("top-left", base().with_sse(Sse::TopLeft(5))),
        ("low-rank", base().with_sse(Sse::LowRank(3))),
        ("projected", base().with_sse(Sse::Projected)),
        ("head-mixed", base().with_sse(Sse::HeadMixed)),
        ("learned", base().with_sse(Sse::Learned)),
        ("key-side", base().with_side(Side::Key)),
        ("self-key", base().with_removal(Removal::Own)),
        ("centered", base().with_center(true)),
        ("constant", base().with_scale(Scale::Constant(0.125))),
        ("l2", base().with_scale(Scale::L2)),
        ("shift", base().with_token_shift(true)),
        ("affine", base().with_norm_affine(true)),
        ("detached", base().with_detach_decay(true)),
        (
            "combined",
            MetaStateConfig::paper()
                .with_sse(Sse::LowRank(3))
                .with_removal(Removal::Own)
                .with_center(true)
                .with_scale(Scale::L2)
                .with_token_shift(true)
                .with_norm_affine(true),
        ),
        (
            "combined2",
            key_side(Sse::TopLeft(6))
                .with_token_shift(true)
                .with_norm_affine(true),
        ),
        (
            "combined3",
            key_side(Sse::LowRank(3))
                .with_removal(Removal::Own)
                .with_detach_decay(true),
        ),
        (
            "combined4",
            key_side(Sse::Projected).with_removal(Removal::Own),
        ),
        ("combined5", key_side(Sse::HeadMixed).with_norm_affine(true)),
    ]
}

/// Two heads of eight channels.
fn small(ffn: &MetaStateConfig) -> MetaStateModelConfig {
    Rwkv7Config {
        head_size: 8,
        ..Rwkv7Config::new(29, 3, 16)
    }
    .with_ffn(ffn.clone())
}

/// Token ids `[1, time]`.
fn row(tokens: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(tokens.to_vec(), [1, tokens.len()]), device)
}

/// Largest difference in units of the expected values' largest.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    let pairs = found.iter().zip(expected);
    let worst = pairs.fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst.is_finite());
    worst / largest.max(1e-12)
}

/// Standard normal values, the same for the same seed whatever else runs.
fn normal<const D: usize>(dims: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut state = seed;
    let mut uniform = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((x ^ (x >> 31)) >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    let mut value = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| value()).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// The same module with noise on every parameter, so that none is at a special value and every formula matters.
fn shaken<M: Module>(module: M, size: f32, dtype: FloatDType) -> M {
    struct Shake {
        size: f32,
        dtype: FloatDType,
        count: u64,
    }
    impl ModuleMapper for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.count += 1;
            param.map(|x| {
                let noise = normal(x.dims(), 1000 * self.count, &x.device()) * self.size;
                let tracked = x.is_autodiff();
                let x = (x.cast(FloatDType::F32) + noise).cast(self.dtype).detach();
                x.set_require_grad(tracked)
            })
        }
    }
    module.map(&mut Shake {
        size,
        dtype,
        count: 0,
    })
}
