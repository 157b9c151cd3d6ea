//! Magnitudes and rank of the layer's values on random inputs, and that training stays finite.
//!
//! The figures are those of `docs/src/meta-state.md`, "Diagnostics": one head of 64, gates at RWKV-7's initial values
//! (per channel, constant in time), random keys, values and queries. Rank and cosine leave out the first 64 tokens.

use std::io::Write;

use burn::{
    optim::GradientsParams,
    tensor::{
        Int,
        activation::{relu, sigmoid},
    },
};
use rwkv7_core::{
    MatmulPrecision,
    config::ChannelMixerConfig,
    init::LayerInit,
    layers::{ChannelMixer, Lengths, TimeMixTrace, head_norm},
    loss,
    ops::{Wkv7Input, read_states, wkv7, wkv7_traced},
    optimizer::OptimizerConfig,
};

use super::*;
use crate::{MetaState, MetaStateState, diagnostics::effective_rank};

const SIZE: usize = 64;

/// One head of random inputs.
struct Head {
    x: Tensor<3>,
    input: Wkv7Input,
    rate: Tensor<3>,
}

impl Head {
    fn random(time: usize, key_size: f32, decay_shift: f64) -> Self {
        let device = Device::default();
        let tokens = [1, time, 1, SIZE];
        let channel = |f: &dyn Fn(f64) -> f64| -> Tensor<4> {
            let value = |i: usize| f(i as f64 / (SIZE - 1) as f64) as f32;
            let values: Vec<f32> = (0..SIZE).map(value).collect();
            let channels = TensorData::new(values, [1, 1, 1, SIZE]);
            Tensor::<4>::from_data(channels, &device).expand(tokens)
        };
        let zigzag = |n: f64| (2.0 * n - 1.0) * (2.0 * n - 1.0).abs();
        let decay = channel(&|n| -5.5 + 6.0 * n.powf(1.5) + 2.5 * zigzag(n) + decay_shift);
        let rate = channel(&|n| -0.19 + 0.3 * zigzag(n));
        let a = sigmoid(rate.clone());
        let raw = normal(tokens, 1, &device) * key_size;
        let length = raw.clone().square().sum_dim(3).sqrt();
        let key = raw.clone() / length;
        Self {
            x: head_norm(normal(tokens, 2, &device), None, 1e-5).reshape([1, time, SIZE]),
            input: Wkv7Input {
                r: normal(tokens, 3, &device),
                log_w: sigmoid(decay) * -0.606_530_66,
                k: raw * ((a.clone() - 1.0) * 1.02 + 1.0),
                v: normal(tokens, 4, &device),
                a: -key.clone(),
                b: key * a,
            },
            rate: rate.reshape([1, time, SIZE]),
        }
    }

    fn part(&self, from: usize, count: usize) -> Self {
        Self {
            x: self.x.clone().narrow(1, from, count),
            input: self.input.clone().map(|x| x.narrow(1, from, count)),
            rate: self.rate.clone().narrow(1, from, count),
        }
    }
}

/// The layer's state and time mixing's after this part, and what the layer measured.
fn run(
    layer: &MetaState,
    head: Head,
    (state, ms): (Tensor<4>, MetaStateState),
) -> (Tensor<4>, MetaStateState, Vec<f64>) {
    let (_, after, states) = wkv7_traced(head.input.clone(), state.clone());
    let trace = TimeMixTrace {
        input: head.input,
        state_before: state,
        state_after: after.clone(),
        states: Some(states),
        rate_bias: head.rate.clone().narrow(1, 0, 1).zeros_like(),
        rate: head.rate,
    };
    let (_, ms) = layer.forward(head.x, &trace, &Lengths::full(), ms);
    (after, ms, layer.measurements())
}

/// Runs `first` tokens and then the others; returns both states and what was measured over the others.
fn two_parts(
    config: &MetaStateConfig,
    head: &Head,
    first: usize,
) -> (Tensor<4>, Tensor<4>, Vec<f64>) {
    let device = Device::default();
    let model = Rwkv7Config::new(16, 2, SIZE).with_ffn(config.clone());
    let init = LayerInit::new(1, &model.dims(), &device, 0);
    let mut layer = config.init(&model.dims(), &init);
    layer.measure(true);
    let time = head.x.dims()[1];
    let zero = Tensor::zeros([1, 1, SIZE, SIZE], &device);
    let start = (zero, layer.zero_state(1, &device));
    let (state, ms, _) = run(&layer, head.part(0, first), start);
    let (state, ms, measured) = run(&layer, head.part(first, time - first), (state, ms));
    (state, ms.ms, measured)
}

