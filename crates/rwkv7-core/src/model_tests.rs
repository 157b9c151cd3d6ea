//! Forward is step is any split; padding changes nothing; the loss of a fresh model is what the theory says.

use std::io::Write;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Distribution, Int, Tensor, TensorData},
};

use crate::{MatmulPrecision, Rwkv7Config, Rwkv7Lm, State, config::ChannelMixerConfig, loss};

const VOCAB: usize = 29;
const TOKENS: [i32; 21] = [
    3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6,
];

/// A model in which no parameter is at a special value: every formula matters.
fn model(device: &Device) -> Rwkv7Lm {
    struct Shake;
    impl ModuleMapper for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| {
                let noise = x.random_like(Distribution::Uniform(-0.3, 0.3));
                let tracked = x.is_autodiff();
                (x + noise).detach().set_require_grad(tracked)
            })
        }
    }
    device.seed(1);
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(VOCAB, 3, 32)
    };
    config.validate().unwrap();
    config.init(device, 0).map(&mut Shake)
}

#[test]
#[should_panic(expected = "`att.shift` has shape [2, 32], this layer needs [1, 32]")]
fn a_state_of_another_batch_is_refused() {
    let device = Device::default();
    let model = model(&device);
    model.forward(row(&TOKENS, &device), Some(model.zero_state(2, &device)));
}

fn row(tokens: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(tokens.to_vec(), [1, tokens.len()]), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// Largest difference in units of the expected values' standard deviation.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / n;
    let std = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    let largest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(largest.is_finite());
    largest / std
}

fn assert_same_state(found: &State, expected: &State, what: &str) {
    for ((name, found), (_, expected)) in found.named().into_iter().zip(expected.named()) {
        let d = difference(
            &found.try_to_vec::<f32>().unwrap(),
            &expected.try_to_vec::<f32>().unwrap(),
        );
        assert!(
            d < 1e-4,
            "{what}: {name} differs by {d:e} standard deviations"
        );
    }
}

#[test]
fn step_and_any_split_give_the_logits_of_forward() {
    let device = Device::default();
    let model = model(&device);
    let (whole, last) = model.forward(row(&TOKENS, &device), None);
    let whole = values(whole);

    let mut state = model.zero_state(1, &device);
    let mut stepped = Vec::new();
    for token in TOKENS {
        let (logits, next) = model.step(Tensor::from_data([token], &device), state);
        stepped.extend(values(logits));
        state = next;
    }
    assert!(difference(&stepped, &whole) < 1e-4);
    assert_same_state(&state, &last, "step");

    for at in 1..TOKENS.len() {
        let (first, state) = model.forward(row(&TOKENS[..at], &device), None);
        let (second, state) = model.forward(row(&TOKENS[at..], &device), Some(state));
        let split = [values(first), values(second)].concat();
        let d = difference(&split, &whole);
        assert!(d < 1e-4, "split at {at}: {d:e} standard deviations");
        assert_same_state(&state, &last, "split");
    }

    let (read, _) = model.read(row(&TOKENS, &device), None);
    assert!(difference(&values(read), &whole[whole.len() - VOCAB..]) < 1e-5);
}

#[test]
fn padding_changes_nobodys_result() {
    let device = Device::default();
    let model = model(&device);
    let lengths = [5, 0, 21, 1, 17];
    let mut batch = Vec::new();
    for length in lengths {
        batch.extend_from_slice(&TOKENS[..length]);
        batch.extend(std::iter::repeat_n(7, TOKENS.len() - length));
    }
    // Everybody carries a state in, so that an empty row has something to keep.
    let (_, carried) = model.forward(row(&[2, 7, 1], &device), None);
    let every = |x: Tensor<2>| x.repeat_dim(0, lengths.len());
    let mut many = carried.clone();
    for layer in &mut many.layers {
        layer.att.shift = every(layer.att.shift.clone());
        layer.att.wkv = layer.att.wkv.clone().repeat_dim(0, lengths.len());
        layer.ffn.shift = every(layer.ffn.shift.clone());
    }
    let tokens = Tensor::from_data(
        TensorData::new(batch, [lengths.len(), TOKENS.len()]),
        &device,
    );
    let (logits, state) = model.forward_ragged(tokens, &lengths, Some(many));
    for (i, length) in lengths.into_iter().enumerate() {
        let mine = State {
            layers: state
                .layers
                .iter()
                .map(|layer| {
                    let mut layer = layer.clone();
                    layer.att.shift = layer.att.shift.narrow(0, i, 1);
                    layer.att.wkv = layer.att.wkv.narrow(0, i, 1);
                    layer.ffn.shift = layer.ffn.shift.narrow(0, i, 1);
                    layer
                })
                .collect(),
        };
        if length == 0 {
            assert_same_state(&mine, &carried, "empty row");
            continue;
        }
        let (alone, expected) =
            model.forward(row(&TOKENS[..length], &device), Some(carried.clone()));
        let found = logits.clone().slice([i..i + 1, 0..length, 0..VOCAB]);
        let d = difference(&values(found), &values(alone));
        assert!(d < 1e-4, "row of {length}: {d:e} standard deviations");
        assert_same_state(&mine, &expected, "ragged");
    }
}

