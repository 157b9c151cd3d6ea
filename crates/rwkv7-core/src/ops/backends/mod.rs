//! The custom operations: a trait each, with its backward pass, and one file a backend that implements them.
//!
//! Shapes are not checked here. The backends outside `Cube`, `Flex` and `Autodiff` have no custom operations.

// Without any backend the generated dispatch uses none of its arguments.
#![allow(unused_variables)]

pub(super) mod autodiff;
#[cfg(feature = "gpu")]
pub(super) mod cubecl;
#[cfg(feature = "flex")]
pub(super) mod flex;
pub(super) mod wkv7;

use burn::backend::{
    Backend, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

/// A struct of float tensors, and its fields as an array in their order.
macro_rules! tensors {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $field:ident),+ $(,)? }) => {
        #[derive(Clone, Debug, ExtensionType)]
        $(#[$attribute])*
        pub struct $name<B: Backend> {
            $($(#[$doc])* pub $field: FloatTensor<B>,)+
        }

        impl<B: Backend> $name<B> {
            /// From the fields in their order.
            pub fn from_array(
                [$($field),+]: [FloatTensor<B>; [$(stringify!($field)),+].len()],
            ) -> Self {
                Self { $($field),+ }
            }

            /// The fields in their order.
            pub fn into_array(self) -> [FloatTensor<B>; [$(stringify!($field)),+].len()] {
                let Self { $($field),+ } = self;
                [$($field),+]
            }
        }
    };
}
use tensors;

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

/// [`token_shift`](super::token_shift) and [`six_token_shifts`](super::six_token_shifts).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait TokenShiftOps: Backend {
    /// `[batch, time, C]`.
    fn token_shift(#[extension_type] inputs: TokenShiftTensors<Self>) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    fn token_shift_backward(
        #[extension_type] inputs: TokenShiftTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> TokenShiftTensors<Self>;

    /// One output for each mix.
    fn six_token_shifts(#[extension_type] inputs: SixTokenShiftTensors<Self>) -> SixTensors<Self>;

    /// The gradients of the inputs.
    fn six_token_shifts_backward(
        #[extension_type] inputs: SixTokenShiftTensors<Self>,
        #[extension_type] gradients: SixTensors<Self>,
    ) -> SixTokenShiftTensors<Self>;
}

tensors! {
    /// The tensors of [`KeyPreparation`](super::KeyPreparation).
    KeyPreparationTensors {
        /// Projected key.
        k,
        /// Decay before its bias and sigmoid.
        w,
        /// In-context learning rate before its bias and sigmoid.
        a,
        /// Decay bias.
        w0,
        /// In-context learning rate bias.
        a0,
        /// Scale of the removal key.
        k_k,
        /// How much the in-context learning rate scales the replacement key.
        k_a,
    }
}

tensors! {
    /// The tensors of [`Keys`](super::Keys).
    KeyTensors {
        /// Log decay.
        log_w,
        /// Replacement key.
        k,
        /// Removal direction.
        a,
        /// Removal weight.
        b,
    }
}

/// [`key_preparation`](super::key_preparation).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait KeyPreparationOps: Backend {
    /// `[batch, time, heads, head_size]` each.
    fn key_preparation(
        #[extension_type] inputs: KeyPreparationTensors<Self>,
        head_size: usize,
    ) -> KeyTensors<Self>;

    /// The gradients of the inputs.
    fn key_preparation_backward(
        #[extension_type] inputs: KeyPreparationTensors<Self>,
        #[extension_type] gradients: KeyTensors<Self>,
        head_size: usize,
    ) -> KeyPreparationTensors<Self>;
}

tensors! {
    /// Inputs of the removal key.
    RemovalKeyTensors {
        /// Key of any length, `[batch, time, heads, head_size]`.
        z,
        /// In-context learning rate before its bias and sigmoid, `[batch, time, C]`.
        rate,
        /// Bias of the rate, `[1, 1, C]`.
        bias,
    }
}

tensors! {
    /// Outputs of the removal key, `[batch, time, heads, head_size]`.
    RemovalTensors {
        /// Removal direction.
        a,
        /// Removal weight.
        b,
    }
}

/// [`removal_key`](super::removal_key).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait RemovalKeyOps: Backend {
    /// Of the shape of z each.
    fn removal_key(#[extension_type] inputs: RemovalKeyTensors<Self>) -> RemovalTensors<Self>;

    /// The gradients of the inputs.
    fn removal_key_backward(
        #[extension_type] inputs: RemovalKeyTensors<Self>,
        #[extension_type] gradients: RemovalTensors<Self>,
    ) -> RemovalKeyTensors<Self>;
}

tensors! {
    /// Inputs of the value residual.
    ValueResidualTensors {
        /// Value of this layer, `[batch, time, C]`.
        v,
        /// Value of the first layer, of the same shape.
        first,
        /// Share of the first layer before its bias and sigmoid, of the same shape.
        s,
        /// Bias of the share, `[1, 1, C]`.
        v0,
    }
}

/// [`value_residual`](super::value_residual).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait ValueResidualOps: Backend {
    /// Of the shape of v.
    fn value_residual(#[extension_type] inputs: ValueResidualTensors<Self>) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    fn value_residual_backward(
        #[extension_type] inputs: ValueResidualTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> ValueResidualTensors<Self>;
}

tensors! {
    /// The tensors of [`ReadOut`](super::ReadOut).
    ReadOutTensors {
        /// Output of the recurrence.
        y,
        /// Receptance.
        r,
        /// Replacement key.
        k,
        /// Value.
        v,
        /// Gate.
        gate,
        /// Weight of the bonus.
        r_k,
        /// Scale of the group norm.
        gamma,
        /// Shift of the group norm.
        beta,
    }
}

/// [`read_out`](super::read_out), the group norm over whole heads.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait ReadOutOps: Backend {
    /// Of the shape of the gate.
    fn read_out(#[extension_type] inputs: ReadOutTensors<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    fn read_out_backward(
        #[extension_type] inputs: ReadOutTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> ReadOutTensors<Self>;
}

tensors! {
    /// Inputs of the layer norm.
    LayerNormTensors {
        /// `[.., C]`.
        x,
        /// Scale, `[C]`.
        gamma,
        /// Shift, `[C]`.
        beta,
    }
}

/// [`layer_norm`](super::layer_norm).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait LayerNormOps: Backend {
    /// Of the shape of x.
    fn layer_norm(
        #[extension_type] inputs: LayerNormTensors<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    fn layer_norm_backward(
        #[extension_type] inputs: LayerNormTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormTensors<Self>;
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// relu(x)².
    ReluSquared,
    /// The sigmoid.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
}

/// Tensors that an operation keeps for its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The inputs.
    Inputs,
    /// The outputs, where the derivative is simpler by the value.
    Outputs,
}

impl Activation {
    /// Whether the derivative is taken from x or from y.
    pub fn kept(self) -> Kept {
        match self {
            Self::ReluSquared => Kept::Inputs,
            Self::Sigmoid | Self::Tanh => Kept::Outputs,
        }
    }
}

/// [`relu_squared`](super::relu_squared), [`sigmoid`](super::sigmoid) and [`tanh`](super::tanh).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait ActivationOps: Backend {
    /// Of the shape of x.
    fn activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// The gradient of x; `kept` is x or y, as [`Activation::kept`] says.
    fn activation_backward(
        kept: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
}

/// [`cross_entropy`](super::cross_entropy).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait CrossEntropyOps: Backend {
    /// `[rows]`, of logits `[rows, V]` for targets `[rows]`.
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of the logits.
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

tensors! {
    /// Factors of a matrix product.
    MatmulTensors {
        /// `[rows, in]`.
        x,
        /// `[in, out]`.
        weight,
    }
}

/// [`matmul_bf16`](super::matmul_bf16).
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait MatmulBf16Ops: Backend {
    /// `[rows, out]`.
    fn matmul_bf16(#[extension_type] inputs: MatmulTensors<Self>) -> FloatTensor<Self>;

    /// The gradients of the factors, products in bf16 too.
    fn matmul_bf16_backward(
        #[extension_type] inputs: MatmulTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> MatmulTensors<Self>;
}
