//! Gradients of the custom operations, on any backend that has the operation.

mod wkv7;

use std::{array, fmt::Debug, marker::PhantomData};

use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, Shape},
};

use super::*;
use crate::ops::multi_output::PendingGradients;

/// Inputs and settings to outputs.
type ForwardPass<B, S, const I: usize, const O: usize> =
    fn([FloatTensor<B>; I], S) -> [FloatTensor<B>; O];

/// Kept tensors, gradients of the outputs and settings to gradients of the inputs.
type BackwardPass<B, S, const I: usize, const O: usize> =
    fn([FloatTensor<B>; I], [FloatTensor<B>; O], S) -> [FloatTensor<B>; I];

/// Runs an operation of `I` inputs and `O` outputs, and records its backward pass where an input is tracked. `settings` are
/// what the operation is given besides tensors that have gradients.
fn record<B, C, S, const I: usize, const O: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; I],
    settings: S,
    forward: ForwardPass<B, S, I, O>,
    backward: BackwardPass<B, S, I, O>,
) -> [FloatTensor<Autodiff<B, C>>; O]
where
    B: Backend,
    C: CheckpointStrategy,
    S: Clone + Debug + Send + 'static,
{
    record_with::<B, C, S, I, O>(inputs, settings, Kept::Inputs, forward, backward)
}

/// [`record`], with a choice of the tensors that the backward pass is given.
fn record_with<B, C, S, const I: usize, const O: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; I],
    settings: S,
    kept: Kept,
    forward: ForwardPass<B, S, I, O>,
    backward: BackwardPass<B, S, I, O>,
) -> [FloatTensor<Autodiff<B, C>>; O]
where
    B: Backend,
    C: CheckpointStrategy,
    S: Clone + Debug + Send + 'static,
{
    let guards = inputs.each_ref().map(|x| x.node());
    let inputs = inputs.map(|x| x.into_primitive());
    let step = Step::<S, O>(PhantomData);
    match Backward::<B, I>::prepare::<C>(step, guards)
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(_) => forward(inputs, settings).map(<FloatTensor<Autodiff<B, C>>>::new),
        OpsKind::Tracked(prep) => {
            let outputs = forward(inputs.clone(), settings.clone());
            let kept = array::from_fn(|i| match kept {
                Kept::Inputs => inputs[i].clone(),
                Kept::Outputs => outputs[i].clone(),
            });
            let pending = PendingGradients::default();
            let state = Recorded {
                kept,
                settings,
                backward,
                outputs: outputs.each_ref().map(|y| (y.shape(), y.dtype().into())),
                pending: pending.clone(),
            };
            if O == 1 {
                let output = prep.finish(state, outputs[0].clone());
                return array::from_fn(|_| output.clone());
            }
            let zero = B::float_zeros(Shape::new([1]), &inputs[0].device(), FloatDType::F32);
            let root = prep.finish(state, zero);
            let mut number = 0..;
            outputs.map(|output| {
                let number = number.next().unwrap_or_default();
                pending.output::<B, C>(root.node(), number, output)
            })
        }
    }
}

/// The backward pass of a recorded operation.
#[derive(Debug)]
struct Step<S, const O: usize>(PhantomData<S>);

#[derive(Clone, Debug)]
struct Recorded<B: Backend, S, const I: usize, const O: usize> {
    kept: [FloatTensor<B>; I],
    settings: S,
    backward: BackwardPass<B, S, I, O>,
    /// Shape and type of each output.
    outputs: [(Shape, FloatDType); O],
    /// Where the gradients are, if there are several outputs.
    pending: PendingGradients,
}

