//! Cases of the recurrence and of a read of its states, and how results are compared.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::ops::{Side, reference::DECAY_SCALE};

pub const NAMES: [&str; 8] = ["r", "log_w", "k", "v", "a", "b", "s0", "x"];
pub const SIDES: [Side; 2] = [Side::Value, Side::Key];

/// Sizes `[batch, time, heads, value, key]`; r, log_w, k, v, a, b, S0 and queries x in row-major order; and the side that the
/// queries are read on.
#[derive(Clone)]
pub struct Case {
    pub dims: [usize; 5],
    pub values: [Vec<f64>; 8],
    pub side: Side,
}

/// How the keys of a case are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    Random,
    Repeated,
}

/// How the decays of a case are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Decay {
    /// As a trained model has them.
    Mixed,
    /// RWKV-7's floor.
    Strongest,
    /// None at all.
    Slowest,
    /// Down to w = 0.
    Forgetting,
}

/// How the in-context rates of a case are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Rate {
    Random,
    Always(f64),
    /// 0 or 1 for all channels of a token.
    Switched,
}

impl Case {
    /// With states of size by size.
    pub fn random(
        [batch, time, heads, size]: [usize; 4],
        seed: u64,
        decay: Decay,
        rate: Rate,
        keys: Keys,
    ) -> Self {
        Self::rectangular([batch, time, heads, size, size], seed, decay, rate, keys)
    }

    /// Keys of length 1 as RWKV-7 makes them.
    pub fn rectangular(dims: [usize; 5], seed: u64, decay: Decay, rate: Rate, keys: Keys) -> Self {
        let [batch, time, heads, value, key] = dims;
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens = batch * time * heads;
        let mut uniform =
            |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let [r, k, v, x] = [key, key, value, value].map(|size| uniform(tokens * size));
        let s0 = uniform(batch * heads * value * key);
        let mut unit = uniform(tokens * key);
        for row in unit.chunks_mut(key) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        if keys == Keys::Repeated {
            let first = unit[..key].to_vec();
            unit.chunks_mut(key)
                .for_each(|row| row.copy_from_slice(&first));
        }
        let log_w = (0..tokens * key).map(|_| {
            let z: f64 = match decay {
                Decay::Mixed => rng.random_range(-6.0..3.0),
                Decay::Strongest => 40.0,
                Decay::Slowest => return 0.0,
                Decay::Forgetting => {
                    return match rng.random_range(0..4) {
                        0 => -1e30,
                        1 => -200.0 * rng.random::<f64>(),
                        2 => 0.0,
                        _ => -rng.random::<f64>(),
                    };
                }
            };
            -DECAY_SCALE / (1.0 + (-z).exp())
        });
        let log_w = log_w.collect();
        let a = unit.iter().map(|x| -x).collect();
        let mut switch = 0.0;
        let b = unit.iter().enumerate().map(|(i, x)| {
            if i % key == 0 {
                switch = f64::from(u8::from(i / key % 3 > 0));
            }
            x * match rate {
                Rate::Random => rng.random(),
                Rate::Always(rate) => rate,
                Rate::Switched => switch,
            }
        });
        let b = b.collect();
        Self {
            dims,
            values: [r, log_w, k, v, a, b, s0, x],
            side: Side::Value,
        }
    }

    /// The same with queries for this side, where states are square.
    pub fn on(&self, side: Side) -> Self {
        Self {
            side,
            ..self.clone()
        }
    }

    /// From the state that a sequence starts from.
    pub fn without_state(mut self) -> Self {
        self.values[6].fill(0.0);
        self
    }

    /// The shape of a value.
    pub fn shape(&self, i: usize) -> [usize; 4] {
        let [batch, time, heads, value, key] = self.dims;
        match (NAMES[i], self.side) {
            ("s0", _) => [batch, heads, value, key],
            ("v", _) | ("x", Side::Value) => [batch, time, heads, value],
            _ => [batch, time, heads, key],
        }
    }

    pub fn tensors(&self, dtype: DType, device: &Device) -> [Tensor<4>; 8] {
        std::array::from_fn(|i| {
            let data = TensorData::new(self.values[i].clone(), self.shape(i));
            Tensor::from_data(data, (device, dtype))
        })
    }

    /// Any gradients of y, S and z.
    pub fn output_gradients(&self) -> [Vec<f64>; 3] {
        let mut rng = StdRng::seed_from_u64(99);
        let z = match self.side {
            Side::Value => 2,
            Side::Key => 3,
        };
        [3, 6, z].map(|i| {
            let n = self.values[i].len();
            (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
        })
    }
}

/// Named outputs and gradients.
pub type Results = Vec<(String, Vec<f64>)>;

/// y, S, z and the gradients by all eight inputs with their names.
pub fn named(outputs: [Vec<f64>; 3], gradients: [Vec<f64>; 8]) -> Results {
    let outputs = ["y", "state", "z"]
        .map(String::from)
        .into_iter()
        .zip(outputs);
    let gradients = NAMES.iter().map(|name| format!("d{name}")).zip(gradients);
    outputs.chain(gradients).collect()
}

/// The largest difference, relative to the largest expected value.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let error = found.iter().zip(expected).fold(0.0, |m: f64, (a, b)| {
        assert!(a.is_finite(), "not finite: {a}");
        m.max((a - b).abs())
    });
    if scale > 0.0 { error / scale } else { error }
}

/// Limits of the relative error of outputs and of gradients in f32.
pub const LIMITS: (f64, f64) = (1e-5, 1e-4);

/// Compares outputs to `limits.0` and gradients to `limits.1`.
pub fn assert_close(found: &Results, expected: &Results, limits: (f64, f64), what: &str) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let error = relative_error(found, expected);
        let limit = if name.starts_with('d') {
            limits.1
        } else {
            limits.0
        };
        assert!(error < limit, "{what}, {name}: relative error {error:e}");
    }
}
