//! The layer against eq. 1 to 6, written token by token without an operator of ours: outputs, states, all gradients.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{
        DType, Device, FloatDType, Gradients, Tensor, TensorData,
        activation::{relu, sigmoid},
    },
};
use rwkv7_core::{
    config::ChannelMixerConfig,
    init::LayerInit,
    layers::{ChannelMixer, Lengths, TimeMixTrace},
    ops::{Wkv7Input, wkv7_traced},
};

use super::*;
use crate::{MetaState, MetaStateState};

const BATCH: usize = 2;
const HEADS: usize = 2;
const SIZE: usize = 8;
const WIDTH: usize = HEADS * SIZE;

/// Everything that flows into the layer, as leaves of the graph.
struct Inputs {
    h: Tensor<3>,
    rate: Tensor<3>,
    rate_bias: Tensor<3>,
    /// Receptance, log decay, key, value, removal direction and weight, `[batch, time, heads, size]`.
    input: Wkv7Input,
    state: Tensor<4>,
    ms: Tensor<4>,
    shift: Tensor<2>,
}

impl Inputs {
    fn random(time: usize, dtype: FloatDType, device: &Device) -> Self {
        // Drawn in f32 whatever the dtype is, so that both see the same values.
        fn leaf<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
            x.cast(dtype).detach().require_grad()
        }
        let tokens = [BATCH, time, HEADS, SIZE];
        let square = [BATCH, HEADS, SIZE, SIZE];
        let rate = normal([BATCH, time, WIDTH], 1, device);
        let rate_bias = normal([1, 1, WIDTH], 2, device) * 0.5;
        let key = normal(tokens, 3, device);
        let length = key.clone().square().sum_dim(3).sqrt();
        let key = key / length;
        let a = sigmoid(rate.clone() + rate_bias.clone()).reshape(tokens);
        let log_w = sigmoid(normal(tokens, 4, device) * 2.0) * -0.606_530_66;
        Self {
            h: leaf(normal([BATCH, time, WIDTH], 5, device), dtype),
            rate: leaf(rate, dtype),
            rate_bias: leaf(rate_bias, dtype),
            input: Wkv7Input {
                r: leaf(normal(tokens, 6, device), dtype),
                log_w: leaf(log_w, dtype),
                k: leaf(normal(tokens, 7, device) * 0.5, dtype),
                v: leaf(normal(tokens, 8, device), dtype),
                a: leaf(-key.clone(), dtype),
                b: leaf(key * a, dtype),
            },
            state: leaf(normal(square, 9, device) * 0.3, dtype),
            ms: leaf(normal(square, 10, device) * 0.3, dtype),
            shift: leaf(normal([BATCH, WIDTH], 11, device), dtype),
        }
    }

    /// The state that the layer starts from.
    fn state(&self, layer: &MetaState) -> MetaStateState {
        let n = layer.config().size(SIZE);
        MetaStateState {
            ms: self.ms.clone().narrow(2, 0, n).narrow(3, 0, n),
            shift: layer.config().token_shift.then(|| self.shift.clone()),
        }
    }

    fn gradients(&self, grads: &Gradients) -> Vec<(String, Vec<f64>)> {
        fn of<const D: usize>(x: &Tensor<D>, grads: &Gradients) -> Vec<f64> {
            match x.grad(grads) {
                Some(grad) => grad.into_data().iter::<f64>().collect(),
                None => vec![0.0; x.shape().num_elements()],
            }
        }
        let mut all: Vec<(String, Vec<f64>)> = vec![
            ("h".into(), of(&self.h, grads)),
            ("rate".into(), of(&self.rate, grads)),
            ("rate_bias".into(), of(&self.rate_bias, grads)),
            ("state".into(), of(&self.state, grads)),
            ("ms".into(), of(&self.ms, grads)),
            ("shift".into(), of(&self.shift, grads)),
        ];
        for (name, x) in self.input.named() {
            all.push((name.into(), of(x, grads)));
        }
        all
    }
}