#[test]
fn magnitudes_are_those_of_the_reference() {
    let l2 = MetaStateConfig {
        scale: Scale::L2,
        ..MetaStateConfig::paper()
    };
    // Key size, decay shift, expected: rms of S, largest |ms|, largest |u| at the last of 4,096 tokens.
    for (config, key_size, shift, expected) in [
        (MetaStateConfig::paper(), 0.1, 0.0, [0.23, 8e2, 7.6e3]),
        (MetaStateConfig::paper(), 1.0, 0.0, [2.3, 8e4, 7.6e6]),
        (MetaStateConfig::paper(), 1.0, -4.0, [3.5, 1.2e5, 2.4e7]),
        (l2, 1.0, 0.0, [2.3, 7.0, 6.0]),
    ] {
        let (state, ms, measured) = two_parts(&config, &Head::random(4096, key_size, shift), 4095);
        let rms = state.square().mean().sqrt().into_scalar::<f32>();
        let largest = ms.abs().max().into_scalar::<f32>();
        let found = [f64::from(rms), f64::from(largest), measured[2]];
        // The spread over seeds of the largest u is a third of it.
        for ((found, expected), factor) in found.iter().zip(expected).zip([1.1, 1.5, 2.5]) {
            let ratio = found / expected;
            assert!(
                ratio < factor && ratio > 1.0 / factor,
                "{found} for {expected}"
            );
        }
    }
}

#[test]
fn rank_collapse_is_that_of_the_reference_and_options_lift_it() {
    let own = MetaStateConfig {
        removal: Removal::Own,
        ..MetaStateConfig::paper()
    };
    let centered = MetaStateConfig {
        center: true,
        ..MetaStateConfig::paper()
    };
    let head = Head::random(2048, 1.0, 0.0);
    let measured = |config: &MetaStateConfig| two_parts(config, &head, 64).2;
    let paper = measured(&MetaStateConfig::paper());
    assert!((paper[0] - 2.3).abs() < 0.2, "effective rank {}", paper[0]);
    assert!((paper[1] - 0.92).abs() < 0.02, "cosine {}", paper[1]);
    assert!((paper[3] - 0.5).abs() < 0.05, "zeros {}", paper[3]);
    let own = measured(&own)[0];
    assert!((own - 28.9).abs() < 1.0, "own removal key: {own}");
    let centered = measured(&centered)[0];
    assert!((centered - 18.4).abs() < 2.0, "centred: {centered}");
}

/// z and the layer norm of what is read of ms, `[1, time, 1, SIZE]`, from the operators alone.
fn encoded_and_normal(head: &Head) -> (Tensor<4>, Tensor<4>) {
    let zero = || Tensor::zeros([1, 1, SIZE, SIZE], &Device::default());
    let (_, _, states) = wkv7_traced(head.input.clone(), zero());
    let x = head.x.clone().reshape(head.input.v.shape());
    let z = relu(read_states(x, &states, Side::Value));
    let evolution = Wkv7Input {
        r: z.clone(),
        k: z.clone(),
        v: z.clone(),
        ..head.input.clone()
    };
    (z, head_norm(wkv7(evolution, zero()).0, None, 1e-5))
}

#[test]
fn z_has_the_size_of_the_reference() {
    for (key_size, shift, expected) in [(0.1, 0.0, 1.4), (1.0, 0.0, 14.0), (1.0, -4.0, 21.0)] {
        let (z, _) = encoded_and_normal(&Head::random(4096, key_size, shift));
        let last = z.narrow(1, 2048, 2048);
        let found = last.square().mean().sqrt().into_scalar::<f32>();
        let ratio = f64::from(found) / expected;
        assert!(ratio < 1.15 && ratio > 1.0 / 1.15, "{found} for {expected}");
    }
}

/// The mean taken out of what is written into ms, but not out of what reads it.
#[test]
fn centring_the_update_alone_lifts_the_rank_less() {
    let head = Head::random(2048, 1.0, 0.0);
    let (z, _) = encoded_and_normal(&head);
    let centred = z.clone() - z.clone().mean_dim(3);
    let evolution = Wkv7Input {
        r: z,
        k: centred.clone(),
        v: centred,
        ..head.input
    };
    let zero = Tensor::zeros([1, 1, SIZE, SIZE], &Device::default());
    let normal = head_norm(wkv7(evolution, zero).0, None, 1e-5);
    let rank = effective_rank(normal.narrow(1, 64, 1984));
    assert!((rank - 6.6).abs() < 1.0, "{rank}");
}

/// What is read of ms is nearly the same at every token.
#[test]
fn most_of_what_is_read_is_constant_in_time() {
    let (_, normal) = encoded_and_normal(&Head::random(2048, 1.0, 0.0));
    let normal = normal.narrow(1, 64, 1984);
    let energy = |x: Tensor<4>| x.square().sum_dim(3).mean().into_scalar::<f32>();
    let constant = energy(normal.clone().mean_dim(1)) / energy(normal);
    assert!((constant - 0.86).abs() < 0.03, "{constant}");
}

#[test]
fn measuring_is_off_until_it_is_switched_on() {
    let device = Device::default();
    let mut model = small(&MetaStateConfig::paper()).init(&device);
    let tokens = || Tensor::<2, Int>::from_data([[1, 2, 3, 4]], &device);
    model.forward(tokens(), None);
    assert!(model.blocks[0].ffn.measurements().is_empty());
    for block in &mut model.blocks {
        block.ffn.measure(true);
    }
    model.forward(tokens(), None);
    for block in &model.blocks {
        let found = block.ffn.measurements();
        assert_eq!(found.len(), MetaState::MEASUREMENTS.len());
        assert!(found.iter().all(|value| value.is_finite()), "{found:?}");
        assert!((1.0..=8.0).contains(&found[0]), "{found:?}");
    }
}

