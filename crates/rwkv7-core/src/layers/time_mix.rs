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
//! The lines of ln w, a, κ̂ and k̃ are the operation `key_preparation`, and `out` before W_o is `read_out`.
//!
//! Source: official training code, `RWKV-v7/train_temp/src/model.py`; arXiv 2503.14456.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::{
    MatmulPrecision,
    ops::{
        self, KeyPreparation, Keys, ReadOut, Trace, Wkv7Input, with_narrow_keys, wkv7, wkv7_traced,
    },
};

use super::{LayerNorm, Lengths, check_state, last_token, project, zero_state};

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
    pub ln_x: LayerNorm,
    /// Number of channels of each head, from the first, that the group norm is taken over; all channels if none.
    #[module(skip)]
    pub norm_prefix: Option<usize>,
    /// Arithmetic of the products with the weight matrices.
    #[module(skip)]
    pub precision: MatmulPrecision,
}

/// State of [`TimeMix`].
#[derive(Clone, Debug)]
pub struct TimeMixState {
    /// Normalised input of the last token, `[batch, C]`.
    pub shift: Tensor<2>,
    /// State of the recurrence, `[batch, heads, value, key]`, f32.
    pub wkv: Tensor<4>,
}

/// The results of time mixing that the channel mixer of the same block may read, for the same tokens.
///
/// At padding the input describes a step that does not change the state.
#[derive(Clone, Debug)]
pub struct TimeMixTrace {
    /// Input of the recurrence, per token `[batch, time, heads, head_size]`: receptance r, log decay ln w, replacement
    /// key k̃, value v, removal direction -κ̂ and removal weight κ̂ ⊙ a.
    pub input: Wkv7Input,
    /// State before the first token, `[batch, heads, value, key]`.
    pub state_before: Tensor<4>,
    /// State after the last token, `[batch, heads, value, key]`.
    pub state_after: Tensor<4>,
    /// The states in between, for [`read_states`](crate::ops::read_states); where
    /// [`reads_states`](super::ChannelMixer::reads_states) asks for them.
    pub states: Option<Trace>,
    /// The in-context learning rate before its bias and sigmoid, `[batch, time, C]`.
    pub rate: Tensor<3>,
    /// Its bias, `[1, 1, C]`.
    pub rate_bias: Tensor<3>,
}

impl TimeMixTrace {
    /// Removal direction -ẑ and removal weight ẑ ⊙ a of a recurrence that writes along `z [batch, time, heads, n]`, with
    /// ẑ = z/|z| and the in-context learning rate a of the first n channels of each head; `detached` gives the rate no
    /// gradient.
    pub fn removal_key(&self, z: Tensor<4>, detached: bool) -> (Tensor<4>, Tensor<4>) {
        let (rate, bias) = (self.rate.clone(), self.rate_bias.clone());
        let (rate, bias) = match detached {
            true => (rate.detach(), bias.detach()),
            false => (rate, bias),
        };
        ops::removal_key(z, rate, bias)
    }
}

impl TimeMix {
    /// Mixes `h = LN1(x) [batch, time, C]` over time; returns the contribution to the residual stream `[batch, time, C]`,
    /// the state after the last real token, and the trace for the channel mixer; `traced` with the states in between.
    pub fn forward(
        &self,
        h: Tensor<3>,
        value_first: &mut Option<Tensor<3>>,
        lengths: &Lengths,
        state: TimeMixState,
        traced: bool,
    ) -> (Tensor<3>, TimeMixState, TimeMixTrace) {
        let [batch, time, width] = h.dims();
        let [heads, head_size] = self.r_k.dims();
        check_state("att.shift", &state.shift, [batch, width]);
        check_state("att.wkv", &state.wkv, [batch, heads, head_size, head_size]);
        let shift = last_token(&h, &state.shift, lengths);
        let mixes = [
            &self.x_r, &self.x_w, &self.x_k, &self.x_v, &self.x_a, &self.x_g,
        ];
        let mixes = mixes.map(|mu| mu.val());
        let [x_r, x_w, x_k, x_v, x_a, x_g] = ops::six_token_shifts(h, state.shift, mixes);

        let r = project(&self.receptance, x_r, self.precision);
        let k = project(&self.key, x_k, self.precision);
        let v = project(&self.value, x_v.clone(), self.precision);
        let gate = self.low_rank(x_g, &self.g1, ops::sigmoid, &self.g2);
        let v = match (&self.v0, &self.v1, &self.v2, value_first.as_ref()) {
            (Some(v0), Some(v1), Some(v2), Some(first)) => {
                let s = self.low_rank(x_v, v1, |x| x, v2);
                ops::value_residual(v, first.clone(), s, v0.val())
            }
            _ => value_first.insert(v).clone(),
        };
        let rate = self.low_rank(x_a, &self.a1, |x| x, &self.a2);
        let keys = KeyPreparation {
            k,
            w: self.low_rank(x_w, &self.w1, ops::tanh, &self.w2),
            a: rate.clone(),
            w0: self.w0.val(),
            a0: self.a0.val(),
            k_k: self.k_k.val(),
            k_a: self.k_a.val(),
        };
        let Keys { log_w, k, a, b } = ops::key_preparation(keys, head_size);

        // At padding nothing is removed, added or forgotten.
        let clear = |x: Tensor<4>| {
            let flat = x.reshape([batch, time, width]);
            lengths
                .clear_padding(flat)
                .reshape([batch, time, heads, head_size])
        };
        let split = |x: Tensor<3>| x.reshape([batch, time, heads, head_size]);
        let input = Wkv7Input {
            r: split(r),
            log_w: clear(log_w),
            k: clear(k),
            v: split(lengths.clear_padding(v)),
            a,
            b: clear(b),
        };
        // In the trace too: who reads the states again has to see the same ones.
        let input = with_narrow_keys(input);
        let (y, wkv, states) = if traced {
            let (y, wkv, states) = wkv7_traced(input.clone(), state.wkv.clone());
            (y, wkv, Some(states))
        } else {
            let (y, wkv) = wkv7(input.clone(), state.wkv.clone());
            (y, wkv, None)
        };

        let out = ops::read_out(ReadOut {
            y,
            r: input.r.clone(),
            k: input.k.clone(),
            v: input.v.clone(),
            gate,
            r_k: self.r_k.val(),
            gamma: self.ln_x.gamma.val(),
            beta: self.ln_x.beta.val(),
            epsilon: self.ln_x.epsilon,
            prefix: self.norm_prefix,
        });
        let out = project(&self.output, out, self.precision);

        let trace = TimeMixTrace {
            input,
            state_before: state.wkv,
            state_after: wkv.clone(),
            states,
            rate,
            rate_bias: self.a0.val(),
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

    /// `inner(x first) second` for `x [batch, time, C]` and factors `[C, rank]`, `[rank, C]`.
    fn low_rank(
        &self,
        x: Tensor<3>,
        first: &Param<Tensor<2>>,
        inner: impl Fn(Tensor<2>) -> Tensor<2>,
        second: &Param<Tensor<2>>,
    ) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let product = |x, weight: &Param<Tensor<2>>| self.precision.matmul(x, weight.val());
        let hidden = inner(product(x.reshape([batch * time, width]), first));
        product(hidden, second).reshape([batch, time, width])
    }
}