/// Eq. 1 to 6 for `[batch, heads]` at once, one token after the other. Returns o, the state after the last token, ms.
fn oracle(layer: &MetaState, inputs: &Inputs) -> (Tensor<3>, Tensor<4>, Tensor<4>) {
    let config = layer.config();
    let time = inputs.h.dims()[1];
    let n = config.size(SIZE);
    let start = inputs.state(layer);
    let (mut state, mut ms) = (inputs.state.clone(), start.ms);
    let mut previous = inputs.shift.clone();
    let mut outputs = Vec::new();
    let detach = |x: Tensor<4>| if config.detach_decay { x.detach() } else { x };
    for t in 0..time {
        // Columns, [batch, heads, size, 1].
        let column = |x: &Tensor<4>| x.clone().narrow(1, t, 1).permute([0, 2, 3, 1]);
        let transposed = |x: &Tensor<4>| x.clone().swap_dims(2, 3);
        let [_, log_w, k, v, a, b] = inputs.input.named().map(|(_, x)| column(x));
        let decay = transposed(&log_w).exp(); // [batch, heads, 1, size]
        state = state.clone() * decay.clone()
            + state.matmul(a.clone()).matmul(transposed(&b))
            + v.matmul(transposed(&k));

        let now = inputs.h.clone().narrow(1, t, 1).reshape([BATCH, WIDTH]);
        let x = match &layer.x_k {
            Some(x_k) => {
                let mix = x_k.val().reshape([1, WIDTH]);
                now.clone() + (previous - now.clone()) * mix
            }
            None => now.clone(),
        };
        previous = now;
        let mut query = x.reshape([BATCH, HEADS, SIZE, 1]);
        if let Sse::TopLeft(_) = config.sse {
            let mask: Vec<f64> = (0..SIZE).map(|i| f64::from(i < n)).collect();
            let options = (&query.device(), query.dtype());
            query = query * Tensor::<4>::from_data(TensorData::new(mask, [1, 1, SIZE, 1]), options);
        }
        if let (Some(first), Some(second)) = (&layer.sse1, &layer.sse2) {
            let weight = first.val().matmul(second.val()).unsqueeze::<4>();
            query = transposed(&weight).matmul(query);
        }
        if let Some(weight) = &layer.W_in {
            query = transposed(&weight.val().unsqueeze::<4>()).matmul(query);
        }
        let z = match (&layer.W_sse, config.side) {
            (Some(weight), _) => transposed(&weight.val().unsqueeze::<4>()).matmul(query),
            (None, Side::Value) => transposed(&state).matmul(query),
            (None, Side::Key) => state.clone().matmul(query),
        };
        let z = match &layer.mix {
            Some(mix) => {
                let flat = z.reshape([BATCH, HEADS, SIZE]);
                let mixed = mix.val().unsqueeze::<3>().matmul(flat);
                mixed.reshape([BATCH, HEADS, SIZE, 1])
            }
            None => z,
        };
        let mut z = relu(z.narrow(2, 0, n));
        if config.center {
            z = z.clone() - z.mean_dim(2);
        }
        let unit = |z: Tensor<4>| z.clone() / z.square().sum_dim(2).clamp_min(1e-24).sqrt();
        z = match config.scale {
            Scale::None => z,
            Scale::Constant(c) => z * c,
            Scale::L2 => unit(z),
        };
        let (remove, add_back) = match config.removal {
            Removal::TimeMix => (detach(a.narrow(2, 0, n)), detach(b.narrow(2, 0, n))),
            Removal::Own => {
                let rate = inputs.rate.clone().narrow(1, t, 1) + inputs.rate_bias.clone();
                let rate = sigmoid(rate).reshape([BATCH, HEADS, SIZE, 1]);
                let key = unit(z.clone());
                (-key.clone(), key * detach(rate.narrow(2, 0, n)))
            }
        };
        ms = ms.clone() * detach(decay.narrow(3, 0, n))
            + ms.matmul(remove).matmul(transposed(&add_back))
            + z.clone().matmul(transposed(&z));
        let u = ms.clone().matmul(z);
        let centred = u.clone() - u.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let mut normal = centred / (variance + config.norm_eps).sqrt();
        if let Some(ln) = &layer.ln {
            let channels = |x: Tensor<1>| x.reshape([1, HEADS, n, 1]);
            normal = normal * channels(ln.gamma.val()) + channels(ln.beta.val());
        }
        // Row times W_oms, summed over the heads.
        let weight = layer.W_oms.val().unsqueeze::<4>();
        let o = transposed(&normal).matmul(weight).sum_dim(1);
        outputs.push(o.reshape([BATCH, 1, WIDTH]));
    }
    (Tensor::cat(outputs, 1), state, ms)
}

