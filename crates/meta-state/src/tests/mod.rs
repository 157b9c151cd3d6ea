//! The layer against the equations, and the model it makes against itself.

mod config;
mod golden;
mod model;
mod oracle;
mod stability;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Tensor, TensorData},
};
use rwkv7_core::Rwkv7Config;

use crate::{MetaStateConfig, MetaStateModelConfig, Oms, Removal, Scale, Side, Sse};

/// Every option by itself, and some together.
fn variants() -> Vec<(&'static str, MetaStateConfig)> {
    let base = || MetaStateConfig {
        oms: Oms::PerHead,
        ..MetaStateConfig::paper()
    };
    vec![
        ("paper", MetaStateConfig::paper()),
        ("per-head", base()),
        ("practical", MetaStateConfig::practical()),
        (
            "top-left",
            MetaStateConfig {
                sse: Sse::TopLeft(5),
                ..base()
            },
        ),
        (
            "low-rank",
            MetaStateConfig {
                sse: Sse::LowRank(3),
                ..base()
            },
        ),
        (
            "projected",
            MetaStateConfig {
                sse: Sse::Projected,
                ..base()
            },
        ),
        (
            "head-mixed",
            MetaStateConfig {
                sse: Sse::HeadMixed,
                ..base()
            },
        ),
        (
            "learned",
            MetaStateConfig {
                sse: Sse::Learned,
                ..base()
            },
        ),
        (
            "key-side",
            MetaStateConfig {
                side: Side::Key,
                ..base()
            },
        ),
        (
            "self-key",
            MetaStateConfig {
                removal: Removal::Own,
                ..base()
            },
        ),
        (
            "centered",
            MetaStateConfig {
                center: true,
                ..base()
            },
        ),
        (
            "constant",
            MetaStateConfig {
                scale: Scale::Constant(0.125),
                ..base()
            },
        ),
        (
            "l2",
            MetaStateConfig {
                scale: Scale::L2,
                ..base()
            },
        ),
        (
            "shift",
            MetaStateConfig {
                token_shift: true,
                ..base()
            },
        ),
        (
            "affine",
            MetaStateConfig {
                norm_affine: true,
                ..base()
            },
        ),
        (
            "detached",
            MetaStateConfig {
                detach_decay: true,
                ..base()
            },
        ),
        (
            "combined",
            MetaStateConfig {
                oms: Oms::Shared,
                sse: Sse::LowRank(3),
                removal: Removal::Own,
                center: true,
                scale: Scale::L2,
                token_shift: true,
                norm_affine: true,
                ..base()
            },
        ),
        (
            "combined2",
            MetaStateConfig {
                sse: Sse::TopLeft(6),
                side: Side::Key,
                token_shift: true,
                norm_affine: true,
                ..base()
            },
        ),
        (
            "combined3",
            MetaStateConfig {
                sse: Sse::LowRank(3),
                side: Side::Key,
                removal: Removal::Own,
                detach_decay: true,
                ..base()
            },
        ),
        (
            "combined4",
            MetaStateConfig {
                sse: Sse::Projected,
                side: Side::Key,
                removal: Removal::Own,
                ..base()
            },
        ),
        (
            "combined5",
            MetaStateConfig {
                sse: Sse::HeadMixed,
                side: Side::Key,
                norm_affine: true,
                ..base()
            },
        ),
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
