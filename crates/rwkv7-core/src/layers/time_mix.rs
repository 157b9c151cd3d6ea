//! Time mixing of RWKV-7: token shift, projections, the [`wkv7`] recurrence, group norm, bonus and gate.
//!
//! With `h = LN1(x)`, `Δ_t = h_{t-1} - h_t`, six mixes `x_i = h + Δ ⊙ μ_i` and all products row-wise:
//!
//! ```text
//! r, k, v = W_r x_r, W_k x_k, W_v x_v
//! ln w    = -e^(-1/2) σ(w0 + tanh(x_w w1) w2)
//! a       = σ(a0 + x_a a1 a2)
//! g       = σ(x_g g1) g2
//! v       = v + (v_first - v) ⊙ σ(v0 + x_v v1 v2)          layers above 0
//! κ̂       = normalise(k ⊙ k_k) per head
//! k̃       = k ⊙ (1 + (a - 1) ⊙ k_a)
//! y       = wkv7(r, ln w, k̃, v, -κ̂, κ̂ ⊙ a)
//! out     = W_o ((groupnorm(y) + (Σ r ⊙ k̃ ⊙ r_k) v) ⊙ g)
//! ```
//!
//! Source: official training code, `RWKV-v7/train_temp/src/model.py`; arXiv 2503.14456.

use burn::{
    module::{Module, Param},
    nn::{GroupNorm, Linear},
    tensor::{Device, Tensor, activation},
};

use crate::operator::{Wkv7Input, narrow, widen, wkv7};

use super::{Span, project, token_shift, zero_state};

/// e^(-1/2): the largest decay rate per token, `w ≥ exp(-DECAY_SCALE) = 0.545`.
const DECAY_SCALE: f64 = 0.606_530_659_712_633_4;

/// Below this length a key is not normalised but scaled by its inverse, as in the official code.
const MIN_KEY_NORM: f64 = 1e-12;

/// Time mixing. Fields are named like the official checkpoint's tensors `blocks.{i}.att.…`.
#[derive(Module, Debug)]
pub struct TimeMix {
    /// Token-shift mix of the receptance, `[1, 1, C]`.
    pub x_r: Param<Tensor<3>>,
    /// Token-shift mix of the decay, `[1, 1, C]`.
    pub x_w: Param<Tensor<3>>,
    /// Token-shift mix of the key, `[1, 1, C]`.
    pub x_k: Param<Tensor<3>>,
    /// Token-shift mix of the value, `[1, 1, C]`.
    pub x_v: Param<Tensor<3>>,
    /// Token-shift mix of the in-context learning rate, `[1, 1, C]`.
    pub x_a: Param<Tensor<3>>,
    /// Token-shift mix of the gate, `[1, 1, C]`.
    pub x_g: Param<Tensor<3>>,
    /// Decay bias, `[1, 1, C]`.
    pub w0: Param<Tensor<3>>,
    /// Decay, low rank in, `[C, Dw]`.
    pub w1: Param<Tensor<2>>,
    /// Decay, low rank out, `[Dw, C]`.
    pub w2: Param<Tensor<2>>,
    /// In-context learning rate bias, `[1, 1, C]`.
    pub a0: Param<Tensor<3>>,
    /// In-context learning rate, low rank in, `[C, Da]`.
    pub a1: Param<Tensor<2>>,
    /// In-context learning rate, low rank out, `[Da, C]`.
    pub a2: Param<Tensor<2>>,
    /// Value residual bias, `[1, 1, C]`; none in layer 0.
    pub v0: Option<Param<Tensor<3>>>,
    /// Value residual, low rank in, `[C, Dv]`; none in layer 0.
    pub v1: Option<Param<Tensor<2>>>,
    /// Value residual, low rank out, `[Dv, C]`; none in layer 0.
    pub v2: Option<Param<Tensor<2>>>,
    /// Gate, low rank in, `[C, Dg]`.
    pub g1: Param<Tensor<2>>,
    /// Gate, low rank out, `[Dg, C]`.
    pub g2: Param<Tensor<2>>,
    /// Scale of the removal key, `[1, 1, C]`.
    pub k_k: Param<Tensor<3>>,
    /// How much the in-context learning rate scales the replacement key, `[1, 1, C]`.
    pub k_a: Param<Tensor<3>>,
    /// Weight of the current token's bonus, `[heads, head_size]`.
    pub r_k: Param<Tensor<2>>,
    /// Receptance, `C -> C`.
    pub receptance: Linear,
    /// Key, `C -> C`.
    pub key: Linear,
    /// Value, `C -> C`.
    pub value: Linear,
    /// Output, `C -> C`.
    pub output: Linear,
    /// Group norm over each head.
    pub ln_x: GroupNorm,
}

/// What time mixing carries from token to token.
#[derive(Clone, Debug)]
pub struct TimeMixState {
    /// Normalised input of the last token, `[batch, C]`.
    pub shift: Tensor<2>,
    /// State of the recurrence, `[batch, heads, value, key]`, f32.
    pub wkv: Tensor<4>,
}

