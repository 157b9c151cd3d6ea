//! Token shift: its tensors and its trait.

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

#[cfg(feature = "gpu")]
use super::of_inputs;
use super::tensors;

tensors! {
    /// Inputs of a token shift with one mix.
    TokenShiftTensors {
        /// `[batch, time, C]`.
        h,
        /// The token before the first one, `[batch, C]`.
        last,
        /// Mix, `[1, 1, C]`.
        mu,
    }
}

tensors! {
    /// Inputs of the token shift of time mixing.
    SixTokenShiftTensors {
        /// `[batch, time, C]`.
        h,
        /// The token before the first one, `[batch, C]`.
        last,
        /// Mix of the receptance, `[1, 1, C]`.
        r,
        /// Mix of the decay.
        w,
        /// Mix of the key.
        k,
        /// Mix of the value.
        v,
        /// Mix of the in-context learning rate.
        a,
        /// Mix of the gate.
        g,
    }
}

tensors! {
    /// Outputs of the token shift of time mixing, each `[batch, time, C]`.
    SixTensors {
        /// For the receptance.
        r,
        /// For the decay.
        w,
        /// For the key.
        k,
        /// For the value.
        v,
        /// For the in-context learning rate.
        a,
        /// For the gate.
        g,
    }
}

/// [`token_shift`](crate::ops::token_shift) and [`six_token_shifts`](crate::ops::six_token_shifts).
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait TokenShiftOps: Backend {
    /// `[batch, time, C]`.
    #[fusion(meta = |inputs: &TokenShiftTensorsMetadata| inputs.h.clone())]
    fn token_shift(#[extension_type] inputs: TokenShiftTensors<Self>) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = of_inputs)]
    fn token_shift_backward(
        #[extension_type] inputs: TokenShiftTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> TokenShiftTensors<Self>;

    /// One output for each mix.
    #[fusion(meta = six_meta)]
    fn six_token_shifts(#[extension_type] inputs: SixTokenShiftTensors<Self>) -> SixTensors<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = of_inputs)]
    fn six_token_shifts_backward(
        #[extension_type] inputs: SixTokenShiftTensors<Self>,
        #[extension_type] gradients: SixTensors<Self>,
    ) -> SixTokenShiftTensors<Self>;
}

#[cfg(feature = "gpu")]
fn six_meta(inputs: &SixTokenShiftTensorsMetadata) -> SixTensorsMetadata {
    let [r, w, k, v, a, g] = std::array::from_fn(|_| inputs.h.clone());
    SixTensorsMetadata { r, w, k, v, a, g }
}
