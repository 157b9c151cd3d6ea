//! Larger heads, paired channels, the methods that change the outputs, and new heads that begin to write.

use super::*;
use crate::{Difference, grow_model};

#[test]
fn paired_channels_lose_nothing_and_need_no_new_tensor() {
    for seed in 0..25 {
        let (from, to) = random_plan(seed);
        let to = Rwkv7Config {
            n_embd: to.n_embd + to.head_size,
            ..to
        };
        if !(to.n_embd - from.n_embd).is_multiple_of(2) {
            continue;
        }
        let new = || Plan::new(&from, &to, Method::Lossless, Embedding::Paired).unwrap();
        let exact = Pair::of_plan(new(), FloatDType::F64, seed);
        assert!(exact.difference() < 1e-10, "{:e}", exact.difference());
        let rows = exact.large.emb.weight.val().abs().max_dim(1);
        assert!(rows.min().into_scalar::<f64>() > 0.0, "new tokens too");
        let single = Pair::of_plan(new(), FloatDType::F32, seed).difference();
        assert!(single < 1e-4, "{single:e}");
        let names = |config: &Rwkv7Config| checkpoint::expected_tensors(config).into_keys();
        let plain = Rwkv7Config {
            n_layer: from.n_layer,
            ..to.clone()
        };
        assert!(names(&plain).eq(names(&from)) && exact.plan.to.embed_width.is_none());
    }
    let (from, to) = (base(1, 2), base(1, 3));
    let lifted = plan(&from, &to, Method::Lossless).to;
    let error = Plan::new(&lifted, &base(1, 4), Method::Lossless, Embedding::Paired).unwrap_err();
    assert!(error.to_string().contains("grow its lift"), "{error}");
    let error = Plan::new(&from, &to, Method::Paper, Embedding::Paired).unwrap_err();
    assert!(error.to_string().contains("leave them out"), "{error}");
}

#[test]
fn heads_that_are_no_copies_are_refused_unless_that_is_asked_for() {
    let from = base(2, 2);
    let to = Rwkv7Config {
        head_size: 12,
        n_embd: 24,
        ..from.clone()
    };
    let lossy = plan(&from, &to, Method::Lossless);
    assert!(lossy.to_string().contains("not exact: att.ln_x"));
    let error = lossy.clone().exact().unwrap_err().to_string();
    assert!(
        error.contains("att.ln_x") && error.contains("16, 24 or another multiple of 8"),
        "{error}"
    );
    assert!(Pair::of_plan(lossy, FloatDType::F64, 1).difference() > 0.01);

    let outside = Rwkv7Config {
        norm_prefix: Some(8),
        ..to.clone()
    };
    assert!(plan(&from, &outside, Method::Lossless).exact().is_ok());
    let wrong = Rwkv7Config {
        norm_prefix: Some(10),
        ..to
    };
    let error = Plan::new(&from, &wrong, Method::Lossless, Embedding::Lift).unwrap_err();
    assert!(error.to_string().contains("norm_prefix"), "{error}");

    let to = Rwkv7Config {
        head_size: 16,
        n_embd: 32,
        ..from.clone()
    };
    for mixer in mixers() {
        let exact = |to: &Rwkv7Config| {
            let [from, to] = [&from, to].map(|config| config.with_ffn(mixer.clone()));
            plan(&from, &to, Method::Lossless).exact().is_ok()
        };
        let top_left = matches!(mixer.sse, Sse::TopLeft(_));
        let copies = !top_left && mixer.scale != Scale::L2;
        assert_eq!(exact(&to), copies, "{mixer:?}");
        // `top-left` reads the same channels as before.
        let padded = top_left || (!mixer.center && mixer.side == Side::Value);
        assert_eq!(exact(&outside), padded, "{mixer:?}");
    }
    let fewer = Rwkv7Config {
        head_size: 16,
        ..from.clone()
    };
    let error = Plan::new(&from, &fewer, Method::Lossless, Embedding::Lift).unwrap_err();
    assert!(error.to_string().contains("number of heads"), "{error}");
}

/// The literal recipe moves the logits by several standard deviations.
#[test]
fn the_papers_recipe_and_the_others_change_the_outputs() {
    let shape = |layers, heads| Rwkv7Config {
        head_size: 16,
        ..base(layers, heads)
    };
    let size = |config: Rwkv7Config, heads: usize| Rwkv7Config {
        n_embd: 16 * heads,
        ..config
    };
    let (from, to) = (size(shape(3, 3), 3), size(shape(3, 5), 5));
    for method in [Method::Paper, Method::PaperRandom, Method::ShrinkPerturb] {
        let grown = plan(&from, &to, method);
        assert_eq!(grown.to.embed_width, None);
        let found = Pair::of_plan(grown, FloatDType::F64, 1).difference();
        assert!(found > 1.0, "{method:?}: {found}");
        for mixer in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
            let [from, to] = [&from, &to].map(|config| config.with_ffn(mixer.clone()));
            let found = Pair::of_plan(plan(&from, &to, method), FloatDType::F64, 1).difference();
            assert!(found > 1.0, "{method:?}: {found}");
        }
    }
    // By nothing it is the identity, but for what is perturbed.
    let same = Pair::of_plan(plan(&from, &from, Method::Paper), FloatDType::F64, 1);
    assert!(same.difference() < 1e-12);
}

