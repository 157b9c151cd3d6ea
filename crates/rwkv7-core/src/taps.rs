//! Custom operations with several outputs.
//!
//! Burn's autodiff knows operations with one output. Here an operation with more is one node, the *source*, and each
//! output is a child of it, a *tap*. When the backward pass reaches a tap, the tap leaves its gradient in [`Taps`]; when it
//! has reached all of them it comes to the source, which takes what is there. What autodiff itself carries from a tap to
//! the source is a single zero.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{FloatDType, Shape},
};

/// Where the taps of one call leave their gradients for its source.
#[derive(Clone, Debug, Default)]
pub struct Taps(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

/// The gradients that have arrived.
pub(crate) struct Arrived<B: Backend> {
    outputs: Vec<Option<FloatTensor<B>>>,
    /// For each read of an operator's states, whatever its side, what lies in value space of x and dL/dz, and what lies in
    /// key space.
    pub reads: Vec<(FloatTensor<B>, FloatTensor<B>)>,
}

impl<B: Backend> Arrived<B> {
    /// The gradient of an output, if the loss depends on it.
    pub fn output(&mut self, index: usize) -> Option<FloatTensor<B>> {
        self.outputs.get_mut(index)?.take()
    }
}

impl Taps {
    /// Adds to what has arrived; true for the first arrival.
    fn arrive<B: Backend>(&self, add: impl FnOnce(&mut Arrived<B>)) -> bool {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = slot.is_none();
        let arrived = slot.get_or_insert_with(|| {
            Box::new(Arrived::<B> {
                outputs: Vec::new(),
                reads: Vec::new(),
            })
        });
        match arrived.downcast_mut::<Arrived<B>>() {
            Some(arrived) => add(arrived),
            None => unreachable!("the outputs of one call live on one backend"),
        }
        first
    }

    /// Takes everything: what a source begins its backward pass with.
    pub(crate) fn take<B: Backend>(&self) -> Option<Arrived<B>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = slot.take()?.downcast::<Arrived<B>>().ok()?;
        Some(*arrived)
    }

    /// A read's part of the backward pass, to be followed by a visit of the source.
    pub(crate) fn read<B: Backend>(
        &self,
        of_value: FloatTensor<B>,
        of_key: FloatTensor<B>,
        source: burn::backend::autodiff::NodeId,
        grads: &mut Gradients,
    ) {
        let zero = zero::<B>(&of_key);
        if self.arrive::<B>(|arrived| arrived.reads.push((of_value, of_key))) {
            grads.register::<B>(source, zero);
        }
    }

    /// Output number `index` of the operation whose node is `source`.
    pub(crate) fn tap<B: Backend, C: CheckpointStrategy>(
        &self,
        source: NodeGuard,
        index: usize,
        output: FloatTensor<B>,
    ) -> FloatTensor<Autodiff<B, C>> {
        match Tap.prepare::<C>([source]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((index, self.clone()), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

/// Carried from a tap to its source.
fn zero<B: Backend>(like: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_zeros(Shape::new([1]), &like.device(), FloatDType::F32)
}

#[derive(Debug)]
struct Tap;

impl<B: Backend> Backward<B, 1> for Tap {
    type State = (usize, Taps);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (index, taps) = ops.state;
        let [Some(source)] = ops.parents else {
            return;
        };
        let zero = zero::<B>(&gradient);
        let first = taps.arrive::<B>(|arrived| {
            let needed = arrived.outputs.len().max(index + 1);
            arrived.outputs.resize_with(needed, || None);
            arrived.outputs[index] = Some(gradient);
        });
        if first {
            grads.register::<B>(source.id, zero);
        }
    }
}
