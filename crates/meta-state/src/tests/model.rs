//! The whole model against itself: forward, step and any split; padding; causality; state files.

use burn::tensor::Int;
use rwkv7_core::{State, loss, state::StateError};

use super::*;
use crate::{MetaStateLm, MetaStateState};

const TOKENS: [i32; 21] = [
    3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6,
];
const VOCAB: usize = 29;

fn model(half: &MetaStateConfig, device: &Device) -> MetaStateLm {
    shaken(small(half).init(device, 0), 0.2, FloatDType::F32)
}

fn row(tokens: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(tokens.to_vec(), [1, tokens.len()]), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// Largest difference in units of the expected values' largest.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst.is_finite());
    worst / largest.max(1e-6)
}

fn assert_same_state(found: &State<MetaStateState>, expected: &State<MetaStateState>, what: &str) {
    let (found, expected) = (found.named(), expected.named());
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
        let floats = |data: TensorData| data.try_to_vec::<f32>().unwrap();
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
    for (name, half) in variants() {
        let model = model(&half, &device);
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
        layer.second.ms = layer.second.ms.narrow(0, row, 1);
        layer.second.shift = layer.second.shift.map(|x| x.narrow(0, row, 1));
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
    for (name, half) in variants() {
        let model = model(&half, &device);
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

#[test]
fn a_later_token_changes_no_earlier_logit() {
    let device = Device::default();
    let mut changed = TOKENS;
    changed[13] = 0;
    for (name, half) in variants() {
        let model = model(&half, &device);
        let before = values(model.forward(row(&TOKENS, &device), None).0);
        let after = values(model.forward(row(&changed, &device), None).0);
        assert_eq!(before[..13 * VOCAB], after[..13 * VOCAB], "{name}");
        assert_ne!(
            before[13 * VOCAB..14 * VOCAB],
            after[13 * VOCAB..14 * VOCAB],
            "{name}"
        );
    }
}

/// The loss of the first tokens gives no gradient to the embedding of a token that comes later.
#[test]
fn no_gradient_flows_to_a_later_token() {
    let device = Device::default().autodiff();
    let tokens = [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
    ];
    for (name, half) in variants() {
        let model = model(&half, &device);
        let (logits, _) = model.forward(row(&tokens, &device), None);
        let early = logits.narrow(1, 0, 12);
        let loss = loss::cross_entropy(early, row(&tokens[1..13], &device), None);
        let grads = loss.backward();
        let grad = values(model.emb.weight.val().grad(&grads).unwrap());
        let of = |id: usize| {
            grad[id * 16..(id + 1) * 16]
                .iter()
                .map(|x| x.abs())
                .sum::<f32>()
        };
        assert!((1..=12).all(|id| of(id) > 0.0), "{name}");
        assert!((13..=20).all(|id| of(id) == 0.0), "{name}");
    }
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
    for (name, half) in variants() {
        let model = model(&half, &device);
        let (logits, _) = model.forward(row(&TOKENS, &device), None);
        let grads = loss::cross_entropy(logits, row(&TOKENS, &device), None).backward();
        model.visit(&mut Check(&grads, name));
    }
}

#[test]
fn a_new_layer_adds_nothing() {
    let device = Device::default();
    for (name, half) in variants() {
        let model = small(&half).init(&device, 0);
        let (_, state) = model.forward(row(&TOKENS, &device), None);
        let layer = &state.layers[2].second;
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
    let half = MetaStateConfig {
        token_shift: true,
        ..MetaStateConfig::practical()
    };
    let mine = model(&half, &device);
    let (_, state) = mine.forward(row(&TOKENS, &device), None);
    state.save(&file).unwrap();
    let again = mine.zero_state(1, &device).load(&file).unwrap();
    assert_same_state(&again, &state, "loaded");

    let refused = |half: &MetaStateConfig| -> StateError {
        let other = model(half, &device);
        other.zero_state(1, &device).load(&file).unwrap_err()
    };
    let error = refused(&MetaStateConfig::practical()).to_string();
    assert!(error.contains("blocks.0.ms.shift"), "{error}");
    let smaller = MetaStateConfig {
        sse: Sse::TopLeft(5),
        token_shift: true,
        ..MetaStateConfig::practical()
    };
    let error = refused(&smaller).to_string();
    assert!(
        error.contains("[1, 2, 8, 8]") && error.contains("[1, 2, 5, 5]"),
        "{error}"
    );
    let rwkv7 = Rwkv7Config {
        head_size: 8,
        ..Rwkv7Config::new(VOCAB, 3, 16)
    };
    let error = rwkv7
        .init(&device, 0)
        .zero_state(1, &device)
        .load(&file)
        .unwrap_err();
    assert!(error.to_string().contains("ffn.shift"), "{error}");
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
    for (name, half) in variants() {
        let model = model(&half, &device);
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
        let expected: &[&str] = match half.sse {
            Sse::Learned => &["W_sse", "W_oms"],
            Sse::Projected => &["W_in", "W_oms"],
            _ => &["W_oms"],
        };
        assert_eq!(shrunk, expected, "{name}");
    }
}
