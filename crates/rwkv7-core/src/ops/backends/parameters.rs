//! The norm of all gradients and AdamW on GPUs: operations on many tensors, which Burn's macro for custom operations does not
//! describe; the kernels are in [`gpu::parameters`](parameters).

use burn::{
    backend::{
        Backend, TensorMetadata,
        fusion::{
            Fusion, FusionBackend, FusionRuntime,
            custom::{
                CustomOpIr, HandleContainer, OperationFn, OperationIr, StreamId, TensorIr,
                TensorSpec,
            },
        },
        tensor::FloatTensor,
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use cubecl::prelude::TensorArg;

use crate::ops::{
    Path,
    gpu::parameters::{self, NUMBERS},
};

/// A tensor's share in a step of AdamW.
#[derive(Clone, Debug)]
pub struct Update<T> {
    /// Parameter, gradient, first and second moment, in f32.
    pub tensors: [T; 4],
    /// What [`parameters::adamw`] reads for the tensor.
    pub numbers: [f32; NUMBERS],
}

/// Operations on many tensors of one device, at least one, all f32.
pub trait ParameterOps: Backend {
    /// The tensors, scaled down together to a norm of `largest`, and the norm before, `[1]`.
    fn clip(
        tensors: Vec<FloatTensor<Self>>,
        largest: f32,
    ) -> (Vec<FloatTensor<Self>>, FloatTensor<Self>);

    /// Parameter, first and second moment of each tensor after the step.
    fn adamw(updates: Vec<Update<FloatTensor<Self>>>) -> Vec<[FloatTensor<Self>; 3]>;
}

impl ParameterOps for CubeBackend {
    fn clip(tensors: Vec<CubeTensor>, largest: f32) -> (Vec<CubeTensor>, CubeTensor) {
        let tensors: Vec<CubeTensor> = tensors.into_iter().map(own).collect();
        let like = &tensors[0];
        let client = &like.client;
        let count = tensors
            .iter()
            .map(|x| parameters::blocks(elements(x)))
            .sum();
        let [partial, norm, factor] = [count, 1, 1].map(|n| empty(like, Shape::new([n])));
        let mut offset = 0;
        for group in tensors.chunks(group_size(like, 1, 2)) {
            let (lengths, layout) = layout(group);
            parameters::squares(
                client,
                &lengths,
                group.iter().map(argument).collect(),
                argument(&layout),
                argument(&partial),
                offset,
            );
            offset += lengths
                .iter()
                .map(|&n| parameters::blocks(n))
                .sum::<usize>();
        }
        parameters::norm(
            client,
            argument(&partial),
            count,
            largest,
            argument(&norm),
            argument(&factor),
        );
        for group in tensors.chunks(group_size(like, 1, 2)) {
            let (lengths, layout) = layout(group);
            parameters::scale(
                client,
                &lengths,
                group.iter().map(argument).collect(),
                argument(&layout),
                argument(&factor),
            );
        }
        (tensors, norm)
    }

    fn adamw(updates: Vec<Update<CubeTensor>>) -> Vec<[CubeTensor; 3]> {
        let size = group_size(&updates[0].tensors[0], 5, 2);
        let mut results = Vec::with_capacity(updates.len());
        let mut updates = updates.into_iter().peekable();
        while updates.peek().is_some() {
            results.extend(adamw_of_group(updates.by_ref().take(size)));
        }
        results
    }
}

fn adamw_of_group(updates: impl Iterator<Item = Update<CubeTensor>>) -> Vec<[CubeTensor; 3]> {
    let (mut parameters, mut gradients) = (Vec::new(), Vec::new());
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut numbers = Vec::new();
    for update in updates {
        let [p, g, m, v] = update.tensors;
        parameters.push(into_contiguous(p));
        gradients.push(into_contiguous(g));
        first.push(own(m));
        second.push(own(v));
        numbers.extend(update.numbers.map(f32::to_ne_bytes).concat());
    }
    // A parameter is usually shared with the model before the step.
    let updated: Vec<CubeTensor> = parameters.iter().map(|p| empty(p, p.shape())).collect();
    let (lengths, layout) = layout(&parameters);
    let numbers = upload(&layout, &numbers, DType::F32);
    let arguments = |tensors: &[CubeTensor]| tensors.iter().map(argument).collect();
    parameters::adamw(
        &layout.client,
        &lengths,
        arguments(&parameters),
        arguments(&gradients),
        arguments(&first),
        arguments(&second),
        arguments(&updated),
        argument(&layout),
        argument(&numbers),
    );
    let moments = first.into_iter().zip(second);
    let results = updated.into_iter().zip(moments);
    results.map(|(p, (m, v))| [p, m, v]).collect()
}

/// The tensor in memory of its own, laid out as its shape says: a kernel may write over it.
fn own(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    if x.can_mut() { x } else { x.copy() }
}

fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

fn elements(x: &CubeTensor) -> usize {
    x.shape().num_elements()
}

/// Tensors of a launch that binds so many buffers for each, and so many others.
fn group_size(like: &CubeTensor, buffers: usize, others: usize) -> usize {
    // Browsers offer as few as 7 beside the sizes.
    let bindings = match Path::asked().1 {
        true => 7,
        false => like.client.properties().hardware.max_bindings as usize,
    };
    parameters::group_size(bindings, buffers, others)
}

/// The tensors' lengths, and the layout of a group of them on the device.
fn layout(tensors: &[CubeTensor]) -> (Vec<usize>, CubeTensor) {
    let lengths: Vec<usize> = tensors.iter().map(elements).collect();
    let layout = parameters::layout(&lengths);
    let bytes: Vec<u8> = layout.into_iter().flat_map(u32::to_ne_bytes).collect();
    let layout = upload(&tensors[0], &bytes, DType::U32);
    (lengths, layout)
}

/// Numbers of four bytes each, on a tensor's device.
fn upload(like: &CubeTensor, bytes: &[u8], dtype: DType) -> CubeTensor {
    let handle = like.client.create_from_slice(bytes);
    let shape = Shape::new([bytes.len() / 4]);
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape,
        handle,
        dtype,
    )
}

fn argument(tensor: &CubeTensor) -> TensorArg {
    tensor.clone().into_tensor_arg()
}

impl<B: FusionBackend + ParameterOps> ParameterOps for Fusion<B> {
    fn clip(
        tensors: Vec<FloatTensor<Self>>,
        largest: f32,
    ) -> (Vec<FloatTensor<Self>>, FloatTensor<Self>) {
        let norm = TensorSpec::new(Shape::new([1]), DType::F32);
        let mut specs = vec![norm];
        specs.extend(tensors.iter().map(spec::<B>));
        let outputs = later::<B>("clip_gradients", tensors, specs, move |tensors| {
            let (scaled, norm) = B::clip(tensors, largest);
            std::iter::once(norm).chain(scaled).collect()
        });
        let mut outputs = outputs.into_iter();
        let Some(norm) = outputs.next() else {
            unreachable!("as many outputs as were described")
        };
        (outputs.collect(), norm)
    }

    fn adamw(updates: Vec<Update<FloatTensor<Self>>>) -> Vec<[FloatTensor<Self>; 3]> {
        let specs = updates.iter().flat_map(|update| {
            let [p, _, m, v] = &update.tensors;
            [p, m, v].map(spec::<B>)
        });
        let specs = specs.collect();
        let numbers: Vec<[f32; NUMBERS]> = updates.iter().map(|update| update.numbers).collect();
        let tensors = updates.into_iter().flat_map(|update| update.tensors);
        let outputs = later::<B>("adamw", tensors.collect(), specs, move |tensors| {
            let updates = arrays(tensors).zip(&numbers);
            let updates = updates.map(|(tensors, &numbers)| Update { tensors, numbers });
            B::adamw(updates.collect()).into_iter().flatten().collect()
        });
        arrays(outputs).collect()
    }
}

fn spec<B: FusionBackend>(x: &FloatTensor<Fusion<B>>) -> TensorSpec {
    TensorSpec::new(x.shape(), x.dtype())
}

/// Puts an operation on float tensors into the queue of fused operations.
fn later<B: FusionBackend>(
    name: &'static str,
    inputs: Vec<FloatTensor<Fusion<B>>>,
    outputs: Vec<TensorSpec>,
    run: impl Fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> + Send + Sync + 'static,
) -> Vec<FloatTensor<Fusion<B>>> {
    type Handles<B> =
        HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

    let client = inputs[0].client.clone();
    let outputs: Vec<TensorIr> = outputs
        .into_iter()
        .map(|x| TensorIr::uninit(client.create_empty_handle(), x.shape, x.dtype))
        .collect();
    let inputs: Vec<TensorIr> = inputs.into_iter().map(|x| x.into_ir()).collect();
    let description = CustomOpIr::new(name, &inputs, &outputs);
    let operation = OperationFn(move |handles: &mut Handles<B>| {
        let inputs = inputs.iter().map(|x| handles.get_float_tensor::<B>(x));
        let results = run(inputs.collect());
        for (output, result) in outputs.iter().zip(results) {
            handles.register_float_tensor::<B>(&output.id, result);
        }
        Ok(())
    });
    let description = OperationIr::Custom(description);
    client.register(StreamId::current(), description, operation)
}

/// The list in arrays of N.
fn arrays<T, const N: usize>(list: Vec<T>) -> impl Iterator<Item = [T; N]> {
    let mut list = list.into_iter();
    std::iter::from_fn(move || {
        let array: Vec<T> = list.by_ref().take(N).collect();
        array.try_into().ok()
    })
}
