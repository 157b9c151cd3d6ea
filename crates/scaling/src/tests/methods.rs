//! Larger heads, paired channels, the methods that change the outputs, the optimizer's state, waking up.

use burn::optim::{GradientsParams, ModuleOptimizer};
use rwkv7_core::{loss, optimizer::OptimizerConfig};

use super::*;
use crate::{Difference, grow_model, grow_optimizer};

fn plan<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>, method: Method) -> Plan<S> {
    Plan::new(from, to, method, Embedding::Lift).unwrap()
}

#[test]
fn paired_channels_lose_nothing_and_need_no_new_tensor() {
    for seed in 0..20 {
        let (from, to) = random_plan(seed);
        let to = Rwkv7Config {
            n_embd: to.n_embd + to.head_size,
            ..to
        };
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
        error.contains("att.ln_x") && error.contains("by 2 or 4"),
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
    for half in halves() {
        let [from, to] = [&from, &to].map(|config| config.with_ffn(half.clone()));
        let possible = plan(&from, &to, Method::Lossless).exact().is_ok();
        let refused = matches!(half.sse, Sse::TopLeft(_)) || half.scale == Scale::L2;
        assert_eq!(possible, !refused, "{half:?}");
    }
    let fewer = Rwkv7Config {
        head_size: 16,
        ..from.clone()
    };
    let error = Plan::new(&from, &fewer, Method::Lossless, Embedding::Lift).unwrap_err();
    assert!(error.to_string().contains("number of heads"), "{error}");
}

/// Reference B.5: the literal recipe moves the logits by several standard deviations.
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
        for half in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
            let [from, to] = [&from, &to].map(|config| config.with_ffn(half.clone()));
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

/// A batch's gradient on a model that is being trained.
fn step<S: Growable>(
    model: Rwkv7<S::Layer>,
    optimizer: &mut ModuleOptimizer,
    device: &Device,
) -> Rwkv7<S::Layer> {
    let row = |from: usize| -> Tensor<2, Int> {
        let tokens = TOKENS[from..from + 18].to_vec();
        Tensor::from_data(TensorData::new(tokens, [1, 18]), device)
    };
    let (logits, _) = model.forward(row(0), None);
    let loss = loss::cross_entropy(logits, row(1), None);
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    optimizer.step(1e-3, model, grads)
}

/// The moments of the parameter with this official name.
fn moments<S: Growable>(
    model: &Rwkv7<S::Layer>,
    optimizer: &ModuleOptimizer,
    name: &str,
) -> [Option<TensorData>; 2] {
    use burn_store::{bridge, burn_pack::Reader};
    let parameters = checkpoint::parameters(model);
    let id = parameters.iter().find(|p| p.name == name).unwrap().id;
    let reader = Reader::from_bytes(optimizer.into_bytes().unwrap()).unwrap();
    let tensors = reader.into_tensors().unwrap();
    ["moment_1", "moment_2"].map(|moment| {
        let name = format!("{}.momentum.{moment}", id.val());
        let tensor = tensors.iter().find(|tensor| tensor.name == name);
        tensor.map(|tensor| bridge::to_data(tensor).unwrap())
    })
}

#[test]
fn adams_moments_grow_with_the_parameters() {
    fn check<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>, writer: &str) {
        let device = Device::default().autodiff();
        let mut optimizer = OptimizerConfig::default().init();
        let start = shaken(from.init_seeded(&Device::default(), 1), 1, FloatDType::F32);
        let start = Checkpoint::of_model(from, &start);
        let mut small = start.into_model(from, &device, FloatDType::F32).unwrap();
        for _ in 0..3 {
            small = step::<S>(small, &mut optimizer, &device);
        }
        let plan = plan(from, to, Method::Lossless);
        let mut large = grow_model(&small, &plan, &device, 0).unwrap();
        let record = grow_optimizer(&plan, &small, &large, optimizer.to_record()).unwrap();
        let mut grown = OptimizerConfig::default().init().load_record(record);

        let scale = plan.scale() as f32;
        for (name, scale) in [(writer, scale), ("blocks.0.ln1.weight", 1.0 / scale)] {
            let old = moments::<S>(&small, &optimizer, name);
            let new = moments::<S>(&large, &grown, name);
            for (order, (old, new)) in (1..).zip(old.into_iter().zip(new)) {
                let (old, new) = (old.unwrap(), new.unwrap());
                let rows = |data: &TensorData| *data.shape().first().unwrap();
                let [columns, wide] = [&old, &new].map(|data| data.num_elements() / rows(data));
                let (a, b): (Vec<f32>, Vec<f32>) = (old.iter().collect(), new.iter().collect());
                for (i, b) in b.iter().enumerate() {
                    let (row, column) = (i / wide, i % wide);
                    let expected = match row < rows(&old) && column < columns {
                        true => a[row * columns + column] / f32::powi(scale, order),
                        false => 0.0,
                    };
                    assert!((b - expected).abs() <= 1e-6 * expected.abs(), "{name}");
                }
            }
        }
        // A block that is new starts at its own step 0.
        assert_eq!(plan.blocks, [Some(0), None]);
        let none = moments::<S>(&large, &grown, "blocks.1.att.key.weight");
        assert!(none.iter().all(Option::is_none));
        large = step::<S>(large, &mut grown, &device);
        let some = moments::<S>(&large, &grown, "blocks.1.ln1.weight");
        assert!(some.iter().all(Option::is_some));

        // A head that becomes two shares the gradients of what indexes it, and not those of what sums over it.
        let wide = Rwkv7Config {
            head_size: 2 * from.head_size,
            n_embd: 2 * from.n_embd,
            ..from.clone()
        };
        let copies = super::methods::plan(from, &wide, Method::Lossless);
        let twice = grow_model(&small, &copies, &device, 0).unwrap();
        let record = grow_optimizer(&copies, &small, &twice, optimizer.to_record()).unwrap();
        let shared = OptimizerConfig::default().init().load_record(record);
        let name = "blocks.0.att.ln_x.weight";
        let [old, new] = [
            moments::<S>(&small, &optimizer, name),
            moments::<S>(&twice, &shared, name),
        ];
        for (order, (old, new)) in (1..).zip(old.into_iter().zip(new)) {
            let (old, new) = (old.unwrap(), new.unwrap());
            let (old, new): (Vec<f32>, Vec<f32>) = (old.iter().collect(), new.iter().collect());
            for (i, found) in new.iter().enumerate() {
                let (head, channel) = (i / 16, i % 16);
                let share: f32 = [2.0 / 3.0, 1.0 / 3.0][channel / 8];
                let expected = old[8 * head + channel % 8] * share.powi(order);
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{name}");
            }
        }

        let other = from.init_seeded(&device, 1);
        let error = grow_optimizer(&plan, &other, &large, optimizer.to_record()).unwrap_err();
        assert!(
            error.to_string().contains("not that of this model"),
            "{error}"
        );
    }
    let (from, to) = (base(1, 2), base(2, 3));
    check(&from, &to, "blocks.0.att.output.weight");
    let half = MetaStateConfig::practical();
    check(
        &from.with_ffn(half.clone()),
        &to.with_ffn(half),
        "blocks.0.att.output.weight",
    );
}

/// Reference B.4: new heads of a Meta-State model must stay quiet when they wake up, not only before. With a W_oms for each
/// head, zero for new ones, they do; one W_oms for all heads lets a new head write through trained weights at once.
#[test]
fn new_heads_that_wake_up_disturb_little() {
    fn disturbance<S: Growable>(half: &S, noise: f64) -> f64 {
        let shape = |layers, heads: usize| {
            let config = Rwkv7Config {
                head_size: 16,
                n_embd: 16 * heads,
                ..base(layers, heads)
            };
            config.with_ffn(half.clone())
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
    // What the same noise does to RWKV-7 is the measure: in the reference the safe variant stays below it.
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
    for (seed, shared) in (0..10).zip(halves().into_iter().cycle()) {
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
