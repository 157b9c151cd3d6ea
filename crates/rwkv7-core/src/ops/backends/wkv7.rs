//! The trait of the WKV-7 operation and of the reads of its states.

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;

use super::tensors;
use crate::ops::{Side, multi_output::PendingGradients};

/// Tokens between the states that a GPU keeps for the backward pass and for reads of the states.
#[cfg(feature = "gpu")]
pub const CHUNK: usize = 16;

tensors! {
    /// The tensors of [`Wkv7Input`](crate::ops::Wkv7Input), or their gradients. All are f32, or all but `log_w` are of one
    /// half-precision type that the device computes with.
    Wkv7Tensors {
        /// Receptance.
        r,
        /// Log decay.
        log_w,
        /// Replacement key.
        k,
        /// Value.
        v,
        /// Removal direction.
        a,
        /// Removal weight.
        b,
    }
}

/// [`wkv7`](crate::ops::wkv7) and [`read_states`](crate::ops::read_states).
///
/// `starts [batch, heads, chunks, value, key]` holds the state before each of some chunks of tokens, in a layout that is the
/// backend's own.
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
        #[extension_type] input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `(y, S_T, starts)`; the gradients of later reads arrive in `pending`.
    #[fusion(meta = traced_meta)]
    fn wkv7_traced(
        #[extension_type] input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        pending: PendingGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `z_t = x_t S_t` for queries `x [batch, time, heads, value]`, or `z_t = S_t x_t` for `x [batch, time, heads, key]`.
    #[fusion(meta = read_meta)]
    fn wkv7_read(
        x: FloatTensor<Self>,
        #[extension_type] input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        pending: PendingGradients,
    ) -> FloatTensor<Self>;

    /// Gradients of the token inputs and of S0.
    #[fusion(meta = backward_meta)]
    fn wkv7_backward(
        #[extension_type] input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>);

    /// [`wkv7_backward`](Self::wkv7_backward) of a call whose states were also read. Of query and `dL/dz` one lies in value
    /// space, the other in key space, depending on the side; `of_valueᵀ of_key` is what the read adds to the gradient of the
    /// state.
    #[fusion(meta = read_backward_meta)]
    fn wkv7_read_backward(
        #[extension_type] input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        of_value: FloatTensor<Self>,
        of_key: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>);
}

#[cfg(feature = "gpu")]
fn forward_meta(input: &Wkv7TensorsMetadata, s0: &TensorSpec) -> (TensorSpec, TensorSpec) {
    (input.v.clone(), s0.clone())
}

#[cfg(feature = "gpu")]
fn traced_meta(
    input: &Wkv7TensorsMetadata,
    s0: &TensorSpec,
    _pending: &PendingGradients,
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
    input: &Wkv7TensorsMetadata,
    _s0: &TensorSpec,
    _starts: &TensorSpec,
    side: &Side,
    _pending: &PendingGradients,
) -> TensorSpec {
    match side {
        Side::Value => input.k.clone(),
        Side::Key => input.v.clone(),
    }
}

#[cfg(feature = "gpu")]
fn backward_meta(
    input: &Wkv7TensorsMetadata,
    _starts: &TensorSpec,
    _dy: &TensorSpec,
    d_state: &TensorSpec,
) -> (Wkv7TensorsMetadata, TensorSpec) {
    (input.clone(), d_state.clone())
}

#[cfg(feature = "gpu")]
fn read_backward_meta(
    input: &Wkv7TensorsMetadata,
    _starts: &TensorSpec,
    _dy: &TensorSpec,
    d_state: &TensorSpec,
    _of_value: &TensorSpec,
    _of_key: &TensorSpec,
) -> (Wkv7TensorsMetadata, TensorSpec) {
    (input.clone(), d_state.clone())
}
