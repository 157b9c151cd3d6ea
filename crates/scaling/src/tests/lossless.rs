//! Lossless growth, the plan in words, refusals, and gradients of new entries.

use super::*;
use crate::{ScalingError, plan::heads};

#[test]
fn two_hundred_random_growths_lose_nothing() {
    for seed in 0..100 {
        let (from, to) = random_plan(seed);
        for (dtype, tolerance) in [(FloatDType::F64, 1e-10), (FloatDType::F32, 1e-4)] {
            let rwkv7 = Pair::new(&from, &to, Method::Lossless, dtype, seed).difference();
            assert!(rwkv7 < tolerance, "{from:?} to {to:?}: {rwkv7:e}");
            let mixers = mixers();
            let mixer = &mixers[seed as usize % mixers.len()];
            let (from, mut to) = (from.with_ffn(mixer.clone()), to.with_ffn(mixer.clone()));
            if mixer.obstacle(heads(&from, &to)).is_some() {
                to.n_embd = to.n_head() * from.head_size;
                to.head_size = from.head_size;
                to.norm_prefix = None;
            }
            let found = Pair::new(&from, &to, Method::Lossless, dtype, seed).difference();
            assert!(found < tolerance, "{from:?} to {to:?}: {found:e}");
        }
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