/// What a second half may read of the time mixing before it, for the same tokens.
///
/// All per-token tensors are `[batch, time, heads, head_size]`; at padding the step they describe leaves the state
/// as it is.
#[derive(Clone, Debug)]
pub struct TimeMixTrace {
    /// ln w, between -e^(-1/2) and 0.
    pub log_decay: Tensor<4>,
    /// κ̂, of length 1 per head.
    pub removal_key: Tensor<4>,
    /// a ⊙ κ̂: the removal key weighted by the in-context learning rate a in (0, 1).
    pub removal_weight: Tensor<4>,
    /// k̃.
    pub replacement_key: Tensor<4>,
    /// v, after the value residual.
    pub value: Tensor<4>,
    /// State before the first token, `[batch, heads, value, key]`.
    pub state_before: Tensor<4>,
    /// State after the last token, `[batch, heads, value, key]`.
    pub state_after: Tensor<4>,
}

impl TimeMix {
    /// Mixes `h = LN1(x) [batch, time, C]` over time; returns the contribution to the residual stream `[batch, time, C]`,
    /// the state after the last real token, and the trace for the second half.
    pub fn forward(
        &self,
        h: Tensor<3>,
        value_first: &mut Option<Tensor<3>>,
        span: &Span,
        state: TimeMixState,
    ) -> (Tensor<3>, TimeMixState, TimeMixTrace) {
        let [batch, time, width] = h.dims();
        let [heads, head_size] = self.r_k.dims();
        let split = |x: Tensor<3>| x.reshape([batch, time, heads, head_size]);
        let dtype = h.dtype();

        let (delta, shift) = token_shift(&h, state.shift, span);
        let mix = |mu: &Param<Tensor<3>>| h.clone() + delta.clone() * mu.val();
        let x_v = mix(&self.x_v);

        let r = project(&self.receptance, mix(&self.x_r));
        let k = project(&self.key, mix(&self.x_k));
        let v = project(&self.value, x_v.clone());

        let z = low_rank(mix(&self.x_w), &self.w1, Tensor::tanh, &self.w2) + self.w0.val();
        let log_w = activation::sigmoid(widen(z)) * -DECAY_SCALE;
        let a = low_rank(mix(&self.x_a), &self.a1, |x| x, &self.a2) + self.a0.val();
        let a = activation::sigmoid(a);
        let gate = low_rank(mix(&self.x_g), &self.g1, activation::sigmoid, &self.g2);
        let v = match (&self.v0, &self.v1, &self.v2, value_first.as_ref()) {
            (Some(v0), Some(v1), Some(v2), Some(first)) => {
                let mixed = activation::sigmoid(low_rank(x_v, v1, |x| x, v2) + v0.val());
                v.clone() + (first.clone() - v) * mixed
            }
            _ => value_first.insert(v).clone(),
        };

        let removal_key = unit(split(widen(k.clone() * self.k_k.val())));
        let k = k.clone() + k * (a.clone() - 1.0) * self.k_a.val();

        let r = split(r);
        let k = split(span.clear_padding(k));
        let v = split(span.clear_padding(v));
        let log_w = split(span.clear_padding(log_w));
        let a = split(span.clear_padding(a));
        let removal_weight = removal_key.clone() * widen(a);

        let (y, wkv) = wkv7(
            Wkv7Input {
                r: r.clone(),
                log_w: log_w.clone(),
                k: k.clone(),
                v: v.clone(),
                a: -removal_key.clone(),
                b: removal_weight.clone(),
            },
            state.wkv.clone(),
        );

        let y = self.ln_x.forward(y.reshape([batch * time, width]));
        let y = y.reshape([batch, time, heads, head_size]);
        let bonus = (widen(r * k.clone())
            * widen(self.r_k.val()).reshape([1, 1, heads, head_size]))
        .sum_dim(3);
        let y = y + narrow(bonus, dtype) * v.clone();
        let out = project(&self.output, y.reshape([batch, time, width]) * gate);

        let trace = TimeMixTrace {
            log_decay: log_w,
            removal_key,
            removal_weight,
            replacement_key: k,
            value: v,
            state_before: state.wkv,
            state_after: wkv.clone(),
        };
        (out, TimeMixState { shift, wkv }, trace)
    }

    /// The state before the first token.
    pub fn zero_state(&self, batch: usize, device: &Device) -> TimeMixState {
        let [heads, head_size] = self.r_k.shape().dims();
        TimeMixState {
            shift: zero_state([batch, heads * head_size], device),
            wkv: zero_state([batch, heads, head_size, head_size], device),
        }
    }
}

/// `inner(x first) second` for `x [batch, time, C]` and factors `[C, rank]`, `[rank, C]`.
fn low_rank(
    x: Tensor<3>,
    first: &Param<Tensor<2>>,
    inner: impl Fn(Tensor<2>) -> Tensor<2>,
    second: &Param<Tensor<2>>,
) -> Tensor<3> {
    let [batch, time, width] = x.dims();
    let hidden = inner(x.reshape([batch * time, width]).matmul(first.val()));
    hidden.matmul(second.val()).reshape([batch, time, width])
}

/// `x / max(|x|, 1e-12)` over the last axis; the maximum is taken of the squares, so that a zero has a finite gradient.
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x
        .clone()
        .square()
        .sum_dim(3)
        .clamp_min(MIN_KEY_NORM * MIN_KEY_NORM)
        .sqrt();
    x / length
}
