//! The whole model against itself: forward, step and any split; padding; causality; state files.

use burn::tensor::DType;
use rwkv7_core::{
    State,
    checkpoint::{self, Checkpoint, Format, ModelMetadata},
    loss,
    state::StateError,
};

use super::*;
use crate::{MetaStateLm, MetaStateState};

const TOKENS: [i32; 21] = [
    3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6,
];
const VOCAB: usize = 29;

fn model(mixer: &MetaStateConfig, device: &Device) -> MetaStateLm {
    shaken(small(mixer).init(device), 0.2, FloatDType::F32)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter().collect()
}

fn assert_same_state(found: &State<MetaStateState>, expected: &State<MetaStateState>, what: &str) {
    let (found, expected) = (found.named(), expected.named());
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
        let floats = |data: TensorData| data.iter::<f64>().collect::<Vec<_>>();
        let d = difference(&floats(found), &floats(expected));
        assert!(
            d < 1e-4,
            "{what}: {name} differs by {d:e} of its largest value"
        );
    }
}

#[test]
fn step_and_any_split_give_the_logits_of_forward() {
    let device = Device::default();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let (whole, last) = model.forward(row(&TOKENS, &device), None);
        let whole = values(whole);
        let mut state = model.zero_state(1, &device);
        let mut stepped = Vec::new();
        for token in TOKENS {
            let (logits, next) = model.step(Tensor::from_data([token], &device), state);
            stepped.extend(values(logits));
            state = next;
        }
        assert!(difference(&stepped, &whole) < 1e-4, "{name}");
        assert_same_state(&state, &last, name);
        for at in [1, 7, 16, 20] {
            let (first, state) = model.forward(row(&TOKENS[..at], &device), None);
            let (second, state) = model.forward(row(&TOKENS[at..], &device), Some(state));
            let split = [values(first), values(second)].concat();
            let d = difference(&split, &whole);
            assert!(d < 1e-4, "{name}, split at {at}: {d:e}");
            assert_same_state(&state, &last, name);
        }
    }
}

/// One row of a state of several.
fn one(state: &State<MetaStateState>, row: usize) -> State<MetaStateState> {
    let layers = state.layers.iter().map(|layer| {
        let mut layer = layer.clone();
        layer.att.shift = layer.att.shift.narrow(0, row, 1);
        layer.att.wkv = layer.att.wkv.narrow(0, row, 1);
        layer.ffn.ms = layer.ffn.ms.narrow(0, row, 1);
        layer.ffn.shift = layer.ffn.shift.map(|x| x.narrow(0, row, 1));
        layer
    });
    State {
        layers: layers.collect(),
    }
}

#[test]
fn padding_changes_nobodys_result() {
    let device = Device::default();
    let lengths = [5, 0, 21, 1, 17];
    let rows = lengths.len();
    let mut batch = Vec::new();
    for length in lengths {
        batch.extend_from_slice(&TOKENS[..length]);
        batch.extend(std::iter::repeat_n(7, TOKENS.len() - length));
    }
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        // Everybody carries a state in, so that an empty row has something to keep.
        let three = Tensor::from_data([[2, 7, 1]], &device).repeat_dim(0, rows);
        let (_, carried) = model.forward(three, None);
        let tokens = Tensor::from_data(
            TensorData::new(batch.clone(), [rows, TOKENS.len()]),
            &device,
        );
        let (logits, state) = model.forward_ragged(tokens, &lengths, Some(carried.clone()));
        for (i, length) in lengths.into_iter().enumerate() {
            let (mine, before) = (one(&state, i), one(&carried, i));
            if length == 0 {
                assert_same_state(&mine, &before, name);
                continue;
            }
            let (alone, expected) = model.forward(row(&TOKENS[..length], &device), Some(before));
            let found = logits.clone().slice([i..i + 1, 0..length, 0..VOCAB]);
            let d = difference(&values(found), &values(alone));
            assert!(d < 1e-4, "{name}, row of {length}: {d:e}");
            assert_same_state(&mine, &expected, name);
        }
    }
}

