//! Lossless growth, the plan in words, refusals, and gradients of new entries.

use burn::tensor::DType;

use super::*;
use crate::{Difference, ScalingError};

/// A hundred random growths, each in f64 and in f32.
fn lose_nothing<S: Growable>(plan: impl Fn(u64) -> Plan<S>) {
    for seed in 0..100 {
        let plan = plan(seed);
        for (dtype, tolerance) in [(FloatDType::F64, 1e-10), (FloatDType::F32, 1e-4)] {
            let found = Pair::of_plan(plan.clone(), dtype, seed).difference();
            assert!(
                found < tolerance,
                "{:?} to {:?}: {found:e}",
                plan.from,
                plan.to
            );
        }
    }
}

#[test]
fn random_growths_of_rwkv7_lose_nothing() {
    lose_nothing(|seed| {
        let (from, to) = random_plan(seed);
        plan(&from, &to, Method::Lossless)
    });
}

#[test]
fn random_growths_of_meta_state_with_any_options_lose_nothing() {
    lose_nothing(|seed| {
        let (from, to) = random_plan(seed);
        let [mixer, larger] = random_mixer(seed);
        exact_part(&from.with_ffn(mixer), to.with_ffn(larger))
    });
}

/// The layer norm of `top-left` has n channels a head, whatever the head size is.
#[test]
fn a_norm_of_the_first_channels_grows_by_its_own_size() {
    for n in [5, 8] {
        for (head_size, heads, norm_prefix) in [(8, 3, None), (11, 2, Some(8)), (11, 4, Some(8))] {
            let mixer = MetaStateConfig {
                sse: Sse::TopLeft(n),
                norm_affine: true,
                ..MetaStateConfig::practical()
            };
            let from = base(2, 2).with_ffn(mixer);
            let to = Rwkv7Config {
                head_size,
                n_embd: head_size * heads,
                norm_prefix,
                ..from.clone()
            };
            let plan = plan(&from, &to, Method::Lossless).exact().unwrap();
            let found = Pair::of_plan(plan, FloatDType::F64, 1).difference();
            assert!(
                found < 1e-10,
                "n = {n} to {heads} heads of {head_size}: {found:e}"
            );
        }
    }
}

/// Their standard deviation is infinite in f32, and any difference is small beside that.
#[test]
fn logits_whose_squares_are_too_large_are_never_lossless() {
    let device = Device::default();
    let logits = |size: f32| Tensor::<3>::from_floats([[[size, -size]]], &device);
    assert!(Difference::of(logits(1.0), logits(1.0)).is_lossless());
    assert!(!Difference::of(logits(1e30), logits(2e30)).is_lossless());
}