#[test]
fn new_blocks_are_where_they_are_asked_for() {
    let (from, to) = (base(2, 2), base(4, 3));
    let new = || plan(&from, &to, Method::Lossless);
    assert_eq!(new().blocks, [Some(0), None, Some(1), None]);
    let top = new().with_new_blocks(&[3, 2]).unwrap();
    assert_eq!(top.blocks, [Some(0), Some(1), None, None]);
    let found = Pair::of_plan(top, FloatDType::F64, 1).difference();
    assert!(found < 1e-10, "{found}");
    for (places, reason) in [
        (&[1][..], "there are 2 new blocks, and 1 different"),
        (&[1, 1], "there are 2"),
        (&[0, 1], "block 0"),
        (&[1, 4], "not below 4"),
    ] {
        let error = new().with_new_blocks(places).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let stacked = plan(&from, &to, Method::Stack);
    assert!(stacked.with_new_blocks(&[2, 3]).is_err());
}

/// Eq. 7: W_in appears with the growth, as the identity where nothing may be lost and at random where the paper's recipe is
/// asked for; eq. 10: appended columns of W_oms are zero or small and random.
#[test]
fn the_papers_expansion_may_be_random() {
    let from = base(2, 2).with_ffn(MetaStateConfig::paper());
    let projected = MetaStateConfig {
        sse: Sse::Projected,
        ..MetaStateConfig::paper()
    };
    let to = base(2, 3).with_ffn(projected);
    let exact = plan(&from, &to, Method::Lossless).exact().unwrap();
    assert!(
        exact
            .to_string()
            .contains("blocks.0.ms.W_in [8, 8]: the identity")
    );
    let found = Pair::of_plan(exact, FloatDType::F64, 1).difference();
    assert!(found < 1e-10, "{found}");

    let large = |method| {
        let device = Device::flex();
        let small = from.init_seeded(&device, 3);
        grow_model(&small, &plan(&from, &to, method), &device, 3).unwrap()
    };
    for (method, columns) in [(Method::Paper, false), (Method::PaperRandom, true)] {
        let ms = &large(method).blocks[1].ffn;
        let weight = ms.W_in.as_ref().unwrap().val();
        let off = weight.clone() - Tensor::eye(8, &weight.device());
        assert!(off.abs().max().into_scalar::<f32>() > 0.1, "random");
        let columns_found = ms.W_oms.val().narrow(2, 16, 8).abs().max();
        assert_eq!(
            columns_found.into_scalar::<f32>() > 0.0,
            columns,
            "{method:?}"
        );
    }
    let back = Plan::new(&to, &from, Method::Lossless, Embedding::Lift);
    assert!(back.is_err());
}

/// New heads of a Meta-State model must stay quiet when they begin to write, and not only before. With a W_oms for each
/// head, zero for new ones, they do; one W_oms for all heads lets a new head write through trained weights at once.
#[test]
fn new_heads_that_wake_up_disturb_little() {
    fn disturbance<S: Growable>(mixer: &S, noise: f64) -> f64 {
        let shape = |layers, heads: usize| {
            let config = Rwkv7Config {
                head_size: 16,
                n_embd: 16 * heads,
                ..base(layers, heads)
            };
            config.with_ffn(mixer.clone())
        };
        let (from, to) = (shape(2, 3), shape(2, 5));
        let pair = Pair::of_plan(plan(&from, &to, Method::Lossless), FloatDType::F64, 3);
        let mut woken = pair.large.clone();
        for block in &mut woken.blocks {
            block.att.output.weight = block.att.output.weight.clone().map(|weight| {
                let [inner, width] = weight.dims();
                let new = width - from.n_embd;
                let count = (inner * new) as u64;
                let values = (0..count)
                    .map(|i| noise * normal_at(9, i))
                    .collect::<Vec<_>>();
                let data = TensorData::new(values, [inner, new]);
                let noise = Tensor::from_data(data, (&weight.device(), weight.dtype()));
                let rows = weight.clone().narrow(1, from.n_embd, new) + noise;
                Tensor::cat(vec![weight.narrow(1, 0, from.n_embd), rows], 1)
            });
        }
        Difference::between(&pair.small, &woken, row(&TOKENS)).kl
    }
    // The effect of the same noise on RWKV-7 is the measure. The safe variant should not be far above that.
    let ffn = ChannelMixConfig { ffn_size: 192 };
    for noise in [1e-3, 1e-2, 1e-1] {
        let scale = disturbance(&ffn, noise);
        let quiet = disturbance(&MetaStateConfig::practical(), noise);
        assert!(quiet < 3.0 * scale, "{noise}: {quiet:e} and {scale:e}");
    }
    let scale = disturbance(&ffn, 1e-2);
    let loud = disturbance(&MetaStateConfig::paper(), 1e-2);
    assert!(loud > 20.0 * scale, "{loud:e} and {scale:e}");
}

#[test]
fn one_oms_for_all_heads_may_become_one_for_each() {
    for (seed, shared) in (0..10).zip(mixers().into_iter().cycle()) {
        let shared = MetaStateConfig {
            oms: Oms::Shared,
            ..shared
        };
        let own = MetaStateConfig {
            oms: Oms::PerHead,
            ..shared.clone()
        };
        let (from, to) = (base(2, 2), base(3, 2 + seed as usize % 3));
        let (from, to) = (from.with_ffn(shared), to.with_ffn(own));
        let plan = plan(&from, &to, Method::Lossless).exact().unwrap();
        let found = Pair::of_plan(plan, FloatDType::F64, seed).difference();
        assert!(found < 1e-10, "{from:?}: {found:e}");
        let back = Plan::new(&to, &from, Method::Lossless, Embedding::Lift);
        assert!(back.is_err());
    }
}
