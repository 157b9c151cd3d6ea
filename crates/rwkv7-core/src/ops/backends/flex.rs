//! The custom operations on the CPU; the arithmetic is in [`cpu`].

mod wkv7;

use burn::{
    backend::{
        Flex, TensorMetadata,
        flex::{FlexTensor, Layout},
        ops::IntTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    optim::AdaptiveMomentumState,
    tensor::{Bytes, DType, IntDType, Shape, Tensor},
};

use super::*;
use crate::{
    ops::cpu::{
        activation, adamw, cross_entropy, key_preparation, layer_norm,
        matmul_bf16::{self, Matrix},
        read_out, removal_key, token_shift, value_residual,
    },
    optimizer::OptimizerConfig,
};

impl TokenShiftOps for Flex {
    fn token_shift(inputs: TokenShiftTensors<Self>) -> FloatTensor<Self> {
        let inputs = contiguous(inputs.into_array());
        let shape = inputs[0].shape();
        let [h, last, mu] = slices(&inputs);
        let [output] = token_shift::forward(h, last, [mu], shape[1]);
        tensor(output, shape)
    }

    fn token_shift_backward(
        inputs: TokenShiftTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> TokenShiftTensors<Self> {
        let (inputs, gradient) = (contiguous(inputs.into_array()), gradient.to_contiguous());
        let [h, last, mu] = slices(&inputs);
        let time = inputs[0].shape()[1];
        let (h, last, [mu]) = token_shift::backward(h, last, [mu], [floats(&gradient)], time);
        TokenShiftTensors::from_array(shaped([h, last, mu], &inputs))
    }

    fn six_token_shifts(inputs: SixTokenShiftTensors<Self>) -> SixTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let shape = inputs[0].shape();
        let [h, last, mus @ ..] = slices(&inputs);
        let outputs = token_shift::forward(h, last, mus, shape[1]);
        SixTensors::from_array(outputs.map(|output| tensor(output, shape.clone())))
    }

    fn six_token_shifts_backward(
        inputs: SixTokenShiftTensors<Self>,
        gradients: SixTensors<Self>,
    ) -> SixTokenShiftTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let gradients = contiguous(gradients.into_array());
        let [h, last, mus @ ..] = slices(&inputs);
        let time = inputs[0].shape()[1];
        let (h, last, mus) = token_shift::backward(h, last, mus, slices(&gradients), time);
        let [r, w, k, v, a, g] = mus;
        SixTokenShiftTensors::from_array(shaped([h, last, r, w, k, v, a, g], &inputs))
    }
}

impl KeyPreparationOps for Flex {
    fn key_preparation(inputs: KeyPreparationTensors<Self>, head_size: usize) -> KeyTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let [batch, time, width] = inputs[0].shape().dims();
        let shape = Shape::new([batch, time, width / head_size, head_size]);
        let outputs = key_preparation::forward(slices(&inputs), head_size);
        KeyTensors::from_array(outputs.map(|output| tensor(output, shape.clone())))
    }

    fn key_preparation_backward(
        inputs: KeyPreparationTensors<Self>,
        gradients: KeyTensors<Self>,
        head_size: usize,
    ) -> KeyPreparationTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let gradients = contiguous(gradients.into_array());
        let gradients = key_preparation::backward(slices(&inputs), slices(&gradients), head_size);
        KeyPreparationTensors::from_array(shaped(gradients, &inputs))
    }
}

impl RemovalKeyOps for Flex {
    fn removal_key(inputs: RemovalKeyTensors<Self>) -> RemovalTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let shape = inputs[0].shape();
        let outputs = removal_key::forward(slices(&inputs), shape[3]);
        RemovalTensors::from_array(outputs.map(|output| tensor(output, shape.clone())))
    }

    fn removal_key_backward(
        inputs: RemovalKeyTensors<Self>,
        gradients: RemovalTensors<Self>,
    ) -> RemovalKeyTensors<Self> {
        let inputs = contiguous(inputs.into_array());
        let gradients = contiguous(gradients.into_array());
        let head_size = inputs[0].shape()[3];
        let gradients = removal_key::backward(slices(&inputs), slices(&gradients), head_size);
        RemovalKeyTensors::from_array(shaped(gradients, &inputs))
    }
}

impl ValueResidualOps for Flex {
    fn value_residual(inputs: ValueResidualTensors<Self>) -> FloatTensor<Self> {
        let inputs = contiguous(inputs.into_array());
        let output = value_residual::forward(slices(&inputs));
        tensor(output, inputs[0].shape())
    }

    fn value_residual_backward(
        inputs: ValueResidualTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> ValueResidualTensors<Self> {
        let (inputs, gradient) = (contiguous(inputs.into_array()), gradient.to_contiguous());
        let gradients = value_residual::backward(slices(&inputs), floats(&gradient));
        ValueResidualTensors::from_array(shaped(gradients, &inputs))
    }
}

impl ReadOutOps for Flex {
    fn read_out(inputs: ReadOutTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (head_size, shape) = (inputs.y.shape()[3], inputs.gate.shape());
        let inputs = contiguous(inputs.into_array());
        let output = read_out::forward(slices(&inputs), head_size, epsilon);
        tensor(output, shape)
    }