impl<B, S, const I: usize, const O: usize> Backward<B, I> for Step<S, O>
where
    B: Backend,
    S: Clone + Debug + Send + 'static,
{
    type State = Recorded<B, S, I, O>;

    fn backward(self, ops: Ops<Self::State, I>, grads: &mut Gradients, _: &mut Checkpointer) {
        let carried = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let gradients = array::from_fn(|i| {
            if O == 1 {
                return carried.clone();
            }
            match state.pending.take::<B, 1>(i).pop() {
                Some([gradient]) => gradient,
                // The loss does not depend on this output.
                None => {
                    let (shape, dtype) = state.outputs[i].clone();
                    B::float_zeros(shape, &carried.device(), dtype)
                }
            }
        });
        let gradients = (state.backward)(state.kept, gradients, state.settings);
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// The derivatives of the custom operations have none themselves.
fn no_second_derivative<T>(operation: &str) -> T {
    unimplemented!("{operation} has first derivatives only")
}

/// Implements a trait of operations and their backward passes. An operation has one struct of tensors, at most one setting, and
/// one tensor or a struct of them as its result.
macro_rules! recorded {
    ($ops:ident {
        $($forward:ident, $backward:ident: $inputs:ident $(, $setting:ident: $type:ty)? => $output:ident;)+
    }) => {
        impl<B: $ops, C: CheckpointStrategy> $ops for Autodiff<B, C> {
            $(
                fn $forward(
                    inputs: $inputs<Self>,
                    $($setting: $type,)?
                ) -> $output<Self> {
                    let outputs = record::<B, C, _, _, _>(
                        inputs.into_array(),
                        ($($setting,)?),
                        |x, ($($setting,)?)| {
                            let x = $inputs::from_array(x);
                            into_array!($output, <B as $ops>::$forward(x, $($setting)?))
                        },
                        |x, d, ($($setting,)?)| {
                            let (x, d) = ($inputs::from_array(x), from_array!($output, d));
                            <B as $ops>::$backward(x, d, $($setting)?).into_array()
                        },
                    );
                    from_array!($output, outputs)
                }

                fn $backward(
                    _: $inputs<Self>,
                    _: $output<Self>,
                    $(_: $type,)?
                ) -> $inputs<Self> {
                    no_second_derivative(stringify!($forward))
                }
            )+
        }
    };
}

/// The tensors of a result.
macro_rules! into_array {
    (FloatTensor, $output:expr) => {
        [$output]
    };
    ($struct:ident, $outputs:expr) => {
        $outputs.into_array()
    };
}

/// A result of its tensors.
macro_rules! from_array {
    (FloatTensor, $array:expr) => {{
        let [output] = $array;
        output
    }};
    ($struct:ident, $array:expr) => {
        $struct::from_array($array)
    };
}

recorded!(TokenShiftOps {
    token_shift, token_shift_backward: TokenShiftTensors => FloatTensor;
    six_token_shifts, six_token_shifts_backward: SixTokenShiftTensors => SixTensors;
});
recorded!(KeyPreparationOps {
    key_preparation, key_preparation_backward: KeyPreparationTensors, head_size: usize => KeyTensors;
});
recorded!(RemovalKeyOps {
    removal_key, removal_key_backward: RemovalKeyTensors => RemovalTensors;
});
recorded!(ValueResidualOps {
    value_residual, value_residual_backward: ValueResidualTensors => FloatTensor;
});
recorded!(ReadOutOps {
    read_out, read_out_backward: ReadOutTensors, epsilon: f32 => FloatTensor;
});
recorded!(LayerNormOps {
    layer_norm, layer_norm_backward: LayerNormTensors, epsilon: f32 => FloatTensor;
});
recorded!(MatmulBf16Ops {
    matmul_bf16, matmul_bf16_backward: MatmulTensors => FloatTensor;
});

impl<B: ActivationOps, C: CheckpointStrategy> ActivationOps for Autodiff<B, C> {
    fn activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let [y] = record_with::<B, C, _, _, _>(
            [x],
            activation,
            Kept::Outputs,
            |[x], activation| [B::activation(x, activation)],
            |[y], [d], activation| [B::activation_backward(y, d, activation)],
        );
        y
    }

    fn activation_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Activation,
    ) -> FloatTensor<Self> {
        no_second_derivative("activation")
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let [losses] = record::<B, C, _, _, _>(
            [logits],
            targets,
            |[x], targets| [B::cross_entropy(x, targets)],
            |[x], [d], targets| [B::cross_entropy_backward(x, d, targets)],
        );
        losses
    }

    fn cross_entropy_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        no_second_derivative("cross_entropy")
    }
}