/// Alone, with a state carried in, and in a ragged batch, whose other rows do not change at all.
#[test]
fn a_later_token_changes_no_earlier_logit() {
    let device = Device::default();
    let at = 13;
    let mut changed = TOKENS;
    changed[at] = 0;
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let (_, carried) = model.forward(row(&[2, 7, 1], &device), None);
        for start in [None, Some(carried)] {
            let logits = |tokens| values(model.forward(row(tokens, &device), start.clone()).0);
            let (before, after) = (logits(&TOKENS), logits(&changed));
            assert_eq!(before[..at * VOCAB], after[..at * VOCAB], "{name}");
            let now = at * VOCAB..(at + 1) * VOCAB;
            assert_ne!(before[now.clone()], after[now], "{name}");
        }
        let ragged = |second: &[i32]| {
            let rows = [&TOKENS[..], second].concat();
            let tokens = Tensor::from_data(TensorData::new(rows, [2, TOKENS.len()]), &device);
            let (logits, _) = model.forward_ragged(tokens, &[TOKENS.len(), 17], None);
            values(logits)
        };
        let (before, after) = (ragged(&TOKENS), ragged(&changed));
        let same = (TOKENS.len() + at) * VOCAB;
        assert_eq!(before[..same], after[..same], "{name}");
        let now = same..same + VOCAB;
        assert_ne!(before[now.clone()], after[now], "{name}");
    }
}

/// How much of a gradient each token's embedding has.
fn embedding_gradients(model: &MetaStateLm, loss: Tensor<1>) -> Vec<f64> {
    let grads = loss.backward();
    let grad = values(model.emb.weight.val().grad(&grads).unwrap());
    let sum = |row: &[f64]| row.iter().map(|x| x.abs()).sum();
    grad.chunks(16).map(sum).collect()
}

/// Every id once, so that an id's gradient is that of its place.
const ASCENDING: [i32; 20] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
];

/// The loss of the first tokens gives no gradient to the embedding of a token that comes later.
#[test]
fn no_gradient_flows_to_a_later_token() {
    let device = Device::default().autodiff();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let (logits, _) = model.forward(row(&ASCENDING, &device), None);
        let early = logits.narrow(1, 0, 12);
        let loss = loss::cross_entropy(early, row(&ASCENDING[1..13], &device), None);
        let of = embedding_gradients(&model, loss);
        assert!((1..=12).all(|id| of[id] > 0.0), "{name}");
        assert!((13..=20).all(|id| of[id] == 0.0), "{name}");
    }
}

/// A ragged row's loss gives none to padding and none to other rows.
#[test]
fn no_gradient_flows_to_padding_or_to_another_row() {
    let device = Device::default().autodiff();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        // Row 0 is 11..=20; row 1 is 1..=6 and padding of 28.
        let rows = [&ASCENDING[10..], &ASCENDING[..6], &[28; 4]].concat();
        let tokens = Tensor::from_data(TensorData::new(rows, [2, 10]), &device);
        let (logits, state) = model.forward_ragged(tokens, &[10, 6], None);
        let mine = logits.slice([1..2, 0..6, 0..VOCAB]);
        let last = state.layers[2].ffn.ms.clone().narrow(0, 1, 1);
        let loss = loss::cross_entropy(mine, row(&ASCENDING[1..7], &device), None) + last.sum();
        let of = embedding_gradients(&model, loss);
        assert!((1..=6).all(|id| of[id] > 0.0), "{name}");
        assert!((11..=20).all(|id| of[id] == 0.0), "{name}");
        assert_eq!(of[28], 0.0, "{name}");
    }
}

/// Through a state that is carried over, and not through one that was detached.
#[test]
fn gradients_flow_through_a_carried_state_until_it_is_detached() {
    let device = Device::default().autodiff();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        for detached in [false, true] {
            let (_, state) = model.forward(row(&ASCENDING[..10], &device), None);
            let state = if detached { state.detach() } else { state };
            let (logits, _) = model.forward(row(&ASCENDING[10..], &device), Some(state));
            let targets = row(&ASCENDING[..10], &device);
            let of = embedding_gradients(&model, loss::cross_entropy(logits, targets, None));
            assert!((11..=20).all(|id| of[id] > 0.0), "{name}");
            assert!((1..=10).all(|id| (of[id] == 0.0) == detached), "{name}");
        }
    }
}