#[test]
fn a_later_token_changes_no_earlier_logit() {
    let device = Device::default();
    let model = model(&device);
    let before = values(model.forward(row(&TOKENS, &device), None).0);
    let mut changed = TOKENS;
    changed[13] = 0;
    let after = values(model.forward(row(&changed, &device), None).0);
    assert_eq!(before[..13 * VOCAB], after[..13 * VOCAB]);
    assert_ne!(before[13 * VOCAB..], after[13 * VOCAB..]);
}

/// `docs/src/rwkv7.md`, "Initial values": at the start every block adds nothing and the logits have a standard deviation near 0.49.
#[test]
fn initial_loss_is_log_of_the_vocabulary_and_a_little() {
    let device = Device::default();
    for (vocab, width) in [(2000, 128), (4096, 256)] {
        let model = Rwkv7Config::new(vocab, 2, width).init(&device, 0);
        let token = |i: usize| ((i * 7919 + 13) % vocab) as i32;
        let tokens: Vec<i32> = (0..vocab).map(token).collect();
        let targets: Vec<i32> = (0..vocab).map(|i| token(i + 1)).collect();
        let (logits, _) = model.forward(row(&tokens, &device), None);
        let loss = loss::cross_entropy(logits, row(&targets, &device), None).into_scalar::<f32>();
        let excess = f64::from(loss) - (vocab as f64).ln();
        assert!(
            (excess - 0.12).abs() < 0.03,
            "V = {vocab}: loss is ln V + {excess}"
        );
    }
}

#[test]
fn every_parameter_is_counted_and_gets_a_gradient() {
    let device = Device::default().autodiff();
    let config = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(VOCAB, 3, 32)
    };
    let model = model(&device);
    assert_eq!(model.num_params(), config.num_params());
    let dims = config.dims();
    assert_eq!(config.ffn.num_params(&dims), 32 + 2 * 32 * 128);

    let (logits, _) = model.forward(row(&TOKENS, &device), None);
    let grads = loss::cross_entropy(logits, row(&TOKENS, &device), None).backward();
    struct Check<'a>(&'a burn::tensor::Gradients, usize);
    impl burn::module::ModuleVisitor for Check<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = param.val().grad(self.0).expect("a gradient");
            assert!(grad.abs().sum().into_scalar::<f32>() > 0.0);
            self.1 += 1;
        }
    }
    let mut check = Check(&grads, 0);
    model.visit(&mut check);
    assert!(check.1 > 80);
}

#[test]
fn l2_wrap_adds_only_a_gradient() {
    let device = Device::default().autodiff();
    let logits =
        Tensor::<3>::from_data([[[1.0, 4.0, 2.0], [-1.0, -3.0, -2.0]]], &device).require_grad();
    let term = loss::l2_wrap(logits.clone());
    assert_eq!(term.clone().into_scalar::<f32>(), 0.0);
    let grad = values(logits.grad(&term.backward()).unwrap());
    let expected = [0.0, 4.0, 0.0, -1.0, 0.0, 0.0].map(|x| x * 1e-4 / 2.0);
    assert!(
        grad.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9),
        "{grad:?}"
    );
}

/// Logits and gradients as in f32, but for roundings of 8 bits.
#[test]
fn products_in_bf16_are_close_to_those_in_f32() {
    let device = Device::default().autodiff();
    if let Err(error) = MatmulPrecision::Bf16.check(&device) {
        let _ = writeln!(std::io::stderr(), "skipped: {error}");
        return;
    }
    let model = model(&device);
    let run = |model: &Rwkv7Lm| {
        let (logits, _) = model.forward(row(&TOKENS, &device), None);
        let loss = loss::cross_entropy(logits.clone(), row(&TOKENS, &device), None);
        (values(logits), loss.backward())
    };
    let (logits, grads) = run(&model);
    let (rounded_logits, rounded_grads) =
        run(&model.clone().with_matmul_precision(MatmulPrecision::Bf16));
    let found = difference(&rounded_logits, &logits);
    assert!((1e-4..5e-2).contains(&found), "logits: {found}");

    struct Compare<'a>([&'a burn::tensor::Gradients; 2]);
    impl burn::module::ModuleVisitor for Compare<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let [a, b] = self.0.map(|grads| values(param.val().grad(grads).unwrap()));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!(cosine > 0.99, "{:?}: {cosine}", param.shape());
        }
    }
    model.visit(&mut Compare([&grads, &rounded_grads]));
}