/// A new head reads rounding errors. `l2` would make them as long as every other z.
#[test]
fn new_heads_of_l2_need_a_w_oms_of_their_own() {
    let l2 = |oms| MetaStateConfig {
        oms,
        scale: Scale::L2,
        ..MetaStateConfig::paper()
    };
    let from = base(2, 2).with_ffn(l2(Oms::Shared));
    let shared = base(2, 3).with_ffn(l2(Oms::Shared));
    let refused = plan(&from, &shared, Method::Lossless).exact().unwrap_err();
    let message = refused.to_string();
    assert!(
        message.contains("W_oms") && message.contains("per-head"),
        "{message}"
    );
    let deeper = base(4, 2).with_ffn(l2(Oms::Shared));
    let own = base(4, 3).with_ffn(l2(Oms::PerHead));
    for to in [deeper, own] {
        let plan = plan(&from, &to, Method::Lossless).exact().unwrap();
        let found = Pair::of_plan(plan, FloatDType::F32, 1).difference();
        assert!(found < 1e-4, "{found:e}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_never_written() {
    let config = base(1, 2);
    let plan = plan(&config, &base(1, 3), Method::Lossless);
    let device = Device::default();
    let refused = |value: f32, dtype: DType| -> String {
        let mut model = config.init_seeded(&device, 1);
        model.head.weight = model
            .head
            .weight
            .map(|weight| weight.mul_scalar(0.0).add_scalar(value));
        let source = Checkpoint::of_model(&config, &model);
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("x.safetensors");
        let growth = Growth::new(&plan).dtype(Some(dtype));
        let error = growth.run(source, &output).unwrap_err();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        assert!(matches!(error, ScalingError::NotFinite { .. }), "{error}");
        error.to_string()
    };
    let large = refused(7e4, DType::F16);
    assert!(
        large.contains("head.weight") && large.contains("f16") && large.contains("too large"),
        "{large}"
    );
    for value in [f32::NAN, f32::INFINITY] {
        let damaged = refused(value, DType::F32);
        assert!(
            damaged.contains("head.weight") && damaged.contains("diverged"),
            "{damaged}"
        );
    }
}

#[test]
fn growth_by_nothing_is_the_identity() {
    fn check<S: Growable>(config: &Rwkv7Config<S>) {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
        let model = shaken(config.init(&Device::default()), 0, FloatDType::F32);
        checkpoint::save(&a, config, &model, Format::Official, None).unwrap();
        let plan = Plan::new(config, config, Method::Lossless, Embedding::Lift).unwrap();
        let source = Checkpoint::open(&a).unwrap();
        Growth::new(&plan).run(source, &b).unwrap();
        let read = |path| Checkpoint::open(path).unwrap().read_all().unwrap();
        assert_eq!(read(&a), read(&b));
    }
    check(&base(2, 2));
    for mixer in mixers() {
        check(&base(2, 2).with_ffn(mixer));
    }
}

#[test]
fn growth_in_two_stages_loses_nothing() {
    fn check<S: Growable>(stages: [Rwkv7Config<S>; 3]) {
        let device = Device::default();
        let folder = tempfile::tempdir().unwrap();
        let file = |i: usize| folder.path().join(format!("{i}.safetensors"));
        let small = shaken(stages[0].init(&device), 0, FloatDType::F64);
        checkpoint::save(&file(0), &stages[0], &small, Format::Official, None).unwrap();
        for (i, target) in stages.iter().enumerate().skip(1) {
            let source = Checkpoint::open(&file(i - 1)).unwrap();
            let from: Rwkv7Config<S> = source.config().unwrap();
            let plan = Plan::new(&from, target, Method::Lossless, Embedding::Lift).unwrap();
            Growth::new(&plan).run(source, &file(i)).unwrap();
        }
        let last = Checkpoint::open(&file(2)).unwrap();
        let config: Rwkv7Config<S> = last.config().unwrap();
        assert_eq!((config.n_embd, config.embed_width), (40, Some(16)));
        let large = last.into_model(&config, &device, FloatDType::F64).unwrap();
        let [found, expected] =
            [&large, &small].map(|model| values(model.forward(row(&TOKENS), None).0));
        assert!(difference(&found, &expected) < 1e-10);
    }
    let stages = [base(1, 2), base(2, 3), base(4, 5)];
    for mixer in mixers() {
        check(stages.each_ref().map(|stage| stage.with_ffn(mixer.clone())));
    }
    check(stages);
}

#[test]
fn stacking_changes_the_outputs() {
    let (from, to) = (base(2, 2), base(4, 2));
    let pair = Pair::new(&from, &to, Method::Stack, FloatDType::F64, 1);
    assert_eq!(pair.plan.blocks, [Some(0), Some(1), Some(0), Some(1)]);
    assert!(pair.difference() > 0.1);
}

#[test]
fn what_cannot_grow_is_refused_with_the_reason() {
    let from = base(2, 2);
    let refused = |to: Rwkv7Config| -> ScalingError {
        Plan::new(&from, &to, Method::Lossless, Embedding::Lift).unwrap_err()
    };
    let error = refused(base(1, 2)).to_string();
    assert_eq!(
        error,
        "`n_layer` is 2 in the model and 1 in the target; a model can only grow"
    );
    let error = refused(Rwkv7Config {
        head_size: 4,
        ..from.clone()
    })
    .to_string();
    assert!(
        error.contains("head_size") && error.contains("other slices"),
        "{error}"
    );
    let error = refused(Rwkv7Config {
        n_embd: 20,
        ..from.clone()
    })
    .to_string();
    assert!(
        error.contains("n_embd") && error.contains("head_size = 8"),
        "{error}"
    );
    let paper = from.with_ffn(MetaStateConfig::paper());
    let practical = from.with_ffn(MetaStateConfig::practical());
    let error = Plan::new(&paper, &practical, Method::Lossless, Embedding::Lift)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Shared") && error.contains("PerHead"),
        "{error}"
    );
}

#[test]
fn a_plan_says_what_becomes_of_every_tensor() {
    let plan = Plan::new(&base(1, 2), &base(2, 3), Method::Lossless, Embedding::Lift).unwrap();
    let text = plan.to_string();
    for line in [
        "blocks.0.att.output.weight [16, 16] -> [24, 24]: old entries times 1.224745, 8 new along axis 0: the mean of the \
         old ones, 8 new along axis 1: zero",
        "blocks.0.lift.weight [24, 16]: the embedding's width to the model's",
        "blocks.1.ffn.key.weight [21, 24]: initial values",
        "emb.weight [17, 16] -> [17, 16]: old entries",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

/// AdamW without weight decay moves only what gets a gradient.
#[test]
fn every_new_part_of_every_tensor_learns_within_two_steps() {
    use burn::optim::GradientsParams;
    use rwkv7_core::{loss, optimizer::OptimizerConfig};
    fn check<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>) {
        let device = Device::default().autodiff();
        let pair = Pair::new(from, to, Method::Lossless, FloatDType::F32, 3);
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
        let config = &pair.plan.to;
        checkpoint::save(&a, config, &pair.large, Format::Official, None).unwrap();
        let mut model = Checkpoint::open(&a)
            .unwrap()
            .into_model(config, &device, FloatDType::F32)
            .unwrap();
        let mut optimizer = OptimizerConfig {
            weight_decay: 0.0,
            ..OptimizerConfig::default()
        }
        .init();
        let row = |from: usize| -> Tensor<2, Int> {
            let tokens = TOKENS[from..from + 18].to_vec();
            Tensor::from_data(TensorData::new(tokens, [1, 18]), &device)
        };
        for _ in 0..2 {
            let (logits, _) = model.forward(row(0), None);
            let loss = loss::cross_entropy(logits, row(1), None);
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-3, model, grads);
        }
        checkpoint::save(&b, config, &model, Format::Official, None).unwrap();
        let after = Checkpoint::open(&b).unwrap().read_all().unwrap();
        let before = Checkpoint::open(&a).unwrap().read_all().unwrap();
        for step in &pair.plan.steps {
            // Of the embedding only the rows of the tokens read.
            if step.name == "emb.weight" {
                continue;
            }
            let values = |data: &TensorData| data.iter::<f32>().collect::<Vec<_>>();
            let (before, after) = (values(&before[&step.name]), values(&after[&step.name]));
            let (mut new, mut moved) = (0, 0);
            for ((a, b), old) in before.iter().zip(&after).zip(step.old_entries()) {
                if !old {
                    new += 1;
                    moved += usize::from(a != b);
                }
            }
            assert!(
                2 * moved >= new,
                "{}: {moved} of {new} new entries",
                step.name
            );
        }
    }
    let (from, to) = (base(2, 2), base(3, 4));
    let to = Rwkv7Config {
        decay_rank: 7,
        in_context_rank: 5,
        value_rank: 8,
        gate_rank: 6,
        ffn: ChannelMixConfig { ffn_size: 40 },
        ..to
    };
    check(&from, &to);
    let copies = Rwkv7Config {
        head_size: 16,
        n_embd: 48,
        ..from.clone()
    };
    let others = Rwkv7Config {
        head_size: 11,
        n_embd: 33,
        norm_prefix: Some(8),
        ..from.clone()
    };
    check(&from, &copies);
    check(&from, &others);
    let mixer = MetaStateConfig::practical();
    for larger in [copies, others] {
        check(
            &from.with_ffn(mixer.clone()),
            &larger.with_ffn(mixer.clone()),
        );
    }
    for mixer in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
        check(&from.with_ffn(mixer.clone()), &to.with_ffn(mixer));
    }
}