/// Weights and inputs of bf16: what the layer computes with the state is what it computes with the same values in f32.
#[test]
fn in_half_precision_the_layer_computes_with_its_state_in_f32() {
    let device = Device::default();
    let coarse = |x: Tensor<3>| x.cast(FloatDType::BF16);
    for config in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
        let model = Rwkv7Config::new(16, 2, SIZE).with_ffn(config.clone());
        let init = LayerInit::new(1, &model.dims(), &device, 0);
        let exact = config.init(&model.dims(), &init);
        let mut half = exact.clone();
        half.W_oms = half.W_oms.map(coarse);
        let mut head = Head::random(96, 1.0, 0.0);
        head.x = coarse(head.x);
        let mut found = Vec::new();
        for (mut layer, dtype) in [(half, FloatDType::BF16), (exact, FloatDType::F32)] {
            layer.measure(true);
            let mut head = head.part(0, 96);
            head.x = head.x.cast(dtype);
            let zero = Tensor::zeros([1, 1, SIZE, SIZE], &device);
            let (_, ms, measured) = run(&layer, head, (zero, layer.zero_state(1, &device)));
            found.push((ms.ms.into_data(), measured));
        }
        assert_eq!(found[0], found[1]);
    }
}

/// Training for 2,000 steps, and for 200 steps with bf16 products.
fn trains_for_long(config: &MetaStateConfig) {
    trains(&small(config), 1e-3, MatmulPrecision::F32, 2000);
    trains(&small(config), 1e-3, MatmulPrecision::Bf16, 200);
}

#[test]
fn training_as_in_the_paper_stays_finite() {
    trains_for_long(&MetaStateConfig::paper());
}

#[test]
fn training_of_the_practical_layer_stays_finite() {
    trains_for_long(&MetaStateConfig::practical());
}

/// The paper's learning rate.
#[test]
fn training_at_a_low_rate_stays_finite() {
    for config in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
        trains(&small(&config), 1e-4, MatmulPrecision::F32, 1000);
    }
}

/// Heads of 64, as in models of the usual sizes: what is read of ms grows with the head.
#[test]
fn training_with_heads_of_64_stays_finite() {
    for config in [MetaStateConfig::paper(), MetaStateConfig::practical()] {
        let model = Rwkv7Config::new(29, 2, SIZE).with_ffn(config);
        trains(&model, 1e-3, MatmulPrecision::F32, 200);
    }
}

/// Steps on text that is half pattern, half noise; every 50th is measured.
fn trains(config: &MetaStateModelConfig, rate: f64, precision: MatmulPrecision, steps: usize) {
    let device = Device::default().autodiff();
    let (rows, time, vocab) = (2, 24, 29);
    if let Err(error) = precision.check(&device) {
        let _ = writeln!(std::io::stderr(), "skipped: {error}");
        return;
    }
    let mut model = config.init(&device).with_matmul_precision(precision);
    let mut optimizer = OptimizerConfig::default().init();
    let mut losses = Vec::new();
    for step in 0..steps {
        let token = |i: usize| {
            let noise = (step * 7919 + i * 104_729) % 1_000_003 % vocab;
            let pattern = (step + i) * 3 % vocab;
            if i.is_multiple_of(2) {
                pattern as i32
            } else {
                noise as i32
            }
        };
        let ids: Vec<i32> = (0..rows * (time + 1)).map(token).collect();
        let rows_of = |from: usize| -> Tensor<2, Int> {
            let part = ids
                .chunks(time + 1)
                .flat_map(|row| row[from..from + time].to_vec());
            Tensor::from_data(TensorData::new(part.collect(), [rows, time]), &device)
        };
        for block in &mut model.blocks {
            block.ffn.measure(step.is_multiple_of(50));
        }
        let (logits, _) = model.forward(rows_of(0), None);
        for block in &model.blocks {
            let measured = block.ffn.measurements();
            assert!(
                measured.iter().all(|value| value.is_finite()),
                "{config:?}, rate {rate}, {precision:?}: {measured:?} at step {step}"
            );
        }
        let loss = loss::cross_entropy(logits, rows_of(1), None);
        let value = loss.clone().into_scalar::<f32>();
        assert!(
            value.is_finite(),
            "{config:?}, rate {rate}, {precision:?}: {value} at step {step}"
        );
        losses.push(value);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(rate, model, grads);
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let (first, last) = (mean(&losses[..50]), mean(&losses[steps - 50..]));
    assert!(
        last < 0.9 * first,
        "{config:?}, rate {rate}, {precision:?}: {first} became {last}"
    );
    for block in &model.blocks {
        let written = block.ffn.W_oms.val().abs().max().into_scalar::<f32>();
        assert!(written > 0.01, "{config:?}, rate {rate}: W_oms {written}");
    }
}
