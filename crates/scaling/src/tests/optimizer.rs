//! Adam's moments.

use burn::optim::{GradientsParams, ModuleOptimizer};
use rwkv7_core::{loss, optimizer::OptimizerConfig};

use super::*;
use crate::{grow_model, grow_optimizer};

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
    /// `same` names tensors that keep the size of their old entries.
    fn check<S: Growable>(from: &Rwkv7Config<S>, to: &Rwkv7Config<S>, same: &[&str]) {
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
        let scaled = [
            ("blocks.0.att.output.weight", scale),
            ("blocks.0.ln1.weight", 1.0 / scale),
        ];
        let same = same.iter().map(|name| (*name, 1.0));
        for (name, scale) in scaled.into_iter().chain(same) {
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
        let copies = super::plan(from, &wide, Method::Lossless);
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
    check(&from, &to, &[]);
    let first = MetaStateConfig {
        sse: Sse::TopLeft(5),
        norm_affine: true,
        ..MetaStateConfig::practical()
    };
    let norm = ["blocks.0.ms.ln.weight", "blocks.0.ms.ln.bias"];
    for (mixer, same) in [(MetaStateConfig::practical(), &[][..]), (first, &norm)] {
        check(&from.with_ffn(mixer.clone()), &to.with_ffn(mixer), same);
    }
}
