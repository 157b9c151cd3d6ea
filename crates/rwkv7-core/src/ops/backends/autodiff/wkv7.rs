//! Gradients of the WKV-7 operation: y and S_T are its outputs, and every read of the states is one more. One backward pass
//! over the tokens serves them all.

use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{FloatDType, Shape},
};

use super::no_second_derivative;
use crate::ops::{
    Side,
    backends::wkv7::{Wkv7Ops, Wkv7Tensors},
    multi_output::PendingGradients,
};

// Numbers of the pending gradients.
const Y: usize = 0;
const STATE: usize = 1;
/// Of each read, whatever its side, the tensor of x and dL/dz that lies in value space, and the one in key space.
const READ: usize = 2;

/// The operation itself.
#[derive(Debug)]
struct Root;

/// What the backward pass of the operation needs.
#[derive(Clone, Debug)]
struct RootState<B: Backend> {
    inputs: [NodeId; 6],
    starts: FloatTensor<B>,
    /// Shape and type of y.
    y: (Shape, FloatDType),
    /// Shape of S.
    state: Shape,
    pending: PendingGradients,
}

impl<B: Wkv7Ops> Backward<B, 7> for Root {
    type State = RootState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let carried = grads.consume::<B>(&ops.node);
        let RootState {
            inputs,
            starts,
            y,
            state,
            pending,
        } = ops.state;
        let inputs = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let input = Wkv7Tensors::from_array(inputs);
        let zeros = |shape: &Shape, dtype| B::float_zeros(shape.clone(), &carried.device(), dtype);
        let output = |number, shape: &Shape, dtype| match pending.take::<B, 1>(number).pop() {
            Some([gradient]) => gradient,
            None => zeros(shape, dtype),
        };
        let mut dy = output(Y, &y.0, y.1);
        let mut d_state = output(STATE, &state, FloatDType::F32);
        let mut reads = pending.take::<B, 2>(READ);
        // The backward pass takes one read along. The rest is linear in the gradients, so each other read has a pass of its own.
        loop {
            let last = reads.len() <= 1;
            let (input, starts) = (input.clone(), starts.clone());
            let (tokens, s0) = match reads.pop() {
                None => B::wkv7_backward(input, starts, dy, d_state),
                Some([of_value, of_key]) => {
                    B::wkv7_read_backward(input, starts, dy, d_state, of_value, of_key)
                }
            };
            let gradients = tokens.into_array().into_iter().chain([s0]);
            for (parent, gradient) in ops.parents.iter().zip(gradients) {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, gradient);
                }
            }
            if last {
                break;
            }
            (dy, d_state) = (zeros(&y.0, y.1), zeros(&state, FloatDType::F32));
        }
    }
}

/// A read of the states.
#[derive(Debug)]
struct Read;

/// What the gradient of a read needs.
#[derive(Clone, Debug)]
struct ReadState<B: Backend> {
    x: NodeId,
    input: Wkv7Tensors<B>,
    s0: FloatTensor<B>,
    starts: FloatTensor<B>,
    side: Side,
    pending: PendingGradients,
}

impl<B: Wkv7Ops> Backward<B, 2> for Read {
    type State = ReadState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dz = grads.consume::<B>(&ops.node);
        let ReadState {
            x,
            input,
            s0,
            starts,
            side,
            pending,
        } = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let [query, root] = ops.parents;
        // The gradient of the query is a read of the other side; that of the state is the outer product of the two.
        let (back, of_value, of_key) = match side {
            Side::Value => (Side::Key, x, dz.clone()),
            Side::Key => (Side::Value, dz.clone(), x),
        };
        if let Some(root) = root {
            pending.leave::<B, 2>(READ, [of_value, of_key], root.id, grads);
        }
        if let Some(query) = query {
            let dx = B::wkv7_read(dz, input, s0, starts, back, PendingGradients::default());
            grads.register::<B>(query.id, dx);
        }
    }
}

/// The tensors without their nodes in the graph.
fn inner<B: Backend, C: CheckpointStrategy>(input: Wkv7Tensors<Autodiff<B, C>>) -> Wkv7Tensors<B> {
    Wkv7Tensors::from_array(input.into_array().map(|x| x.into_primitive()))
}

impl<B: Wkv7Ops, C: CheckpointStrategy> Wkv7Ops for Autodiff<B, C> {
    fn wkv7_forward(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, state, _) = Self::wkv7_traced(input, s0, PendingGradients::default());
        (y, state)
    }

    fn wkv7_traced(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        pending: PendingGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tokens = input.into_array();
        let [r, log_w, k, v, a, b] = tokens.each_ref().map(|x| x.node());
        let guards = [r, log_w, k, v, a, b, s0.node()];
        let run = |tokens, pending| {
            let input = inner::<B, C>(Wkv7Tensors::from_array(tokens));
            B::wkv7_traced(input, s0.into_primitive(), pending)
        };
        match Root.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => {
                let (y, state, starts) = run(tokens, pending);
                let new = <FloatTensor<Self>>::new;
                (new(y), new(state), prep.finish(starts))
            }
            OpsKind::Tracked(mut prep) => {
                let inputs = tokens.each_ref().map(|x| prep.checkpoint(x));
                let (y, state, starts) = run(tokens, pending.clone());
                let saved = RootState {
                    inputs,
                    starts: starts.clone(),
                    y: (y.shape(), y.dtype().into()),
                    state: state.shape(),
                    pending: pending.clone(),
                };
                let root = prep.finish(saved, starts);
                let y = pending.output::<B, C>(root.node(), Y, y);
                let state = pending.output::<B, C>(root.node(), STATE, state);
                (y, state, root)
            }
        }
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        pending: PendingGradients,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), starts.node()];
        let input = inner(input);
        let s0 = s0.into_primitive();
        let starts = starts.into_primitive();
        let read = |x: &FloatTensor<Self>, pending| {
            let x = x.primitive().clone();
            B::wkv7_read(x, input.clone(), s0.clone(), starts.clone(), side, pending)
        };
        match Read.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => prep.finish(read(&x, pending)),
            OpsKind::Tracked(mut prep) => {
                let id = prep.checkpoint(&x);
                let z = read(&x, pending.clone());
                let saved = ReadState {
                    x: id,
                    input,
                    s0,
                    starts,
                    side,
                    pending,
                };
                prep.finish(saved, z)
            }
        }
    }

    fn wkv7_backward(
        _: Wkv7Tensors<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        no_second_derivative("wkv7")
    }

    fn wkv7_read_backward(
        _: Wkv7Tensors<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        no_second_derivative("wkv7")
    }
}
