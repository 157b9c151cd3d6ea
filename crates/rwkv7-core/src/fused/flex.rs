//! The functions of the [module](super) as custom operations on the CPU; what they are is in [`op`](super::op).

use std::sync::Arc;

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, DispatchDevice, Flex, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    optim::AdaptiveMomentumState,
    tensor::{DType, Int, Shape, Tensor},
};

use super::{
    KeyPreparation, Keys, ReadOut,
    cpu::{adamw, product},
    op::{FusedOp, all, first},
};
use crate::{
    flex::{floats, tensor},
    ops,
    optimizer::OptimizerConfig,
    taps::Taps,
};

/// One operation of several kinds: Burn routes it to the CPU, with or without autodiff.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// The outputs of `op`. Burn routes no list of inputs: there are always eight, and `op` takes the first ones.
    fn fused(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
        op: FusedOp,
    ) -> Vec<FloatTensor<Self>>;
}

/// Whether a tensor is one that the kernels take: f32 on the CPU, and nobody asked for plain operations.
pub fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
        && matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
        && ops::custom_is_allowed()
}

pub fn token_shift(h: Tensor<3>, last: Tensor<2>, mus: Vec<Tensor<3>>) -> Vec<Tensor<3>> {
    let op = FusedOp::TokenShift { outputs: mus.len() };
    let mut inputs = vec![h.into_dispatch(), last.into_dispatch()];
    inputs.extend(mus.into_iter().map(Tensor::into_dispatch));
    let outputs = run(inputs, op);
    outputs.into_iter().map(Tensor::from_dispatch).collect()
}

pub fn key_preparation(input: KeyPreparation, head_size: usize) -> Keys {
    let KeyPreparation {
        k,
        w,
        a,
        w0,
        a0,
        k_k,
        k_a,
    } = input;
    let [batch, time, width] = k.dims();
    let shape = Shape::new([batch, time, width / head_size, head_size]);
    let inputs = [k, w, a, w0, a0, k_k, k_a].map(Tensor::into_dispatch);
    let outputs = run(inputs, FusedOp::KeyPreparation { shape });
    let [log_w, k, a, b] = all(outputs).map(Tensor::from_dispatch);
    Keys { log_w, k, a, b }
}

pub fn removal_key(z: Tensor<4>, rate: Tensor<3>, bias: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
    let inputs = [
        z.into_dispatch(),
        rate.into_dispatch(),
        bias.into_dispatch(),
    ];
    let [a, b] = all(run(inputs, FusedOp::RemovalKey)).map(Tensor::from_dispatch);
    (a, b)
}

pub fn value_residual(v: Tensor<3>, first: Tensor<3>, s: Tensor<3>, v0: Tensor<3>) -> Tensor<3> {
    let inputs = [v, first, s, v0].map(Tensor::into_dispatch);
    one(run(inputs, FusedOp::ValueResidual))
}

pub fn read_out(input: ReadOut) -> Tensor<3> {
    let [batch, time, heads, head_size] = input.y.dims();
    let op = FusedOp::ReadOut {
        shape: Shape::new([batch, time, heads * head_size]),
        head_size,
        epsilon: input.epsilon as f32,
    };
    let inputs = vec![
        input.y.into_dispatch(),
        input.r.into_dispatch(),
        input.k.into_dispatch(),
        input.v.into_dispatch(),
        input.gate.into_dispatch(),
        input.r_k.into_dispatch(),
        input.gamma.into_dispatch(),
        input.beta.into_dispatch(),
    ];
    one(run(inputs, op))
}

pub fn layer_norm(x: Tensor<3>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let inputs = vec![
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    ];
    let epsilon = epsilon as f32;
    one(run(inputs, FusedOp::LayerNorm { epsilon }))
}

pub fn relu_squared(x: Tensor<3>) -> Tensor<3> {
    one(run(vec![x.into_dispatch()], FusedOp::ReluSquared))
}

pub fn sigmoid(x: Tensor<2>) -> Tensor<2> {
    one(run([x.into_dispatch()], FusedOp::Sigmoid))
}

pub fn tanh(x: Tensor<2>) -> Tensor<2> {
    one(run([x.into_dispatch()], FusedOp::Tanh))
}

pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let targets = Arc::new(targets.into_data().iter::<i64>().collect());
    one(run(
        vec![logits.into_dispatch()],
        FusedOp::CrossEntropy { targets },
    ))
}

/// Where [`takes`] takes the factors and the processor multiplies in bf16.
pub fn bf16_product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let inputs = [x.into_dispatch(), weight.into_dispatch()];
    one(run(inputs, FusedOp::Product))
}

/// Whether this processor multiplies in bf16.
pub fn has_bf16_products() -> bool {
    product::is_available()
}

