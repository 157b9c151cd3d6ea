//! Choosing the next token from logits.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

/// Settings of a [`Sampler`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Divisor of the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens that together hold this much probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Subtracted from the logit of every token that occurred.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each of its occurrences.
    pub frequency_penalty: f32,
    /// Factor on the count of occurrences after each token.
    pub penalty_decay: f32,
    /// Seed of the random choice. The same seed draws the same tokens on every machine.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_decay: 0.996,
            seed: 0,
        }
    }
}

/// A setting outside its range, or logits from which no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A setting outside its range.
    #[error("sampling: {name} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: f32,
        /// The allowed range.
        expected: &'static str,
    },
    /// The logits hold NaN, or no finite value.
    #[error("the model's logits are not numbers ({found}); its weights or its state are damaged")]
    Logits {
        /// The values found.
        found: &'static str,
    },
}

/// Draws tokens and counts them for the penalties.
///
/// ```
/// use rwkv7_core::sampling::{Sampler, SamplerConfig};
///
/// let config = SamplerConfig { temperature: 0.0, ..Default::default() };
/// let mut sampler = Sampler::new(config)?;
/// assert_eq!(sampler.sample(&[0.0, 3.0, 1.0])?, 1);
/// # Ok::<(), rwkv7_core::sampling::SamplingError>(())
/// ```
pub struct Sampler {
    config: SamplerConfig,
    rng: StdRng,
    occurred: HashMap<u32, f32>,
}

impl Sampler {
    /// A sampler that has seen nothing.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Setting`].
    pub fn new(config: SamplerConfig) -> Result<Self, SamplingError> {
        let check = |name, found: f32, ok: bool, expected| {
            if ok {
                Ok(())
            } else {
                Err(SamplingError::Setting {
                    name,
                    found,
                    expected,
                })
            }
        };
        let SamplerConfig {
            temperature,
            top_p,
            presence_penalty,
            frequency_penalty,
            penalty_decay,
            ..
        } = config;
        check(
            "temperature",
            temperature,
            temperature >= 0.0 && temperature.is_finite(),
            "0 or more",
        )?;
        check(
            "top_p",
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "more than 0 and at most 1",
        )?;
        check(
            "presence_penalty",
            presence_penalty,
            presence_penalty.is_finite(),
            "a number",
        )?;
        check(
            "frequency_penalty",
            frequency_penalty,
            frequency_penalty.is_finite(),
            "a number",
        )?;
        check(
            "penalty_decay",
            penalty_decay,
            (0.0..=1.0).contains(&penalty_decay),
            "from 0 to 1",
        )?;
        let rng = StdRng::seed_from_u64(config.seed);
        Ok(Self {
            config,
            rng,
            occurred: HashMap::new(),
        })
    }