/// Training step by step is training on the whole sequence.
#[test]
fn gradients_through_steps_are_those_of_forward() {
    let device = Device::default().autodiff();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let target = |id: i32| row(&[id + 1], &device);
        let (logits, _) = model.forward(row(&ASCENDING, &device), None);
        let targets: Vec<i32> = ASCENDING.iter().map(|id| id + 1).collect();
        let whole = loss::cross_entropy(logits, row(&targets, &device), None);
        let expected = embedding_gradients(&model, whole);

        let mut state = model.zero_state(1, &device);
        let mut sum = Tensor::zeros([1], &device);
        for id in ASCENDING {
            let (logits, next) = model.step(Tensor::from_data([id], &device), state);
            state = next;
            sum = sum + loss::cross_entropy(logits.unsqueeze_dim(1), target(id), None);
        }
        let found = embedding_gradients(&model, sum / ASCENDING.len() as f32);
        let d = difference(&found, &expected);
        assert!(d < 1e-3, "{name}: {d:e}");
    }
}

/// Half-precision parameters: the state is f32 all the same, and the logits are near those in f32.
#[test]
fn a_model_in_half_precision_keeps_its_state_in_f32() {
    let device = Device::default();
    for (name, mixer) in variants() {
        let coarse = shaken(small(&mixer).init(&device), 0.2, FloatDType::BF16);
        // The same values in f32.
        let exact = shaken(coarse.clone(), 0.0, FloatDType::F32);
        let (found, state) = coarse.forward(row(&TOKENS, &device), None);
        let (expected, _) = exact.forward(row(&TOKENS, &device), None);
        assert_eq!(found.dtype(), DType::BF16, "{name}");
        for layer in &state.layers {
            assert_eq!(layer.att.wkv.dtype(), DType::F32, "{name}");
            assert_eq!(layer.ffn.ms.dtype(), DType::F32, "{name}");
        }
        // Weights of 8 bits, under a layer norm that is steep.
        let d = difference(&values(found.cast(FloatDType::F32)), &values(expected));
        assert!(d < 0.3, "{name}: {d:e}");
    }
}

#[test]
#[should_panic(expected = "the layer has token shift, the state has no `ms.shift`")]
fn a_state_without_the_layers_shift_is_refused() {
    let device = Device::default();
    let mixer = MetaStateConfig::practical();
    let shifted = MetaStateConfig {
        token_shift: true,
        ..mixer.clone()
    };
    let state = model(&mixer, &device).zero_state(1, &device);
    model(&shifted, &device).forward(row(&TOKENS, &device), Some(state));
}

#[test]
fn every_parameter_gets_a_gradient() {
    use burn::{module::ModuleVisitor, tensor::Gradients};
    struct Check<'a>(&'a Gradients, &'a str);
    impl ModuleVisitor for Check<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = param.val().grad(self.0).expect("a gradient");
            assert!(grad.abs().sum().into_scalar::<f32>() > 0.0, "{}", self.1);
        }
    }
    let device = Device::default().autodiff();
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let (logits, _) = model.forward(row(&TOKENS, &device), None);
        let grads = loss::cross_entropy(logits, row(&TOKENS, &device), None).backward();
        model.visit(&mut Check(&grads, name));
    }
}

#[test]
fn a_new_layer_adds_nothing() {
    let device = Device::default();
    for (name, mixer) in variants() {
        let model = small(&mixer).init(&device);
        let (_, state) = model.forward(row(&TOKENS, &device), None);
        let layer = &state.layers[2].ffn;
        assert!(
            layer.ms.clone().abs().sum().into_scalar::<f32>() > 0.0,
            "{name}"
        );
        let out = model.blocks[2].ffn.W_oms.val().abs().sum();
        assert_eq!(out.into_scalar::<f32>(), 0.0, "{name}");
    }
}

