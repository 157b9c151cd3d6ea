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
mod keys;
#[cfg(feature = "gpu")]
pub(super) mod parameters;
mod token_shift;
pub(super) mod wkv7;

#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{
    Backend, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
#[cfg(feature = "gpu")]
use burn::tensor::{DType, Shape};

pub use keys::{
    KeyPreparationOps, KeyPreparationTensors, KeyTensors, RemovalKeyOps, RemovalKeyTensors,
    RemovalTensors,
};
pub use token_shift::{SixTensors, SixTokenShiftTensors, TokenShiftOps, TokenShiftTensors};

/// A struct of float tensors, and its fields as an array in their order.
macro_rules! tensors {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $field:ident),+ $(,)? }) => {
        #[derive(Clone, Debug, ExtensionType)]
        #[extension_type(fusion: cfg(feature = "gpu"))]
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

/// Gradients have the shapes and types of the inputs.
#[cfg(feature = "gpu")]
fn of_inputs<I: Clone, G>(inputs: &I, _gradients: &G) -> I {
    inputs.clone()
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
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait ValueResidualOps: Backend {
    /// Of the shape of v.
    #[fusion(meta = |inputs: &ValueResidualTensorsMetadata| inputs.v.clone())]
    fn value_residual(#[extension_type] inputs: ValueResidualTensors<Self>) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = of_inputs)]
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
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait ReadOutOps: Backend {
    /// Of the shape of the gate.
    #[fusion(meta = |inputs: &ReadOutTensorsMetadata, _: &f32| inputs.gate.clone())]
    fn read_out(#[extension_type] inputs: ReadOutTensors<Self>, epsilon: f32) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = |inputs: &ReadOutTensorsMetadata, _: &TensorSpec, _: &f32| inputs.clone())]
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
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait LayerNormOps: Backend {
    /// Of the shape of x.
    #[fusion(meta = |inputs: &LayerNormTensorsMetadata, _: &f32| inputs.x.clone())]
    fn layer_norm(
        #[extension_type] inputs: LayerNormTensors<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// The gradients of the inputs.
    #[fusion(meta = |inputs: &LayerNormTensorsMetadata, _: &TensorSpec, _: &f32| inputs.clone())]
    fn layer_norm_backward(
        #[extension_type] inputs: LayerNormTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormTensors<Self>;
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// [`relu_squared`](super::relu_squared), [`sigmoid`](super::sigmoid) and [`tanh`](super::tanh).
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait ActivationOps: Backend {
    /// Of the shape of x.
    #[fusion(meta = |x: &TensorSpec, _: &Activation| x.clone())]
    fn activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// The gradient of x.
    #[fusion(meta = |y: &TensorSpec, _: &TensorSpec, _: &Activation| y.clone())]
    fn activation_backward(
        y: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
}

/// [`cross_entropy`](super::cross_entropy).
#[backend_extension(
    Cube: cfg(feature = "gpu"),
    Flex: cfg(feature = "flex"),
    Fusion: cfg(feature = "gpu"),
    Autodiff,
)]
pub trait CrossEntropyOps: Backend {
    /// `[rows]` f32, of logits `[rows, V]` for targets `[rows]`.
    #[fusion(meta = |logits, _targets| rows_meta(logits))]
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of the logits.
    #[fusion(dtype = logits, shape = logits)]
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// One f32 number for each row.
#[cfg(feature = "gpu")]
fn rows_meta(logits: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([logits.shape[0]]), DType::F32)
}

#[cfg(feature = "gpu")]
tensors! {
    /// Results of [`loss_rows`](super::head_loss::loss_rows).
    LossRowTensors {
        /// `[rows]` f32.
        losses,
        /// `[rows]` f32.
        hits,
        /// `[rows, V]`, in the type of the logits.
        gradient,
    }
}

/// [`loss_rows`](super::head_loss::loss_rows).
#[cfg(feature = "gpu")]
#[backend_extension(Cube, Fusion)]
pub trait LossRowOps: Backend {
    /// Of logits `[rows, V]` for weights and targets `[rows]`.
    #[fusion(meta = |logits, _weights, _targets, _pull| loss_rows_meta(logits))]
    fn loss_rows(
        logits: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        targets: IntTensor<Self>,
        pull: f32,
    ) -> LossRowTensors<Self>;
}

#[cfg(feature = "gpu")]
fn loss_rows_meta(logits: &TensorSpec) -> LossRowTensorsMetadata {
    LossRowTensorsMetadata {
        losses: rows_meta(logits),
        hits: rows_meta(logits),
        gradient: logits.clone(),
    }
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
