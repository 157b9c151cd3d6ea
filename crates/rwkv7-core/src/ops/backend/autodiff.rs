//! Gradients of the custom operation: y and S_T are its outputs, and every read of the states is one more; one backward pass
//! over the tokens serves them all. See [`Taps`].

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

use super::{TokenTensors, Wkv7Ops};
use crate::{ops::Side, taps::Taps};

/// Outputs of the operation.
const Y: usize = 0;
const STATE: usize = 1;

/// The operation itself.
#[derive(Debug)]
struct Source;

/// What the backward pass of the operation needs.
#[derive(Clone, Debug)]
struct SourceState<B: Backend> {
    inputs: [NodeId; 6],
    starts: FloatTensor<B>,
    /// Shape and type of y.
    y: (Shape, FloatDType),
    /// Shape of S.
    state: Shape,
    taps: Taps,
}

impl<B: Wkv7Ops> Backward<B, 7> for Source {
    type State = SourceState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let carried = grads.consume::<B>(&ops.node);
        let SourceState {
            inputs,
            starts,
            y,
            state,
            taps,
        } = ops.state;
        let Some(mut arrived) = taps.take::<B>() else {
            return;
        };
        let [r, log_w, k, v, a, b] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let input = TokenTensors {
            r,
            log_w,
            k,
            v,
            a,
            b,
        };
        let zeros = |shape: &Shape, dtype| B::float_zeros(shape.clone(), &carried.device(), dtype);
        let no_dy = || zeros(&y.0, y.1);
        let no_d_state = || zeros(&state, FloatDType::F32);
        let mut dy = arrived.output(Y).unwrap_or_else(no_dy);
        let mut d_state = arrived.output(STATE).unwrap_or_else(no_d_state);
        let mut reads = arrived.reads;
        // The backward pass takes one read along; what is left is linear in the gradients, so each has a pass of its own.
        loop {
            let last = reads.len() <= 1;
            let (tokens, s0) = match reads.pop() {
                None => B::wkv7_backward(input.clone(), starts.clone(), dy, d_state),
                Some((of_value, of_key)) => {
                    let (input, starts) = (input.clone(), starts.clone());
                    B::wkv7_read_backward(input, starts, dy, d_state, of_value, of_key)
                }
            };
            let TokenTensors {
                r,
                log_w,
                k,
                v,
                a,
                b,
            } = tokens;
            for (parent, gradient) in ops.parents.iter().zip([r, log_w, k, v, a, b, s0]) {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, gradient);
                }
            }
            if last {
                break;
            }
            (dy, d_state) = (no_dy(), no_d_state());
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
    input: TokenTensors<B>,
    s0: FloatTensor<B>,
    starts: FloatTensor<B>,
    side: Side,
    taps: Taps,
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
            taps,
        } = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let [query, source] = ops.parents;
        // The gradient of the query is a read of the other side; that of the state is the outer product of the two.
        let (back, of_value, of_key) = match side {
            Side::Value => (Side::Key, x, dz.clone()),
            Side::Key => (Side::Value, dz.clone(), x),
        };
        if let Some(source) = source {
            taps.read::<B>(of_value, of_key, source.id, grads);
        }
        if let Some(query) = query {
            let dx = B::wkv7_read(dz, input, s0, starts, back, Taps::default());
            grads.register::<B>(query.id, dx);
        }
    }
}

/// The tensors without their place in the graph.
fn inner<B: Backend, C: CheckpointStrategy>(
    input: TokenTensors<Autodiff<B, C>>,
) -> TokenTensors<B> {
    TokenTensors {
        r: input.r.into_primitive(),
        log_w: input.log_w.into_primitive(),
        k: input.k.into_primitive(),
        v: input.v.into_primitive(),
        a: input.a.into_primitive(),
        b: input.b.into_primitive(),
    }
}

impl<B: Wkv7Ops, C: CheckpointStrategy> Wkv7Ops for Autodiff<B, C> {
    fn wkv7_forward(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, state, _) = Self::wkv7_traced(input, s0, Taps::default());
        (y, state)
    }

    fn wkv7_traced(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        taps: Taps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tokens = [
            &input.r,
            &input.log_w,
            &input.k,
            &input.v,
            &input.a,
            &input.b,
        ];
        let [r, log_w, k, v, a, b] = tokens.map(|x| x.node());
        let guards = [r, log_w, k, v, a, b, s0.node()];
        match Source.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => {
                let (y, state, starts) = B::wkv7_traced(inner(input), s0.into_primitive(), taps);
                let new = <FloatTensor<Self>>::new;
                (new(y), new(state), prep.finish(starts))
            }
            OpsKind::Tracked(mut prep) => {
                let inputs = tokens.map(|x| prep.checkpoint(x));
                let (y, state, starts) =
                    B::wkv7_traced(inner(input), s0.into_primitive(), taps.clone());
                let saved = SourceState {
                    inputs,
                    starts: starts.clone(),
                    y: (y.shape(), y.dtype().into()),
                    state: state.shape(),
                    taps: taps.clone(),
                };
                let source = prep.finish(saved, starts);
                let y = taps.tap::<B, C>(source.node(), Y, y);
                let state = taps.tap::<B, C>(source.node(), STATE, state);
                (y, state, source)
            }
        }
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        taps: Taps,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), starts.node()];
        let input = inner(input);
        let s0 = s0.into_primitive();
        let starts = starts.into_primitive();
        let read = |x: &FloatTensor<Self>, taps| {
            let x = x.primitive().clone();
            B::wkv7_read(x, input.clone(), s0.clone(), starts.clone(), side, taps)
        };
        match Read.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => prep.finish(read(&x, taps)),
            OpsKind::Tracked(mut prep) => {
                let id = prep.checkpoint(&x);
                let z = read(&x, taps.clone());
                let saved = ReadState {
                    x: id,
                    input,
                    s0,
                    starts,
                    side,
                    taps,
                };
                prep.finish(saved, z)
            }
        }
    }

    fn wkv7_backward(
        _: TokenTensors<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        unimplemented!("wkv7 has first derivatives only")
    }

    fn wkv7_read_backward(
        _: TokenTensors<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        unimplemented!("wkv7 has first derivatives only")
    }
}
