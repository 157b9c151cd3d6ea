//! Autodiff of operations with several outputs.
//!
//! Burn's autodiff knows operations with one output. Here an operation with several is one node, the *root node*, and each
//! output is a child of the root, an *output node*. When the backward pass reaches an output node, the node leaves its gradient
//! in the [`PendingGradients`] of the call. When the backward pass has reached all output nodes it comes to the root node,
//! which takes what is pending. Autodiff itself carries a single zero from an output node to the root.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{FloatDType, Shape},
};

/// Where the output nodes of one call leave gradients for its root node: what a node leaves is a number, which says what the
/// node is, and tensors.
#[derive(Clone, Debug, Default)]
pub struct PendingGradients(Arc<Mutex<Vec<Left>>>);

type Left = (usize, Box<dyn Any + Send>);

impl PendingGradients {
    /// Leaves tensors under a number, to be followed by a visit of the root node.
    pub(super) fn leave<B: Backend, const N: usize>(
        &self,
        number: usize,
        tensors: [FloatTensor<B>; N],
        root: NodeId,
        grads: &mut Gradients,
    ) {
        let device = tensors[0].device();
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.is_empty() {
            let zero = B::float_zeros(Shape::new([1]), &device, FloatDType::F32);
            grads.register::<B>(root, zero);
        }
        pending.push((number, Box::new(tensors)));
    }

    /// Takes everything of a number, in the order of its arrival.
    pub(super) fn take<B: Backend, const N: usize>(
        &self,
        number: usize,
    ) -> Vec<[FloatTensor<B>; N]> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = pending.extract_if(.., |(found, _)| *found == number);
        taken
            .map(|(_, tensors)| match tensors.downcast() {
                Ok(tensors) => *tensors,
                Err(_) => unreachable!("the outputs of one call live on one backend"),
            })
            .collect()
    }

    /// Output `number` of the operation whose root node is `root`: its gradient is left under that number.
    pub(super) fn output<B: Backend, C: CheckpointStrategy>(
        &self,
        root: NodeGuard,
        number: usize,
        output: FloatTensor<B>,
    ) -> FloatTensor<Autodiff<B, C>> {
        match OutputNode.prepare::<C>([root]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((number, self.clone()), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct OutputNode;

impl<B: Backend> Backward<B, 1> for OutputNode {
    type State = (usize, PendingGradients);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (number, pending) = ops.state;
        if let [Some(root)] = ops.parents {
            pending.leave::<B, 1>(number, [gradient], root.id, grads);
        }
    }
}