/// The layer as the model calls it.
fn layer(layer: &MetaState, inputs: &Inputs) -> (Tensor<3>, Tensor<4>, Tensor<4>) {
    let (_, state_after, states) = wkv7_traced(inputs.input.clone(), inputs.state.clone());
    let trace = TimeMixTrace {
        input: inputs.input.clone(),
        state_before: inputs.state.clone(),
        state_after: state_after.clone(),
        states: layer.reads_states(true).then_some(states),
        rate: inputs.rate.clone(),
        rate_bias: inputs.rate_bias.clone(),
    };
    let state = inputs.state(layer);
    let (out, next) = layer.forward(inputs.h.clone(), &trace, &Lengths::full(), state);
    (out, state_after, next.ms)
}

fn random_layer(config: &MetaStateConfig, dtype: FloatDType, device: &Device) -> MetaState {
    let config = small(config);
    let init = LayerInit::new(1, &config.dims(), device, 0);
    shaken(config.ffn.init(&config.dims(), &init), 0.3, dtype)
}

struct Parameters<'a>(&'a Gradients, Vec<Vec<f64>>);

impl ModuleVisitor for Parameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.0).unwrap();
        self.1.push(grad.into_data().iter::<f64>().collect());
    }
}

type Run = fn(&MetaState, &Inputs) -> (Tensor<3>, Tensor<4>, Tensor<4>);

/// Outputs, states and every gradient of a loss that all of them enter.
fn everything(run: Run, of: &MetaState, inputs: &Inputs) -> Vec<(String, Vec<f64>)> {
    let (out, state, ms) = run(of, inputs);
    let mut all = Vec::new();
    for (name, data) in [
        ("output", out.clone().into_data()),
        ("state after", state.clone().into_data()),
        ("ms after", ms.clone().into_data()),
    ] {
        all.push((name.to_string(), data.iter::<f64>().collect()));
    }
    fn weighted<const D: usize>(x: Tensor<D>) -> Tensor<1> {
        let count = x.shape().num_elements() as i64;
        let options = (&x.device(), x.dtype());
        let weight = Tensor::<1>::from_data(
            TensorData::new(
                (0..count).map(|i| (0.7 * i as f64).sin()).collect(),
                [count as usize],
            ),
            options,
        );
        (x.clone().reshape([count as usize]) * weight).sum()
    }
    let loss = weighted(out) + weighted(state) * 0.1 + weighted(ms) * 0.01;
    let grads = loss.backward();
    let mut parameters = Parameters(&grads, Vec::new());
    of.visit(&mut parameters);
    for (i, grad) in parameters.1.into_iter().enumerate() {
        all.push((format!("gradient of parameter {i}"), grad));
    }
    for (name, grad) in inputs.gradients(&grads) {
        all.push((format!("gradient of {name}"), grad));
    }
    all
}

fn compare(dtype: FloatDType, tolerance: f64, time: usize) {
    let device = Device::default().autodiff();
    for (name, config) in variants() {
        let of = random_layer(&config, FloatDType::F64, &device);
        let inputs = Inputs::random(time, FloatDType::F64, &device);
        let expected = everything(oracle, &of, &inputs);
        let (of, inputs) = if dtype == FloatDType::F64 {
            (of, inputs)
        } else {
            (
                random_layer(&config, dtype, &device),
                Inputs::random(time, dtype, &device),
            )
        };
        assert_eq!(of.W_oms.val().dtype(), DType::from(dtype));
        for ((what, found), (_, expected)) in
            everything(layer, &of, &inputs).into_iter().zip(expected)
        {
            let largest = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            let error = found
                .iter()
                .zip(&expected)
                .fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(
                error <= tolerance * largest.max(1e-3),
                "{name}, {time} tokens, {what}: {error:e} of {largest:e}"
            );
        }
    }
}

#[test]
fn every_option_is_the_equations_in_f64() {
    for time in [1, 37] {
        compare(FloatDType::F64, 1e-10, time);
    }
}

#[test]
fn every_option_is_the_equations_in_f32() {
    for time in [1, 37] {
        compare(FloatDType::F32, 1e-5, time);
    }
}