/// Three changes that look like growth and are not exact.
#[test]
fn the_naive_ways_change_the_outputs() {
    let (from, to) = (base(2, 2), base(2, 3));
    let pair = Pair::new(&from, &to, Method::Lossless, FloatDType::F64, 5);
    let expected = values(pair.small.forward(row(&TOKENS), None).0);
    let logits = |model: &Rwkv7<rwkv7_core::layers::ChannelMix>| {
        difference(&values(model.forward(row(&TOKENS), None).0), &expected)
    };
    assert!(logits(&pair.large) < 1e-10);

    // New channels of the lifted embedding zero instead of the mean.
    let mut naive = pair.large.clone();
    let lift = naive.blocks[0].lift.as_mut().unwrap();
    lift.weight = lift.weight.clone().map(|w| {
        let [width, new] = w.dims();
        let zeros = Tensor::zeros([width, new - 16], (&w.device(), w.dtype()));
        Tensor::cat(vec![w.narrow(1, 0, 16), zeros], 1)
    });
    assert!(logits(&naive) > 0.01);

    // Layer norms as they were.
    let mut naive = pair.large.clone();
    for block in &mut naive.blocks {
        block.ln1.gamma = block.ln1.gamma.clone().map(|w| w * pair.plan.scale());
    }
    assert!(logits(&naive) > 0.01);

    // New heads that write at once.
    let mut naive = pair.large;
    for block in &mut naive.blocks {
        block.att.output.weight = block
            .att
            .output
            .weight
            .clone()
            .map(|w| w.clone() + w.flip([0, 1]) * 0.1);
    }
    assert!(logits(&naive) > 0.01);
}