/// One step of AdamW in place; the tensors are outside autodiff.
pub fn adamw<const D: usize>(
    config: &OptimizerConfig,
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: AdaptiveMomentumState<D>,
) -> (Tensor<D>, AdaptiveMomentumState<D>) {
    let time = state.time + 1;
    let correction = |beta: f32| 1.0 - beta.powi(time as i32);
    let step = adamw::Step {
        lr: rate,
        beta1: config.beta_1,
        beta2: config.beta_2,
        eps: config.epsilon,
        weight_decay: config.weight_decay,
        correction1: correction(config.beta_1),
        correction2: correction(config.beta_2),
        grad_scale: 1.0,
    };
    let gradient = primitive(gradient);
    let [mut parameter, mut first, mut second] =
        [parameter, state.moment_1, state.moment_2].map(|x| whole(primitive(x)));
    adamw::step(
        step,
        parameter.storage_mut(),
        floats(&gradient),
        first.storage_mut(),
        second.storage_mut(),
    );
    let [first, second] = [first, second].map(Tensor::from_primitive::<Flex>);
    let state = AdaptiveMomentumState::new(time, first, second);
    (Tensor::from_primitive::<Flex>(parameter), state)
}

pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let sum = adamw::sum_of_squares(floats(&primitive(x)));
    Tensor::from_primitive::<Flex>(tensor(vec![sum as f32], Shape::new([1])))
}

/// The tensor in the CPU backend's own form, laid out as its shape says.
fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    match x.try_into_primitive::<Flex>() {
        Ok(x) => x.to_contiguous(),
        Err(error) => unreachable!("a tensor on the CPU outside autodiff: {error:?}"),
    }
}

/// The tensor as all of its memory, not a part of another's.
fn whole(x: FlexTensor) -> FlexTensor {
    if x.storage::<f32>().len() == x.shape().num_elements() {
        x
    } else {
        tensor(floats(&x).to_vec(), x.shape())
    }
}

/// Runs an operation where its inputs are.
fn run(
    inputs: impl IntoIterator<Item = FloatTensor<Dispatch>>,
    op: FusedOp,
) -> Vec<FloatTensor<Dispatch>> {
    let mut inputs: Vec<_> = inputs.into_iter().collect();
    while inputs.len() < 8 {
        inputs.push(inputs[0].clone());
    }
    let [a, b, c, d, e, f, g, h] = all(inputs);
    Dispatch::fused(a, b, c, d, e, f, g, h, op)
}

/// The only output.
fn one<const D: usize>(outputs: Vec<FloatTensor<Dispatch>>) -> Tensor<D> {
    let [output] = all(outputs);
    Tensor::from_dispatch(output)
}

impl FusedOps for Flex {
    fn fused(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
        op: FusedOp,
    ) -> Vec<FloatTensor<Self>> {
        let inputs = [a, b, c, d, e, f, g, h];
        op.forward(&contiguous(inputs.into_iter().take(op.inputs())))
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
        op: FusedOp,
    ) -> Vec<FloatTensor<Self>> {
        let inputs = [a, b, c, d, e, f, g, h];
        let mut inputs = inputs.into_iter();
        match op.inputs() {
            1 => record::<C, 1>(first(&mut inputs), op),
            2 => record::<C, 2>(first(&mut inputs), op),
            3 => record::<C, 3>(first(&mut inputs), op),
            4 => record::<C, 4>(first(&mut inputs), op),
            7 => record::<C, 7>(first(&mut inputs), op),
            8 => record::<C, 8>(first(&mut inputs), op),
            n => unreachable!("no fused operation has {n} inputs"),
        }
    }
}

/// Runs an operation and records its step.
fn record<C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    op: FusedOp,
) -> Vec<FloatTensor<Autodiff<Flex, C>>> {
    let guards = inputs.each_ref().map(|x| x.node());
    let inputs = contiguous(inputs.into_iter().map(|x| x.into_primitive()));
    let mut outputs = op.forward(&inputs);
    match Step.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::UnTracked(_) => outputs
            .into_iter()
            .map(<FloatTensor<Autodiff<Flex, C>>>::new)
            .collect(),
        OpsKind::Tracked(prep) if outputs.len() == 1 => {
            let saved = op.saved(inputs, &outputs);
            let output = outputs.remove(0);
            vec![prep.finish((op, saved, None), output)]
        }
        OpsKind::Tracked(prep) => {
            let taps = Taps::default();
            let source = tensor(vec![0.0], Shape::new([1]));
            let source = prep.finish((op, inputs, Some(taps.clone())), source);
            let outputs = outputs.into_iter().enumerate();
            outputs
                .map(|(i, output)| taps.tap::<Flex, C>(source.node(), i, output))
                .collect()
        }
    }
}

/// The backward pass of any fused operation.
#[derive(Debug)]
struct Step;

impl<const N: usize> Backward<Flex, N> for Step {
    /// The operation, what it saved, and where the gradients of several outputs are.
    type State = (FusedOp, Vec<FlexTensor>, Option<Taps>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let carried = grads.consume::<Flex>(&ops.node);
        let (op, inputs, taps) = ops.state;
        let outputs = match taps {
            None => vec![Some(carried)],
            Some(taps) => match taps.take::<Flex>() {
                Some(mut arrived) => (0..op.outputs()).map(|i| arrived.output(i)).collect(),
                None => return,
            },
        };
        let outputs: Vec<_> = outputs
            .into_iter()
            .map(|gradient| gradient.map(|x| x.to_contiguous()))
            .collect();
        let gradients = op.backward(&inputs, &outputs);
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

fn contiguous(tensors: impl Iterator<Item = FlexTensor>) -> Vec<FlexTensor> {
    tensors.map(|x| x.to_contiguous()).collect()
}
