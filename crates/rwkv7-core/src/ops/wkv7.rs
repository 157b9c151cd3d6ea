//! The WKV-7 recurrence, the one of the project, and the reads of its states, for queries that are known only after y.

#[cfg(any(feature = "flex", feature = "gpu"))]
use burn::backend::DispatchDevice;
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Tensor},
};
use serde::{Deserialize, Serialize};

use super::{
    Path,
    backends::wkv7::{Wkv7Ops, Wkv7Tensors},
    chunked,
    dtype::{narrow, widen},
    multi_output::PendingGradients,
    reference,
};

/// Inputs of [`wkv7()`], which says what they are.
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
    Custom(Box<CustomTrace>),
    Chunked(Box<chunked::Trace>),
    Reference(Box<Tensor<5>>),
}

/// Runs the WKV-7 recurrence: returns `y [batch, time, heads, value]` and the state after the last token
/// `[batch, heads, value, key]`.
///
/// Per batch row and head, with `S` of shape `[value, key]`, `w = exp(log_w)` and row vectors per token
/// (RWKV-7, arXiv 2503.14456; official code: `RWKV-v7/train_temp`):
///
/// ```text
/// sa_t = S_{t-1} a_t
/// S_t  = S_{t-1} diag(w_t) + sa_t b_tᵀ + v_t k_tᵀ
/// y_t  = S_t r_t
/// ```
///
/// | name | here | RWKV-7 passes | shape |
/// |---|---|---|---|
/// | r | receptance | r | `[batch, time, heads, key]` |
/// | log_w | log of the decay, ≤ 0 | -e^(-1/2) σ(·) | `[batch, time, heads, key]` |
/// | k | replacement key | k ⊙ (1 + (a - 1) ⊙ k_a) | `[batch, time, heads, key]` |
/// | v | value | v | `[batch, time, heads, value]` |
/// | a | removal direction | -κ̂ | `[batch, time, heads, key]` |
/// | b | removal weight | κ̂ ⊙ a | `[batch, time, heads, key]` |
/// | S0 | state before the first token | carried | `[batch, heads, value, key]` |
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
    let path = Path::of_wkv7(&input);
    let input = if path == Path::Custom && is_read_in_half(&input) {
        Wkv7Input {
            log_w: widen(input.log_w),
            ..input
        }
    } else {
        input.map(widen)
    };
    let s0 = narrow(s0, input.log_w.dtype());
    let (y, state) = match path {
        Path::Custom => custom(input, s0),
        Path::Chunked => {
            let chunk = chunked::chunk_length(input.r.dims()[1]);
            chunked::wkv7(input, s0, chunk)
        }
        Path::Reference => reference::wkv7(input, s0),
    };
    (narrow(y, dtype), state)
}

/// Whether all but the decay are of one type that the custom operation reads as it is.
fn is_read_in_half(input: &Wkv7Input) -> bool {
    let Wkv7Input { r, k, v, a, b, .. } = input;
    let dtype = r.dtype();
    [k, v, a, b].into_iter().all(|x| x.dtype() == dtype) && reads_half(dtype, &r.device())
}

/// The removal key in the half precision of r, where the custom operation reads that as it is: official kernels take it so too.
pub(crate) fn with_narrow_keys(input: Wkv7Input) -> Wkv7Input {
    let dtype = input.r.dtype();
    if !reads_half(dtype, &input.r.device()) {
        return input;
    }
    Wkv7Input {
        a: narrow(input.a, dtype),
        b: narrow(input.b, dtype),
        ..input
    }
}