    /// Draws a token for `logits [V]` and counts it as occurred.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Logits`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        if logits.iter().any(|l| l.is_nan()) {
            return Err(SamplingError::Logits { found: "NaN" });
        }
        let mut scored: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .map(|(i, &l)| (i as u32, l))
            .collect();
        for (&id, &count) in &self.occurred {
            if let Some((_, logit)) = scored.get_mut(id as usize) {
                *logit -= self.config.presence_penalty + self.config.frequency_penalty * count;
            }
        }
        let best = scored
            .iter()
            .fold((0, f32::NEG_INFINITY), |best, &(id, logit)| {
                if logit > best.1 { (id, logit) } else { best }
            });
        if !best.1.is_finite() {
            return Err(SamplingError::Logits {
                found: "no finite value",
            });
        }
        let id = if self.config.temperature == 0.0 {
            best.0
        } else {
            self.draw(scored, best.1)
        };
        for count in self.occurred.values_mut() {
            *count *= self.config.penalty_decay;
        }
        *self.occurred.entry(id).or_insert(0.0) += 1.0;
        Ok(id)
    }

    fn draw(&mut self, mut scored: Vec<(u32, f32)>, best: f32) -> u32 {
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = self.config.top_k;
        if top_k > 0 && top_k < scored.len() {
            scored.select_nth_unstable_by(top_k - 1, by_logit);
            scored.truncate(top_k);
        }
        // From here on, probabilities up to a factor.
        for (_, score) in &mut scored {
            *score = ((*score - best) / self.config.temperature).exp();
        }
        if self.config.top_p < 1.0 {
            // A token of less than this probability can only be reached when all others have been taken.
            let total: f32 = scored.iter().map(|s| s.1).sum();
            let least = total * (1.0 - self.config.top_p) / scored.len() as f32;
            scored.retain(|s| s.1 >= least);
            scored.sort_unstable_by(by_logit);
            let mut kept = 0.0;
            let enough = scored.iter().position(|s| {
                kept += s.1;
                kept >= total * self.config.top_p
            });
            scored.truncate(enough.map_or(scored.len(), |last| last + 1));
        }
        let total: f32 = scored.iter().map(|s| s.1).sum();
        let mut left = self.rng.random::<f32>() * total;
        for &(id, weight) in &scored {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        // Rounding used up the last of the probability: the likeliest token.
        scored
            .iter()
            .fold(scored[0], |a, &b| if b.1 > a.1 { b } else { a })
            .0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn counts(config: SamplerConfig, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(config).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn close(found: &[f64], expected: &[f64]) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 0.02, "{found:?}, expected {expected:?}");
        }
    }

    const LOGITS: [f32; 4] = [0.0, 1.0, 2.0, -1.0];

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        logits.iter().map(|l| l.exp() / total).collect()
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        close(
            &counts(SamplerConfig::default(), &LOGITS, 20_000),
            &softmax(&[0.0, 1.0, 2.0, -1.0]),
        );
        let cooler = SamplerConfig {
            temperature: 0.5,
            ..Default::default()
        };
        close(
            &counts(cooler, &LOGITS, 20_000),
            &softmax(&[0.0, 2.0, 4.0, -2.0]),
        );
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        let two = softmax(&[1.0, 2.0]);
        let expected = [0.0, two[0], two[1], 0.0];
        close(
            &counts(
                SamplerConfig {
                    top_k: 2,
                    ..Default::default()
                },
                &LOGITS,
                20_000,
            ),
            &expected,
        );
        // 0.64 + 0.24 is the first sum of at least 0.8.
        close(
            &counts(
                SamplerConfig {
                    top_p: 0.8,
                    ..Default::default()
                },
                &LOGITS,
                20_000,
            ),
            &expected,
        );
        close(
            &counts(
                SamplerConfig {
                    top_p: 0.1,
                    ..Default::default()
                },
                &LOGITS,
                100,
            ),
            &[0.0, 0.0, 1.0, 0.0],
        );
        close(
            &counts(
                SamplerConfig {
                    top_k: 1,
                    ..Default::default()
                },
                &LOGITS,
                100,
            ),
            &[0.0, 0.0, 1.0, 0.0],
        );
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_best() {
        let config = SamplerConfig {
            temperature: 0.0,
            ..Default::default()
        };
        assert_eq!(
            Sampler::new(config).unwrap().sample(&[0.0, 3.0, 3.0]),
            Ok(1)
        );
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerConfig {
                seed,
                ..Default::default()
            })
            .unwrap();
            (0..50)
                .map(|_| sampler.sample(&LOGITS).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn penalties_drive_repetition_away() {
        let config = SamplerConfig {
            temperature: 0.0,
            presence_penalty: 1.5,
            ..Default::default()
        };
        let mut sampler = Sampler::new(config).unwrap();
        let drawn: Vec<u32> = (0..3).map(|_| sampler.sample(&LOGITS).unwrap()).collect();
        assert_eq!(drawn, [2, 1, 2]);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut sampler = Sampler::new(SamplerConfig::default()).unwrap();
        assert!(sampler.sample(&[0.0, f32::NAN]).is_err());
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3]).is_err());
        let error = Sampler::new(SamplerConfig {
            top_p: 0.0,
            ..Default::default()
        })
        .err()
        .unwrap();
        assert_eq!(
            error.to_string(),
            "sampling: top_p is 0, expected more than 0 and at most 1"
        );
    }
}