#[test]
fn a_state_is_saved_and_another_models_state_is_refused() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.safetensors");
    let mixer = MetaStateConfig {
        token_shift: true,
        ..MetaStateConfig::practical()
    };
    let mine = model(&mixer, &device);
    let (_, state) = mine.forward(row(&TOKENS, &device), None);
    state.save(&file, &small(&mixer), None).unwrap();
    let again = mine.zero_state(1, &device).load(&file, &small(&mixer));
    assert_same_state(&again.unwrap().0, &state, "loaded");

    let refused = |mixer: &MetaStateConfig| -> StateError {
        let config = small(mixer);
        let other = config.init(&device).zero_state(1, &device);
        other.load(&file, &config).unwrap_err()
    };
    // Of the same shapes.
    let literal = MetaStateConfig {
        token_shift: true,
        ..MetaStateConfig::paper()
    };
    let error = refused(&literal).to_string();
    for named in [r#""side":"key""#, r#""side":"value""#, "ffn"] {
        assert!(error.contains(named), "{error}");
    }
    let error = refused(&MetaStateConfig::practical()).to_string();
    assert!(error.contains("token_shift"), "{error}");
    let rwkv7 = Rwkv7Config {
        head_size: 8,
        ..Rwkv7Config::new(VOCAB, 3, 16)
    };
    let state = rwkv7.init(&device).zero_state(1, &device);
    let error = state.load(&file, &rwkv7).unwrap_err().to_string();
    assert!(
        error.contains("`architecture` is meta-state, this model's is rwkv7"),
        "{error}"
    );
}

/// AdamW with gradients of zero changes only what has weight decay.
#[test]
fn weight_decay_reaches_the_layers_matrices_and_no_other_of_its_tensors() {
    use burn::{
        module::ModuleVisitor,
        optim::{GradientsParams, LearningRate},
    };
    use rwkv7_core::optimizer::OptimizerConfig;
    struct Values {
        zeros: GradientsParams,
        path: Vec<String>,
        found: Vec<(String, f32)>,
    }
    impl ModuleVisitor for Values {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            self.zeros.register(param.id, value.zeros_like());
            let sum = value.abs().sum().into_scalar::<f32>();
            self.found.push((self.path.join("."), sum));
        }
    }
    let values = |model: &MetaStateLm| {
        let mut values = Values {
            zeros: GradientsParams::new(),
            path: Vec::new(),
            found: Vec::new(),
        };
        model.visit(&mut values);
        values
    };
    let device = Device::default().autodiff();
    let rate: LearningRate = 0.1;
    for (name, mixer) in variants() {
        let model = model(&mixer, &device);
        let before = values(&model);
        let model = OptimizerConfig::default()
            .init()
            .step(rate, model, before.zeros);
        let mut shrunk = Vec::new();
        for ((path, before), (_, after)) in before.found.into_iter().zip(values(&model).found) {
            let Some(tensor) = path.strip_prefix("blocks.0.ffn.") else {
                continue;
            };
            if (after - before).abs() > 1e-4 * before {
                shrunk.push(tensor.to_string());
            }
        }
        let expected: &[&str] = match mixer.sse {
            Sse::Learned => &["W_sse", "W_oms"],
            Sse::Projected => &["W_in", "W_oms"],
            _ => &["W_oms"],
        };
        assert_eq!(shrunk, expected, "{name}");
    }
}

/// A record that is written as a checkpoint is a record of the Burn module, and Burn's own record is a checkpoint.
#[test]
fn burn_loads_records() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::default();
    for (name, mixer) in variants() {
        let (config, model) = (small(&mixer), model(&mixer, &device));
        let expected = model.forward(row(&TOKENS, &device), None).0.into_data();
        let file = folder.path().join("model.bpk");
        checkpoint::save(&file, &config, &model, Format::Burn, None).unwrap();
        let loaded = config.init(&device).load_file(&file);
        let found = loaded.forward(row(&TOKENS, &device), None).0.into_data();
        assert_eq!(found, expected, "{name}");

        loaded.save_file(&file).unwrap();
        let (_, loaded) = Checkpoint::open(&file)
            .unwrap()
            .with_metadata(ModelMetadata::new(&config))
            .load::<MetaStateConfig>(&device)
            .unwrap();
        let found = loaded.forward(row(&TOKENS, &device), None).0.into_data();
        assert_eq!(found, expected, "{name}");
    }
}
