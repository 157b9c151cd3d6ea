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

impl<B: TokenShiftOps, C: CheckpointStrategy> TokenShiftOps for Autodiff<B, C> {
    fn token_shift(inputs: TokenShiftTensors<Self>) -> FloatTensor<Self> {
        let [output] = record::<B, C, _, _, _>(
            inputs.into_array(),
            (),
            |x, ()| [B::token_shift(TokenShiftTensors::from_array(x))],
            |x, [d], ()| B::token_shift_backward(TokenShiftTensors::from_array(x), d).into_array(),
        );
        output
    }

    fn token_shift_backward(
        _: TokenShiftTensors<Self>,
        _: FloatTensor<Self>,
    ) -> TokenShiftTensors<Self> {
        no_second_derivative("token_shift")
    }

    fn six_token_shifts(inputs: SixTokenShiftTensors<Self>) -> SixTensors<Self> {
        SixTensors::from_array(record::<B, C, _, _, _>(
            inputs.into_array(),
            (),
            |x, ()| B::six_token_shifts(SixTokenShiftTensors::from_array(x)).into_array(),
            |x, d, ()| {
                B::six_token_shifts_backward(
                    SixTokenShiftTensors::from_array(x),
                    SixTensors::from_array(d),
                )
                .into_array()
            },
        ))
    }

    fn six_token_shifts_backward(
        _: SixTokenShiftTensors<Self>,
        _: SixTensors<Self>,
    ) -> SixTokenShiftTensors<Self> {
        no_second_derivative("six_token_shifts")
    }
}

impl<B: KeyPreparationOps, C: CheckpointStrategy> KeyPreparationOps for Autodiff<B, C> {
    fn key_preparation(inputs: KeyPreparationTensors<Self>, head_size: usize) -> KeyTensors<Self> {
        KeyTensors::from_array(record::<B, C, _, _, _>(
            inputs.into_array(),
            head_size,
            |x, head_size| {
                B::key_preparation(KeyPreparationTensors::from_array(x), head_size).into_array()
            },
            |x, d, head_size| {
                B::key_preparation_backward(
                    KeyPreparationTensors::from_array(x),
                    KeyTensors::from_array(d),
                    head_size,
                )
                .into_array()
            },
        ))
    }

    fn key_preparation_backward(
        _: KeyPreparationTensors<Self>,
        _: KeyTensors<Self>,
        _: usize,
    ) -> KeyPreparationTensors<Self> {
        no_second_derivative("key_preparation")
    }
}

impl<B: RemovalKeyOps, C: CheckpointStrategy> RemovalKeyOps for Autodiff<B, C> {
    fn removal_key(inputs: RemovalKeyTensors<Self>) -> RemovalTensors<Self> {
        RemovalTensors::from_array(record::<B, C, _, _, _>(
            inputs.into_array(),
            (),
            |x, ()| B::removal_key(RemovalKeyTensors::from_array(x)).into_array(),
            |x, d, ()| {
                B::removal_key_backward(
                    RemovalKeyTensors::from_array(x),
                    RemovalTensors::from_array(d),
                )
                .into_array()
            },
        ))
    }

    fn removal_key_backward(
        _: RemovalKeyTensors<Self>,
        _: RemovalTensors<Self>,
    ) -> RemovalKeyTensors<Self> {
        no_second_derivative("removal_key")
    }
}

impl<B: ValueResidualOps, C: CheckpointStrategy> ValueResidualOps for Autodiff<B, C> {
    fn value_residual(inputs: ValueResidualTensors<Self>) -> FloatTensor<Self> {
        let [output] = record::<B, C, _, _, _>(
            inputs.into_array(),
            (),
            |x, ()| [B::value_residual(ValueResidualTensors::from_array(x))],
            |x, [d], ()| {
                B::value_residual_backward(ValueResidualTensors::from_array(x), d).into_array()
            },
        );
        output
    }

    fn value_residual_backward(
        _: ValueResidualTensors<Self>,
        _: FloatTensor<Self>,
    ) -> ValueResidualTensors<Self> {
        no_second_derivative("value_residual")
    }
}

impl<B: ReadOutOps, C: CheckpointStrategy> ReadOutOps for Autodiff<B, C> {
    fn read_out(inputs: ReadOutTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let [output] = record::<B, C, _, _, _>(
            inputs.into_array(),
            epsilon,
            |x, epsilon| [B::read_out(ReadOutTensors::from_array(x), epsilon)],
            |x, [d], epsilon| {
                B::read_out_backward(ReadOutTensors::from_array(x), d, epsilon).into_array()
            },
        );
        output
    }

    fn read_out_backward(
        _: ReadOutTensors<Self>,
        _: FloatTensor<Self>,
        _: f32,
    ) -> ReadOutTensors<Self> {
        no_second_derivative("read_out")
    }
}

impl<B: LayerNormOps, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn layer_norm(inputs: LayerNormTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let [output] = record::<B, C, _, _, _>(
            inputs.into_array(),
            epsilon,
            |x, epsilon| {
                [<B as LayerNormOps>::layer_norm(
                    LayerNormTensors::from_array(x),
                    epsilon,
                )]
            },
            |x, [d], epsilon| {
                B::layer_norm_backward(LayerNormTensors::from_array(x), d, epsilon).into_array()
            },
        );
        output
    }

    fn layer_norm_backward(
        _: LayerNormTensors<Self>,
        _: FloatTensor<Self>,
        _: f32,
    ) -> LayerNormTensors<Self> {
        no_second_derivative("layer_norm")
    }
}

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

impl<B: MatmulBf16Ops, C: CheckpointStrategy> MatmulBf16Ops for Autodiff<B, C> {
    fn matmul_bf16(inputs: MatmulTensors<Self>) -> FloatTensor<Self> {
        let [output] = record::<B, C, _, _, _>(
            inputs.into_array(),
            (),
            |x, ()| [B::matmul_bf16(MatmulTensors::from_array(x))],
            |x, [d], ()| B::matmul_bf16_backward(MatmulTensors::from_array(x), d).into_array(),
        );
        output
    }

    fn matmul_bf16_backward(_: MatmulTensors<Self>, _: FloatTensor<Self>) -> MatmulTensors<Self> {
        no_second_derivative("matmul_bf16")
    }
}
