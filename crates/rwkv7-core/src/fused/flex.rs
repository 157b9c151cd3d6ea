//! The functions of the [module](super) as custom operations on the CPU; the arithmetic is in [`cpu`](super::cpu).

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
    cpu::{
        activation, adamw, cross_entropy, key_preparation, layer_norm, read_out, token_shift,
        value_residual,
    },
};
use crate::{
    flex::{floats, tensor},
    operator,
    optimizer::OptimizerConfig,
    taps::Taps,
};

/// A fused operation. Inputs are given in the order of the fields of its kernel's `Inputs`.
#[derive(Clone, Debug)]
pub enum FusedOp {
    /// h, last, and one μ for each output.
    TokenShift { outputs: usize },
    /// Outputs are of this shape, `[batch, time, heads, head_size]`.
    KeyPreparation { shape: Shape },
    /// v, first, s, v0.
    ValueResidual,
    /// The output is of this shape, `[batch, time, C]`.
    ReadOut {
        shape: Shape,
        head_size: usize,
        epsilon: f32,
    },
    /// x, γ, β.
    LayerNorm { epsilon: f32 },
    /// x.
    ReluSquared,
    /// x.
    Sigmoid,
    /// x.
    Tanh,
    /// Logits `[rows, V]`.
    CrossEntropy { targets: Arc<Vec<i64>> },
}

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
        && operator::custom_is_allowed()
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