/// [`wkv7()`], and what [`read_states`] needs to read the states it goes through. Half-precision inputs are widened before the call, so
/// that what is read keeps the precision of the state.
///
/// # Panics
///
/// As [`wkv7()`].
pub fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, Trace) {
    check(&input, &s0);
    let dtype = input.v.dtype();
    let input = input.map(widen);
    let s0 = narrow(s0, input.r.dtype());
    let (y, state, form) = match Path::of_wkv7(&input) {
        Path::Custom => {
            let (y, state, trace) = custom_traced(input, s0);
            (y, state, Form::Custom(Box::new(trace)))
        }
        Path::Chunked => {
            let chunk = chunked::chunk_length(input.r.dims()[1]);
            let (y, state, trace) = chunked::wkv7_traced(input, s0, chunk);
            (y, state, Form::Chunked(Box::new(trace)))
        }
        Path::Reference => {
            let (y, state, states) = reference::wkv7_traced(input, s0);
            (y, state, Form::Reference(Box::new(states)))
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
pub fn read_states(x: Tensor<4>, trace: &Trace, side: Side) -> Tensor<4> {
    let dtype = x.dtype();
    let (expected, inner, device) = trace.query(side);
    let found = x.dims();
    assert!(
        found == expected,
        "read_states: x has shape {found:?}, the traced call expects {expected:?}"
    );
    let found = x.device();
    assert!(
        found == device,
        "read_states: x is on {found:?}, the traced call on {device:?}"
    );
    let x = widen(x);
    assert!(
        x.dtype() == inner,
        "read_states: x is {dtype:?}, the traced call computed in {inner:?}; f64 goes with f64 only"
    );
    let z = match &trace.0 {
        Form::Custom(trace) => custom_read(x, trace, side),
        Form::Chunked(trace) => chunked::read_states(x, trace, side),
        Form::Reference(states) => reference::read_states(x, states, side),
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
            Form::Reference(states) => {
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

/// Whether there is a custom operation for inputs of this device and these sizes.
pub(super) fn is_custom(input: &Wkv7Input) -> bool {
    #[allow(unused_variables)]
    let ([batch, time, heads, key], value) = (input.r.dims(), input.v.dims()[3]);
    match input.r.device().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => value.max(key) <= super::cpu::wkv7::MAX_SIZE,
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => {
            super::backends::cubecl::wkv7::supports(batch, time, heads, value, key)
        }
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Whether the operation reads r, k, v, a and b of this type as they are, if it is half precision. The CPU widens them.
fn reads_half(dtype: DType, device: &Device) -> bool {
    let is_gpu = match device.clone().inner().as_dispatch() {
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    };
    is_gpu && matches!(dtype, DType::F16 | DType::BF16) && device.supports_dtype(dtype)
}

fn custom(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let (y, state) = Dispatch::wkv7_forward(input.into(), s0.into_dispatch());
    (Tensor::from_dispatch(y), Tensor::from_dispatch(state))
}

/// What the custom operation leaves for reads.
#[derive(Clone, Debug)]
struct CustomTrace {
    input: Wkv7Input,
    s0: Tensor<4>,
    starts: Tensor<5>,
    pending: PendingGradients,
}

fn custom_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, CustomTrace) {
    let pending = PendingGradients::default();
    let tokens = input.clone().into();
    let (y, state, starts) =
        Dispatch::wkv7_traced(tokens, s0.clone().into_dispatch(), pending.clone());
    let trace = CustomTrace {
        input,
        s0,
        starts: Tensor::from_dispatch(starts),
        pending,
    };
    (
        Tensor::from_dispatch(y),
        Tensor::from_dispatch(state),
        trace,
    )
}

fn custom_read(x: Tensor<4>, trace: &CustomTrace, side: Side) -> Tensor<4> {
    let trace = trace.clone();
    Tensor::from_dispatch(Dispatch::wkv7_read(
        x.into_dispatch(),
        trace.input.into(),
        trace.s0.into_dispatch(),
        trace.starts.into_dispatch(),
        side,
        trace.pending,
    ))
}

impl From<Wkv7Input> for Wkv7Tensors<Dispatch> {
    fn from(input: Wkv7Input) -> Self {
        Self {
            r: input.r.into_dispatch(),
            log_w: input.log_w.into_dispatch(),
            k: input.k.into_dispatch(),
            v: input.v.into_dispatch(),
            a: input.a.into_dispatch(),
            b: input.b.into_dispatch(),
        }
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
