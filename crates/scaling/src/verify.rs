//! How far apart two models' outputs are.

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use rwkv7_core::{Rwkv7, layers::ChannelMixer};
use serde::Serialize;

/// Largest difference of a lossless growth in f32, in standard deviations of the logits.
const TOLERANCE: f64 = 1e-3;

/// The distance of two models' logits, over the vocabulary of the smaller one.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Difference {
    /// Largest difference of a logit, in standard deviations of the smaller model's logits; NaN if these have none in f32.
    pub largest: f64,
    /// Mean difference, in the same unit.
    pub mean: f64,
    /// Mean Kullback-Leibler divergence of the larger model's next-token distribution from the smaller one's, in nats.
    pub kl: f64,
    /// Mean probability that the larger model gives to tokens that the smaller one does not know.
    pub new_tokens: f64,
}

impl Difference {
    /// Whether the difference is one of rounding only: no logit differs by more than 0.001 standard deviations.
    pub fn is_lossless(&self) -> bool {
        // NaN is not lossless either.
        self.largest <= TOLERANCE
    }

    /// Compares two models on `tokens [batch, time]`, each read from an empty state.
    pub fn between<A: ChannelMixer, B: ChannelMixer>(
        small: &Rwkv7<A>,
        large: &Rwkv7<B>,
        tokens: Tensor<2, Int>,
    ) -> Self {
        let (expected, _) = small.forward(tokens.clone(), None);
        let (found, _) = large.forward(tokens, None);
        Self::of(expected, found)
    }

    /// Compares the smaller and the larger model's logits `[batch, time, V]`.
    pub fn of(expected: Tensor<3>, found: Tensor<3>) -> Self {
        let [vocab, all] = [&expected, &found].map(|logits| logits.dims()[2]);
        let new_tokens = match all - vocab {
            0 => 0.0,
            new => {
                let shares = activation::softmax(found.clone(), 2).narrow(2, vocab, new);
                f64::from(shares.sum_dim(2).mean().into_scalar::<f32>())
            }
        };
        let found = found.narrow(2, 0, vocab);
        let number = |x: Tensor<1>| f64::from(x.into_scalar::<f32>());
        let deviation = {
            let centred = expected.clone() - expected.clone().mean().reshape([1, 1, 1]);
            number(centred.square().mean())
                .sqrt()
                .max(f64::MIN_POSITIVE)
        };
        let gap = (found.clone() - expected.clone()).abs();
        let (largest, mean) = (number(gap.clone().max()), number(gap.mean()));
        let [p, q] = [expected, found].map(|logits| activation::log_softmax(logits, 2));
        let kl = number((p.clone().exp() * (p - q)).sum_dim(2).mean());
        Self {
            // A maximum may pass over NaN. Logits whose squares f32 cannot hold leave no unit to measure in.
            largest: if mean.is_nan() || deviation.is_infinite() {
                f64::NAN
            } else {
                largest / deviation
            },
            mean: mean / deviation,
            // Rounding makes the divergence of equal distributions negative.
            kl: if kl < 0.0 { 0.0 } else { kl },
            new_tokens,
        }
    }
}

/// 64 tokens from all over the vocabulary, `[1, 64]`.
pub(crate) fn spread_tokens(vocab_size: usize, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = (0..64).map(|i| (i * 7919 % vocab_size) as i32).collect();
    Tensor::from_data(TensorData::new(ids, [1, 64]), device)
}
