//! The WKV-7 operator, the one recurrence of the project.
//!
//! Per batch row and head, with `S` of shape `[value, key]`, `w = exp(log_w)` and row vectors per token
//! (RWKV-7, arXiv 2503.14456; official code: `RWKV-v7/train_temp`):
//!
//! ```text
//! sa_t = S_{t-1} a_t
//! S_t  = S_{t-1} diag(w_t) + sa_t b_tᵀ + v_t k_tᵀ
//! y_t  = S_t r_t
//! ```
//!
//! | name | here | RWKV-7 passes | shape |
//! |---|---|---|---|
//! | r | receptance | r | `[batch, time, heads, key]` |
//! | log_w | log of the decay, ≤ 0 | -e^(-1/2) σ(·) | `[batch, time, heads, key]` |
//! | k | replacement key | k ⊙ (1 + (a - 1) ⊙ k_a) | `[batch, time, heads, key]` |
//! | v | value | v | `[batch, time, heads, value]` |
//! | a | removal direction | -κ̂ | `[batch, time, heads, key]` |
//! | b | removal weight | κ̂ ⊙ a | `[batch, time, heads, key]` |
//! | S0 | state before the first token | carried | `[batch, heads, value, key]` |
//!
//! Every later read of the states, [`sse`], is of queries `x` that are known only after y: `z_t = S_t x_t`, as y reads, or
//! the other way round, `z_t = x_t S_t`; see [`Side`].
//!
//! Three forms compute it. [`oracle`], token by token, is what the others are tested against. [`chunked`] does the same with
//! matrix products over chunks of tokens, in plain tensor operations. The third is a custom operation with hand-written
//! gradients for the CPU and for GPUs. [`wkv7`] takes the custom one for f32 and half precision where there is one, and the
//! chunked one elsewhere; the environment variable `RWKV7_OP` set to `chunked` or `oracle` overrides that, to find out
//! whether a driver computes the custom operation wrongly, and `packed` makes GPUs compute it as they do in browsers.

mod backend;
pub mod chunked;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
pub mod oracle;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::OnceLock;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// Inputs of the operator, shapes as in the [module documentation](self).
#[derive(Clone, Debug)]
pub struct Wkv7Input {
    /// Receptance, `[batch, time, heads, key]`.
    pub r: Tensor<4>,
    /// Log decay, `[batch, time, heads, key]`.
    pub log_w: Tensor<4>,
    /// Replacement key, `[batch, time, heads, key]`.
    pub k: Tensor<4>,
    /// Value, `[batch, time, heads, value]`.
    pub v: Tensor<4>,
    /// Removal direction -κ̂, `[batch, time, heads, key]`.
    pub a: Tensor<4>,
    /// Removal weight κ̂ ⊙ a, `[batch, time, heads, key]`.
    pub b: Tensor<4>,
}

impl Wkv7Input {
    /// Every tensor with its name.
    pub fn named(&self) -> [(&'static str, &Tensor<4>); 6] {
        [
            ("r", &self.r),
            ("log_w", &self.log_w),
            ("k", &self.k),
            ("v", &self.v),
            ("a", &self.a),
            ("b", &self.b),
        ]
    }

    /// The same with every tensor changed by `f`.
    pub fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self {
            r: f(self.r),
            log_w: f(self.log_w),
            k: f(self.k),
            v: f(self.v),
            a: f(self.a),
            b: f(self.b),
        }
    }
}

/// Along which axis of the state a query is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// `z = x S`: x lies in value space, z in key space, where decay and removal key act as well. Eq. 1 of Meta-State as it
    /// is written.
    Value,
    /// `z = S x`: x lies in key space, as the receptance does, and z in value space.
    Key,
}

/// What [`wkv7_traced`] leaves for reads of the states it went through.
#[derive(Clone, Debug)]
pub struct Trace(Form);

#[derive(Clone, Debug)]
enum Form {
    Custom(Box<backend::Trace>),
    Chunked(Box<chunked::Trace>),
    Oracle(Box<Tensor<5>>),
}

/// Which form computes the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Custom,
    Chunked,
    Oracle,
}

