//! The fused operations, forward and backward, on tensors of the CPU backend; the arithmetic is in [`cpu`](super::cpu).

use std::sync::Arc;

use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::Shape,
};

use super::cpu::{
    activation, cross_entropy, key_preparation, layer_norm,
    product::{Matrix, product},
    read_out, removal_key, token_shift, value_residual,
};
use crate::flex::{floats, tensor};

/// A fused operation. Inputs are given in the order of the fields of its kernel's `Inputs`.
#[derive(Clone, Debug)]
pub enum FusedOp {
    /// h, last, and one μ for each output.
    TokenShift { outputs: usize },
    /// Outputs are of this shape, `[batch, time, heads, head_size]`.
    KeyPreparation { shape: Shape },
    /// v, first, s, v0.
    ValueResidual,
    /// z, rate, bias; outputs are of the shape of z, `[batch, time, heads, head_size]`.
    RemovalKey,
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
    /// Two matrices; in bf16.
    Product,
}

impl FusedOp {
    pub fn inputs(&self) -> usize {
        match self {
            Self::TokenShift { outputs } => 2 + outputs,
            Self::KeyPreparation { .. } => 7,
            Self::ValueResidual => 4,
            Self::ReadOut { .. } => 8,
            Self::LayerNorm { .. } | Self::RemovalKey => 3,
            Self::Product => 2,
            Self::ReluSquared | Self::Sigmoid | Self::Tanh | Self::CrossEntropy { .. } => 1,
        }
    }

    pub fn outputs(&self) -> usize {
        match self {
            Self::TokenShift { outputs } => *outputs,
            Self::KeyPreparation { .. } => 4,
            Self::RemovalKey => 2,
            _ => 1,
        }
    }

    /// What the backward pass needs: the inputs, or for functions whose derivative is simpler by their value, that.
    pub fn saved(&self, inputs: Vec<FlexTensor>, outputs: &[FlexTensor]) -> Vec<FlexTensor> {
        match self {
            Self::Sigmoid | Self::Tanh => outputs.to_vec(),
            _ => inputs,
        }
    }

    pub fn forward(&self, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
        let x: Vec<&[f32]> = inputs.iter().map(floats).collect();
        let like_first = || vec![0.0; x[0].len()];
        let mut outputs: Vec<Vec<f32>> = match self {
            Self::CrossEntropy { targets } => vec![vec![0.0; targets.len()]],
            Self::Product => vec![vec![0.0; inputs[0].shape()[0] * inputs[1].shape()[1]]],
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
            Self::RemovalKey => {
                let [a, b] = all(out);
                let outputs = removal_key::Outputs { a, b };
                removal_key::forward(removal_inputs(&x, shape[3]), outputs);
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
            Self::Product => {
                let [left, right] = matrices(&x, inputs);
                product(left, right, out[0]);
                shape = Shape::new([inputs[0].shape()[0], inputs[1].shape()[1]]);
            }
        }
        let outputs = outputs.into_iter();
        outputs
            .map(|values| tensor(values, shape.clone()))
            .collect()
    }

    /// Gradients of the inputs from those of the outputs; `inputs` is what [`saved`](Self::saved) kept.
    pub fn backward(
        &self,
        inputs: &[FlexTensor],
        outputs: &[Option<FlexTensor>],
    ) -> Vec<FlexTensor> {
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
            Self::RemovalKey => {
                let [z, rate_pre, bias] = first(&mut g);
                let gradients = removal_key::Gradients { z, rate_pre, bias };
                let outputs = removal_key::OutputGrads { a: d(0), b: d(1) };
                let inputs = removal_inputs(&x, inputs[0].shape()[3]);
                removal_key::backward(inputs, outputs, gradients);
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
            Self::Product => {
                let [left, right] = matrices(&x, inputs);
                let [left_gradient, right_gradient] = first(&mut g);
                let d = Matrix::new(d(0), [left.rows(), right.columns()]);
                product(d, right.transpose(), left_gradient);
                product(left.transpose(), d, right_gradient);
            }
        }
        let shapes = inputs.iter().map(|x| x.shape());
        let gradients = gradients.into_iter().zip(shapes);
        gradients
            .map(|(values, shape)| tensor(values, shape))
            .collect()
    }
}

fn matrices<'a>(x: &[&'a [f32]], inputs: &[FlexTensor]) -> [Matrix<'a>; 2] {
    std::array::from_fn(|i| {
        let shape = inputs[i].shape();
        Matrix::new(x[i], [shape[0], shape[1]])
    })
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

fn removal_inputs<'a>(x: &[&'a [f32]], head_size: usize) -> removal_key::Inputs<'a> {
    removal_key::Inputs {
        z: x[0],
        rate_pre: x[1],
        bias: x[2],
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

/// A list as an array.
pub fn all<T, const N: usize>(tensors: Vec<T>) -> [T; N] {
    let found = tensors.len();
    match tensors.try_into() {
        Ok(tensors) => tensors,
        Err(_) => unreachable!("an operation of {N} tensors has {found}"),
    }
}

/// The first `N` of an iterator.
pub fn first<T, const N: usize>(items: &mut impl Iterator<Item = T>) -> [T; N] {
    all(items.by_ref().take(N).collect())
}
