//! The operator as a custom Burn operation with hand-written gradients: on the CPU (Flex) and on GPUs (CubeCL).

mod autodiff;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "flex")]
mod flex;

use burn::{
    backend::{Backend, Dispatch, ExtensionType, backend_extension, tensor::FloatTensor},
    tensor::{DType, Device, Tensor},
};

#[cfg(any(feature = "flex", feature = "gpu"))]
use burn::backend::DispatchDevice;
#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;

use super::{Side, Wkv7Input};
use crate::taps::Taps;

/// Tokens between the states that a GPU keeps for the backward pass and for reads of the states.
#[cfg(feature = "gpu")]
const CHUNK: usize = 16;

/// The operator's inputs for each token, or their gradients; shapes as in [`Wkv7Input`](super::Wkv7Input). All are f32, or all
/// but `log_w` are of one half-precision type that the device computes with.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "gpu"))]
pub struct TokenTensors<B: Backend> {
    /// Receptance.
    pub r: FloatTensor<B>,
    /// Log decay.
    pub log_w: FloatTensor<B>,
    /// Replacement key.
    pub k: FloatTensor<B>,
    /// Value.
    pub v: FloatTensor<B>,
    /// Removal direction.
    pub a: FloatTensor<B>,
    /// Removal weight.
    pub b: FloatTensor<B>,
}

/// The custom operation; [`wkv7`](super::wkv7) and [`sse`](super::sse) call it.
///
/// Shapes are not checked here. `starts [batch, heads, chunks, value, key]` holds the state before each of some chunks of
/// tokens, in a layout that is the backend's own.
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait Wkv7Ops: Backend {
    /// `(y, S_T)`.
    #[fusion(meta = forward_meta)]
    fn wkv7_forward(
        #[extension_type] input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `(y, S_T, starts)`.
    #[allow(unused_variables)] // what the macro makes of this without any backend
    #[fusion(meta = traced_meta)]
    fn wkv7_traced(
        #[extension_type] input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        taps: Taps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `z_t = x_t S_t` for queries `x [batch, time, heads, value]`, or `z_t = S_t x_t` for `x [batch, time, heads, key]`.
    #[allow(unused_variables)] // as above
    #[fusion(meta = read_meta)]
    fn wkv7_read(
        x: FloatTensor<Self>,
        #[extension_type] input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        taps: Taps,
    ) -> FloatTensor<Self>;

    /// Gradients of the token inputs and of S0.
    #[fusion(meta = backward_meta)]
    fn wkv7_backward(
        #[extension_type] input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>);

    /// [`wkv7_backward`](Self::wkv7_backward) of a call whose states were also read. Of query and `dL/dz` one lies in value
    /// space, the other in key space, depending on the side; `of_valueᵀ of_key` is what the read adds to the gradient of the
    /// state.
    #[fusion(meta = read_backward_meta)]
    fn wkv7_read_backward(
        #[extension_type] input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        of_value: FloatTensor<Self>,
        of_key: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>);
}

/// Whether there is a custom operation for inputs of this device and these sizes.
pub(super) fn supports(input: &Wkv7Input) -> bool {
    #[allow(unused_variables)]
    let ([batch, time, heads, key], value) = (input.r.dims(), input.v.dims()[3]);
    match input.r.device().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => value.max(key) <= flex::MAX_SIZE,
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => cube::supports(batch, time, heads, value, key),
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Whether the operation reads r, k, v, a and b of this type as they are, if it is half precision. The CPU widens them.
pub(super) fn reads_half(dtype: DType, device: &Device) -> bool {
    let is_gpu = match device.clone().inner().as_dispatch() {
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    };
    is_gpu && matches!(dtype, DType::F16 | DType::BF16) && device.supports_dtype(dtype)
}

pub(super) fn wkv7(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let (y, state) = Dispatch::wkv7_forward(input.into(), s0.into_dispatch());
    (Tensor::from_dispatch(y), Tensor::from_dispatch(state))
}

/// What a traced call leaves for [`sse`].
#[derive(Clone, Debug)]
pub struct Trace {
    pub input: Wkv7Input,
    s0: Tensor<4>,
    starts: Tensor<5>,
    taps: Taps,
}

pub(super) fn wkv7_traced(input: Wkv7Input, s0: Tensor<4>) -> (Tensor<4>, Tensor<4>, Trace) {
    let taps = Taps::default();
    let tokens = input.clone().into();
    let (y, state, starts) =
        Dispatch::wkv7_traced(tokens, s0.clone().into_dispatch(), taps.clone());
    let trace = Trace {
        input,
        s0,
        starts: Tensor::from_dispatch(starts),
        taps,
    };
    (
        Tensor::from_dispatch(y),
        Tensor::from_dispatch(state),
        trace,
    )
}

pub(super) fn sse(x: Tensor<4>, trace: &Trace, side: Side) -> Tensor<4> {
    let trace = trace.clone();
    Tensor::from_dispatch(Dispatch::wkv7_read(
        x.into_dispatch(),
        trace.input.into(),
        trace.s0.into_dispatch(),
        trace.starts.into_dispatch(),
        side,
        trace.taps,
    ))
}

impl From<Wkv7Input> for TokenTensors<Dispatch> {
    fn from(input: Wkv7Input) -> Self {
        let Wkv7Input {
            r,
            log_w,
            k,
            v,
            a,
            b,
        } = input;
        let [r, log_w, k, v, a, b] = [r, log_w, k, v, a, b].map(Tensor::into_dispatch);
        Self {
            r,
            log_w,
            k,
            v,
            a,
            b,
        }
    }
}

#[cfg(feature = "gpu")]
fn forward_meta(input: &TokenTensorsMetadata, s0: &TensorSpec) -> (TensorSpec, TensorSpec) {
    (input.v.clone(), s0.clone())
}

#[cfg(feature = "gpu")]
fn traced_meta(
    input: &TokenTensorsMetadata,
    s0: &TensorSpec,
    _taps: &Taps,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let [batch, time, heads, key] = input.r.shape.dims();
    let value = input.v.shape[3];
    let starts = [batch, heads, time.div_ceil(CHUNK), value, key];
    let starts = TensorSpec::new(starts.into(), s0.dtype);
    (input.v.clone(), s0.clone(), starts)
}

#[cfg(feature = "gpu")]
fn read_meta(
    _x: &TensorSpec,
    input: &TokenTensorsMetadata,
    _s0: &TensorSpec,
    _starts: &TensorSpec,
    side: &Side,
    _taps: &Taps,
) -> TensorSpec {
    match side {
        Side::Value => input.k.clone(),
        Side::Key => input.v.clone(),
    }
}

#[cfg(feature = "gpu")]
fn backward_meta(
    input: &TokenTensorsMetadata,
    _starts: &TensorSpec,
    _dy: &TensorSpec,
    d_state: &TensorSpec,
) -> (TokenTensorsMetadata, TensorSpec) {
    (input.clone(), d_state.clone())
}

#[cfg(feature = "gpu")]
fn read_backward_meta(
    input: &TokenTensorsMetadata,
    _starts: &TensorSpec,
    _dy: &TensorSpec,
    d_state: &TensorSpec,
    _of_value: &TensorSpec,
    _of_key: &TensorSpec,
) -> (TokenTensorsMetadata, TensorSpec) {
    (input.clone(), d_state.clone())
}