impl Choice {
    fn of(input: &Wkv7Input) -> Self {
        if let Some(asked) = Self::asked() {
            return asked;
        }
        let time = input.r.dims()[1];
        if input.r.dtype() != DType::F64 && backend::supports(input) {
            Self::Custom
        } else if time == 1 {
            Self::Oracle
        } else {
            Self::Chunked
        }
    }

    /// What the environment variable says.
    fn asked() -> Option<Self> {
        static ASKED: OnceLock<Option<Choice>> = OnceLock::new();
        *ASKED.get_or_init(|| match std::env::var("RWKV7_OP").as_deref() {
            Ok("chunked") => Some(Self::Chunked),
            Ok("oracle") => Some(Self::Oracle),
            Ok("custom" | "packed") | Err(_) => None,
            Ok(other) => {
                panic!("RWKV7_OP is `{other}`, expected custom, packed, chunked or oracle")
            }
        })
    }
}

/// Whether the environment variable asks for GPU kernels with few storage buffers, as browsers need them.
#[cfg(feature = "gpu")]
fn packed_is_asked() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var("RWKV7_OP").is_ok_and(|asked| asked == "packed"))
}

/// Whether nobody asked for plain tensor operations.
#[cfg(feature = "flex")]
pub(crate) fn custom_is_allowed() -> bool {
    Choice::asked().is_none()
}

/// Runs the WKV-7 recurrence: returns `y [batch, time, heads, value]` and the state after the last token
/// `[batch, heads, value, key]`.
///
/// The state and all sums are f32 (f64 for f64 inputs); `y` comes back in the dtype of `v`. Half-precision inputs are
/// widened; where all but `log_w` share a type that a GPU computes with, within the kernels. The decay is passed as its
/// logarithm because a decay near 1 does not survive in half precision. Gradients flow into all seven inputs, from y and
/// from the state.
///
/// # Panics
///
/// If shapes, dtypes or devices do not fit; the message names the input.
pub fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    check(&input, &s0);
    let dtype = input.v.dtype();
    let choice = Choice::of(&input);
    let input = if choice == Choice::Custom && is_read_in_half(&input) {
        Wkv7Input {
            log_w: widen(input.log_w),
            ..input
        }
    } else {
        input.map(widen)
    };
    let s0 = narrow(s0, input.log_w.dtype());
    let (y, state) = match choice {
        Choice::Custom => backend::wkv7(input, s0),
        Choice::Chunked => {
            let chunk = chunked::chunk_length(input.r.dims()[1]);
            chunked::wkv7(input, s0, chunk)
        }
        Choice::Oracle => oracle::wkv7(input, s0),
    };
    (narrow(y, dtype), state)
}

/// Whether all but the decay are of one type that the custom operation reads as it is.
fn is_read_in_half(input: &Wkv7Input) -> bool {
    let Wkv7Input { r, k, v, a, b, .. } = input;
    let dtype = r.dtype();
    [k, v, a, b].into_iter().all(|x| x.dtype() == dtype) && backend::reads_half(dtype, &r.device())
}

/// The removal key in the half precision of r, where the custom operation reads that as it is: official kernels take it so too.
pub(crate) fn with_narrow_keys(input: Wkv7Input) -> Wkv7Input {
    let dtype = input.r.dtype();
    if !backend::reads_half(dtype, &input.r.device()) {
        return input;
    }
    Wkv7Input {
        a: narrow(input.a, dtype),
        b: narrow(input.b, dtype),
        ..input
    }
}

/// [`wkv7`], and what [`sse`] needs to read the states it goes through. Half-precision inputs are widened before it, so
/// that what is read keeps the precision of the state.
///
/// # Panics
///
/// As [`wkv7`].
pub fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, Trace) {
    check(&input, &s0);
    let dtype = input.v.dtype();
    let input = input.map(widen);
    let s0 = narrow(s0, input.r.dtype());
    let (y, state, form) = match Choice::of(&input) {
        Choice::Custom => {
            let (y, state, trace) = backend::wkv7_traced(input, s0);
            (y, state, Form::Custom(Box::new(trace)))
        }
        Choice::Chunked => {
            let chunk = chunked::chunk_length(input.r.dims()[1]);
            let (y, state, trace) = chunked::wkv7_traced(input, s0, chunk);
            (y, state, Form::Chunked(Box::new(trace)))
        }
        Choice::Oracle => {
            let (y, state, states) = oracle::wkv7_traced(input, s0);
            (y, state, Form::Oracle(Box::new(states)))
        }
    };
    (narrow(y, dtype), state, Trace(form))
}