fn all<T, const N: usize>(tensors: Vec<T>) -> [T; N] {
    let found = tensors.len();
    match tensors.try_into() {
        Ok(tensors) => tensors,
        Err(_) => unreachable!("an operation of {N} tensors has {found}"),
    }
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

impl FusedOp {
    fn inputs(&self) -> usize {
        match self {
            Self::TokenShift { outputs } => 2 + outputs,
            Self::KeyPreparation { .. } => 7,
            Self::ValueResidual => 4,
            Self::ReadOut { .. } => 8,
            Self::LayerNorm { .. } => 3,
            Self::ReluSquared | Self::Sigmoid | Self::Tanh | Self::CrossEntropy { .. } => 1,
        }
    }

    fn outputs(&self) -> usize {
        match self {
            Self::TokenShift { outputs } => *outputs,
            Self::KeyPreparation { .. } => 4,
            _ => 1,
        }
    }

    /// What the backward pass needs: the inputs, or for functions whose derivative is simpler by their value, that.
    fn saved(&self, inputs: Vec<FlexTensor>, outputs: &[FlexTensor]) -> Vec<FlexTensor> {
        match self {
            Self::Sigmoid | Self::Tanh => outputs.to_vec(),
            _ => inputs,
        }
    }

    fn forward(&self, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
        let x: Vec<&[f32]> = inputs.iter().map(floats).collect();
        let like_first = || vec![0.0; x[0].len()];
        let mut outputs: Vec<Vec<f32>> = match self {
            Self::CrossEntropy { targets } => vec![vec![0.0; targets.len()]],
            _ => (0..self.outputs()).map(|_| like_first()).collect(),
        };
        let mut out: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        let mut shape = inputs[0].shape();
        match self {
            Self::TokenShift { .. } => {
                token_shift::forward(token_shift_inputs(&x, &shape), &mut out)
            }
            Self::KeyPreparation { shape: split } => {
                let [log_w, k, a, b] = all(out);
                let outputs = key_preparation::Outputs { log_w, k, a, b };
                key_preparation::forward(key_inputs(&x, split[3]), outputs);
                shape = split.clone();
            }
            Self::ValueResidual => value_residual::forward(residual_inputs(&x), out[0]),
            Self::ReadOut {
                shape: joined,
                head_size,
                epsilon,
            } => {
                read_out::forward(read_out_inputs(&x, *head_size, *epsilon), out[0]);
                shape = joined.clone();
            }
            Self::LayerNorm { epsilon } => layer_norm::forward(norm_inputs(&x, *epsilon), out[0]),
            Self::ReluSquared => activation::relu_squared(x[0], out[0]),
            Self::Sigmoid => activation::sigmoid(x[0], out[0]),
            Self::Tanh => activation::tanh(x[0], out[0]),
            Self::CrossEntropy { targets } => {
                cross_entropy::forward(x[0], targets, out[0]);
                shape = Shape::new([targets.len()]);
            }
        }
        let outputs = outputs.into_iter();
        outputs
            .map(|values| tensor(values, shape.clone()))
            .collect()
    }

    /// Gradients of the inputs from those of the outputs; `inputs` is what [`saved`](Self::saved) kept.
    fn backward(&self, inputs: &[FlexTensor], outputs: &[Option<FlexTensor>]) -> Vec<FlexTensor> {
        let x: Vec<&[f32]> = inputs.iter().map(floats).collect();
        let mut gradients: Vec<Vec<f32>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        let mut g = gradients.iter_mut().map(Vec::as_mut_slice);
        let zeros = if outputs.iter().any(Option::is_none) {
            vec![0.0; x[0].len()]
        } else {
            Vec::new()
        };
        let d = |i: usize| match &outputs[i] {
            Some(gradient) => floats(gradient),
            None => zeros.as_slice(),
        };
        match self {
            Self::TokenShift { .. } => {
                let [h, last] = first(&mut g);
                let mut mus: Vec<_> = g.collect();
                let gradients = token_shift::Gradients {
                    h,
                    last,
                    mus: &mut mus,
                };
                let outputs: Vec<_> = outputs.iter().map(|d| d.as_ref().map(floats)).collect();
                let shape = inputs[0].shape();
                token_shift::backward(token_shift_inputs(&x, &shape), &outputs, gradients);
            }
            Self::KeyPreparation { shape } => {
                let [k, w_pre, a_pre, w0, a0, k_k, k_a] = first(&mut g);
                let gradients = key_preparation::Gradients {
                    k,
                    w_pre,
                    a_pre,
                    w0,
                    a0,
                    k_k,
                    k_a,
                };
                let outputs = key_preparation::OutputGrads {
                    log_w: d(0),
                    k: d(1),
                    a: d(2),
                    b: d(3),
                };
                key_preparation::backward(key_inputs(&x, shape[3]), outputs, gradients);
            }
            Self::ValueResidual => {
                let [v, first, s_pre, v0] = first(&mut g);
                let gradients = value_residual::Gradients {
                    v,
                    first,
                    s_pre,
                    v0,
                };
                value_residual::backward(residual_inputs(&x), d(0), gradients);
            }
            Self::ReadOut {
                head_size, epsilon, ..
            } => {
                let [y, r, k, v, gate, r_k, gamma, beta] = first(&mut g);
                let gradients = read_out::Gradients {
                    y,
                    r,
                    k,
                    v,
                    gate,
                    r_k,
                    gamma,
                    beta,
                };
                let inputs = read_out_inputs(&x, *head_size, *epsilon);
                read_out::backward(inputs, d(0), gradients);
            }
            Self::LayerNorm { epsilon } => {
                let [x_gradient, gamma, beta] = first(&mut g);
                let gradients = layer_norm::Gradients {
                    x: x_gradient,
                    gamma,
                    beta,
                };
                layer_norm::backward(norm_inputs(&x, *epsilon), d(0), gradients);
            }
            Self::ReluSquared => {
                let [gradient] = first(&mut g);
                activation::relu_squared_backward(x[0], d(0), gradient);
            }
            Self::Sigmoid => {
                let [gradient] = first(&mut g);
                activation::sigmoid_backward(x[0], d(0), gradient);
            }
            Self::Tanh => {
                let [gradient] = first(&mut g);
                activation::tanh_backward(x[0], d(0), gradient);
            }
            Self::CrossEntropy { targets } => {
                let [gradient] = first(&mut g);
                cross_entropy::backward(x[0], targets, d(0), gradient);
            }
        }
        let shapes = inputs.iter().map(|x| x.shape());
        let gradients = gradients.into_iter().zip(shapes);
        gradients
            .map(|(values, shape)| tensor(values, shape))
            .collect()
    }
}

fn token_shift_inputs<'a>(x: &'a [&'a [f32]], shape: &Shape) -> token_shift::Inputs<'a> {
    token_shift::Inputs {
        h: x[0],
        last: x[1],
        mus: &x[2..],
        time: shape[1],
    }
}

fn key_inputs<'a>(x: &[&'a [f32]], head_size: usize) -> key_preparation::Inputs<'a> {
    key_preparation::Inputs {
        k: x[0],
        w_pre: x[1],
        a_pre: x[2],
        w0: x[3],
        a0: x[4],
        k_k: x[5],
        k_a: x[6],
        head_size,
    }
}

fn residual_inputs<'a>(x: &[&'a [f32]]) -> value_residual::Inputs<'a> {
    value_residual::Inputs {
        v: x[0],
        first: x[1],
        s_pre: x[2],
        v0: x[3],
    }
}

fn read_out_inputs<'a>(x: &[&'a [f32]], head_size: usize, eps: f32) -> read_out::Inputs<'a> {
    read_out::Inputs {
        y: x[0],
        r: x[1],
        k: x[2],
        v: x[3],
        gate: x[4],
        r_k: x[5],
        gamma: x[6],
        beta: x[7],
        eps,
        head_size,
    }
}

fn norm_inputs<'a>(x: &[&'a [f32]], eps: f32) -> layer_norm::Inputs<'a> {
    layer_norm::Inputs {
        x: x[0],
        gamma: x[1],
        beta: x[2],
        eps,
    }
}

/// The first `N` of an iterator.
fn first<T, const N: usize>(items: &mut impl Iterator<Item = T>) -> [T; N] {
    all(items.by_ref().take(N).collect())
}

fn contiguous(tensors: impl Iterator<Item = FlexTensor>) -> Vec<FlexTensor> {
    tensors.map(|x| x.to_contiguous()).collect()
}
