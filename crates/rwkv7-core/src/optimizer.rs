//! Which parameters are trained how: RWKV-7's groups, part of the model because other groups train worse.
//!
//! | group | members | learning rate | weight decay |
//! |---|---|---|---|
//! | decay bias | `att.w0` | twice the base | 0 |
//! | matrices | embedding, head and the weights of all linear layers | base | as configured |
//! | the rest | low-rank factors, token-shift mixes, biases, norms | base | 0 |
//!
//! Source: `RWKV-v7/train_temp/src/model.py`, `configure_optimizers`.

use burn::{
    module::ParamGroup,
    optim::{AdamWConfig, ModuleOptimizer},
};
use serde::{Deserialize, Serialize};

/// Factor on the learning rate of [`decay_bias`].
pub const DECAY_BIAS_RATE: f64 = 2.0;

/// AdamW as RWKV-7 is trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f32,
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment. So small that zero-initialised factors start with full-size steps.
    pub epsilon: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            weight_decay: 0.1,
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-18,
        }
    }
}

impl OptimizerConfig {
    /// The optimizer with its weight-decay groups. Combine it with a learning-rate group for [`decay_bias`].
    pub fn init(&self) -> ModuleOptimizer {
        let adam = |weight_decay: f32| {
            AdamWConfig::new()
                .with_beta_1(self.beta_1)
                .with_beta_2(self.beta_2)
                .with_epsilon(self.epsilon)
                .with_weight_decay(weight_decay)
        };
        adam(0.0)
            .init()
            .with_group(matrices(), adam(self.weight_decay).build(), None)
    }
}

/// Parameters with weight decay: norms call their scale `gamma`, so only embedding and linear layers have a `weight`.
pub fn matrices() -> ParamGroup {
    ParamGroup::from_predicate(".weight")
}

/// Parameters trained at [`DECAY_BIAS_RATE`] times the learning rate.
pub fn decay_bias() -> ParamGroup {
    ParamGroup::from_predicate(".att.w0")
}