/// Reads the state after every token.
///
/// | side | | `x` | result |
/// |---|---|---|---|
/// | value | `z_t = x_t S_t` | `[batch, time, heads, value]` | `[batch, time, heads, key]` |
/// | key | `z_t = S_t x_t` | `[batch, time, heads, key]` | `[batch, time, heads, value]` |
///
/// The Self-State Encoder of Meta-State (arXiv 2504.08247, eq. 1) before its nonlinearity. Computed in the dtype of the
/// traced call, returned in that of `x`. Gradients flow into `x` and, through the trace, into every input of the traced
/// call, in the one backward pass that it has anyway.
///
/// # Panics
///
/// If shape, dtype or device of `x` do not fit the traced call.
pub fn sse(x: Tensor<4>, trace: &Trace, side: Side) -> Tensor<4> {
    let dtype = x.dtype();
    let (expected, inner, device) = trace.query(side);
    let found = x.dims();
    assert!(
        found == expected,
        "sse: x has shape {found:?}, the traced call expects {expected:?}"
    );
    let found = x.device();
    assert!(
        found == device,
        "sse: x is on {found:?}, the traced call on {device:?}"
    );
    let x = widen(x);
    assert!(
        x.dtype() == inner,
        "sse: x is {dtype:?}, the traced call computed in {inner:?}; f64 goes with f64 only"
    );
    let z = match &trace.0 {
        Form::Custom(trace) => backend::sse(x, trace, side),
        Form::Chunked(trace) => chunked::sse(x, trace, side),
        Form::Oracle(states) => oracle::sse(x, states, side),
    };
    narrow(z, dtype)
}

impl Trace {
    /// Shape, dtype and device of a query.
    fn query(&self, side: Side) -> ([usize; 4], DType, Device) {
        match &self.0 {
            Form::Custom(trace) => {
                let like = match side {
                    Side::Value => &trace.input.v,
                    Side::Key => &trace.input.k,
                };
                (like.dims(), like.dtype(), like.device())
            }
            Form::Chunked(trace) => trace.query(side),
            Form::Oracle(states) => {
                let [batch, time, heads, value, key] = states.dims();
                let size = match side {
                    Side::Value => value,
                    Side::Key => key,
                };
                let shape = [batch, time, heads, size];
                (shape, states.dtype(), states.device())
            }
        }
    }
}

/// f16 and bf16 become f32; f32 and f64 stay.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}

/// `x` in this dtype.
pub fn narrow<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype {
        x
    } else {
        x.cast(FloatDType::from(dtype))
    }
}

fn check(input: &Wkv7Input, s0: &Tensor<4>) {
    let [batch, time, heads, key] = input.r.dims();
    assert!(time > 0, "wkv7: the sequence is empty");
    assert!(
        batch > 0 && heads > 0 && key > 0,
        "wkv7: r has shape {:?}, an axis of which is empty",
        input.r.dims()
    );
    let value = input.v.dims()[3];
    let wide = matches!(input.r.dtype(), DType::F64);
    let device = input.r.device();
    for (name, tensor) in input.named() {
        let size = if name == "v" { value } else { key };
        let (found, expected) = (tensor.dims(), [batch, time, heads, size]);
        assert!(
            found == expected,
            "wkv7: {name} has shape {found:?}, r has {:?}",
            [batch, time, heads, key]
        );
        let found = tensor.dtype();
        assert!(
            matches!(found, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
                && (found == DType::F64) == wide,
            "wkv7: {name} is {found:?}, r is {:?}; expected f32, f16 or bf16, or f64 for all",
            input.r.dtype()
        );
        let found = tensor.device();
        assert!(
            found == device,
            "wkv7: {name} is on {found:?}, r on {device:?}"
        );
    }
    let expected = [batch, heads, value, key];
    let found = s0.dims();
    assert!(
        found == expected,
        "wkv7: S0 has shape {found:?}, expected {expected:?}"
    );
    let found = s0.device();
    assert!(found == device, "wkv7: S0 is on {found:?}, r on {device:?}");
}