    fn read_out_backward(
        inputs: ReadOutTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> ReadOutTensors<Self> {
        let head_size = inputs.y.shape()[3];
        let (inputs, gradient) = (contiguous(inputs.into_array()), gradient.to_contiguous());
        let gradients = read_out::backward(slices(&inputs), floats(&gradient), head_size, epsilon);
        ReadOutTensors::from_array(shaped(gradients, &inputs))
    }
}

impl LayerNormOps for Flex {
    fn layer_norm(inputs: LayerNormTensors<Self>, epsilon: f32) -> FloatTensor<Self> {
        let inputs = contiguous(inputs.into_array());
        let output = layer_norm::forward(slices(&inputs), epsilon);
        tensor(output, inputs[0].shape())
    }

    fn layer_norm_backward(
        inputs: LayerNormTensors<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormTensors<Self> {
        let (inputs, gradient) = (contiguous(inputs.into_array()), gradient.to_contiguous());
        let gradients = layer_norm::backward(slices(&inputs), floats(&gradient), epsilon);
        LayerNormTensors::from_array(shaped(gradients, &inputs))
    }
}

impl ActivationOps for Flex {
    fn activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        tensor(activation::forward(floats(&x), activation), x.shape())
    }

    fn activation_backward(
        y: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let [y, gradient] = contiguous([y, gradient]);
        let gradient = activation::backward(floats(&y), floats(&gradient), activation);
        tensor(gradient, y.shape())
    }
}

impl CrossEntropyOps for Flex {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let (logits, targets) = (logits.to_contiguous(), long(targets));
        let losses = cross_entropy::forward(floats(&logits), classes(&targets));
        tensor(losses, targets.shape())
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let ([logits, losses], targets) = (contiguous([logits, gradient]), long(targets));
        let gradient = cross_entropy::backward(floats(&logits), classes(&targets), floats(&losses));
        tensor(gradient, logits.shape())
    }
}

impl MatmulBf16Ops for Flex {
    fn matmul_bf16(inputs: MatmulTensors<Self>) -> FloatTensor<Self> {
        let inputs = contiguous(inputs.into_array());
        let [x, weight] = inputs.each_ref().map(matrix);
        let shape = Shape::new([x.rows(), weight.columns()]);
        tensor(matmul_bf16::product(x, weight), shape)
    }

    fn matmul_bf16_backward(
        inputs: MatmulTensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> MatmulTensors<Self> {
        let (inputs, gradient) = (contiguous(inputs.into_array()), gradient.to_contiguous());
        let ([x, weight], gradient) = (inputs.each_ref().map(matrix), matrix(&gradient));
        let gradients = [
            matmul_bf16::product(gradient, weight.transpose()),
            matmul_bf16::product(x.transpose(), gradient),
        ];
        MatmulTensors::from_array(shaped(gradients, &inputs))
    }
}

fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    Matrix::new(floats(tensor), tensor.shape().dims())
}

/// Whether this processor multiplies in bf16.
pub fn has_bf16_matmul() -> bool {
    matmul_bf16::is_available()
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

/// The sum of the squares of a tensor outside autodiff, `[1]`.
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

/// The tensors laid out as their shapes say.
fn contiguous<const N: usize>(tensors: [FlexTensor; N]) -> [FlexTensor; N] {
    tensors.map(|x| x.to_contiguous())
}

/// The values of contiguous f32 tensors.
fn slices<const N: usize>(tensors: &[FlexTensor; N]) -> [&[f32]; N] {
    tensors.each_ref().map(floats)
}

/// The values of a contiguous f32 tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    match tensor.as_slice::<f32>() {
        Some(values) => values,
        None => unreachable!("a contiguous f32 tensor, found {tensor:?}"),
    }
}

/// Contiguous 64-bit integers.
fn long(x: FlexTensor) -> FlexTensor {
    Flex::int_cast(x, IntDType::I64).to_contiguous()
}

/// The values of what [`long`] returned.
fn classes(tensor: &FlexTensor) -> &[i64] {
    match tensor.as_slice::<i64>() {
        Some(values) => values,
        None => unreachable!("a contiguous tensor of 64-bit integers, found {tensor:?}"),
    }
}

/// A contiguous f32 tensor of these values in row-major order.
fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// The gradients of tensors, in their shapes.
fn shaped<const N: usize>(values: [Vec<f32>; N], like: &[FlexTensor; N]) -> [FlexTensor; N] {
    let mut shapes = like.iter().map(|x| x.shape());
    values.map(|values| match shapes.next() {
        Some(shape) => tensor(values, shape),
        None => unreachable!("one tensor for each gradient"),
    })
}
