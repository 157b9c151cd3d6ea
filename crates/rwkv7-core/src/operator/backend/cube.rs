//! The custom operation on GPUs; the kernels are in [`gpu`].

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend, kernel, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::{
    ir::{ElemType, FloatKind},
    prelude::TensorArg,
};

use super::{CHUNK, TokenTensors, Wkv7Ops};
use crate::{
    operator::{
        gpu::{self, Dims, LaunchError},
        packed_is_asked,
    },
    taps::Taps,
};

/// The state is f32 and so is everything that goes in and out.
const DTYPE: ElemType = ElemType::Float(FloatKind::F32);

/// Storage buffers of the kernel that has the most of them, inputs not packed. Browsers offer as few as 8.
const BUFFERS: usize = 14;

/// Whether the kernels are written for these sizes.
pub fn supports(batch: usize, time: usize, heads: usize, value: usize, key: usize) -> bool {
    let size = |n: usize| (16..=128).contains(&n) && n.is_multiple_of(16);
    // The largest grid that every graphics API takes.
    let grid = |n: usize| n <= 65_535;
    size(value) && size(key) && grid(batch * heads) && grid(time.div_ceil(CHUNK))
}

impl Wkv7Ops for CubeBackend {
    fn wkv7_forward(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let call = Call::new(input);
        let (y, state) = (call.values(), call.empty(s0.shape()));
        call.forward(s0, &y, &state, None);
        (y, state)
    }

    fn wkv7_traced(
        input: TokenTensors<Self>,
        s0: FloatTensor<Self>,
        _taps: Taps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let call = Call::new(input);
        let (y, state) = (call.values(), call.empty(s0.shape()));
        let starts = call.empty(call.states(call.chunks()));
        call.forward(s0, &y, &state, Some(&starts));
        (y, state, starts)
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: TokenTensors<Self>,
        _s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        _taps: Taps,
    ) -> FloatTensor<Self> {
        let call = Call::new(input);
        let scratch = call.replay(&starts);
        let z = call.keys();
        launched(gpu::read(
            &call.input.r.client,
            call.dims,
            DTYPE,
            call.arguments(&call.key_tensors(None)),
            argument(&call.input.log_w),
            call.arguments(&[kernel::into_contiguous(x), call.input.v.clone()]),
            argument(&scratch),
            argument(&starts),
            argument(&z),
        ));
        z
    }

    fn wkv7_backward(
        input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        Call::new(input).backward(starts, dy, d_state, None)
    }

    fn wkv7_read_backward(
        input: TokenTensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        x: FloatTensor<Self>,
        dz: FloatTensor<Self>,
    ) -> (TokenTensors<Self>, FloatTensor<Self>) {
        Call::new(input).backward(starts, dy, d_state, Some((x, dz)))
    }
}

/// One call: sizes, and inputs laid out as their shapes say.
struct Call {
    dims: Dims,
    input: TokenTensors<CubeBackend>,
    /// Whether inputs of one shape have to share a buffer.
    packed: bool,
}

impl Call {
    fn new(input: TokenTensors<CubeBackend>) -> Self {
        let [batch, time, heads, key] = input.r.shape().dims();
        let dims = Dims {
            batch,
            time,
            heads,
            value: input.v.shape()[3],
            key,
            chunk: CHUNK,
        };
        let bindings = input.r.client.properties().hardware.max_bindings;
        let contiguous = kernel::into_contiguous;
        Self {
            dims,
            packed: (bindings as usize) < BUFFERS || packed_is_asked(),
            input: TokenTensors {
                r: contiguous(input.r),
                log_w: contiguous(input.log_w),
                k: contiguous(input.k),
                v: contiguous(input.v),
                a: contiguous(input.a),
                b: contiguous(input.b),
            },
        }
    }

    fn chunks(&self) -> usize {
        self.dims.time.div_ceil(CHUNK)
    }

    /// Shape of one state for every chunk.
    fn states(&self, chunks: usize) -> Shape {
        let Dims {
            batch,
            heads,
            value,
            key,
            ..
        } = self.dims;
        [batch, heads, chunks, value, key].into()
    }

    fn empty(&self, shape: Shape) -> CubeTensor {
        let like = &self.input.r;
        empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, DType::F32)
    }

    fn keys(&self) -> CubeTensor {
        self.empty(self.input.k.shape())
    }

    fn values(&self) -> CubeTensor {
        self.empty(self.input.v.shape())
    }

    /// r, k, a, b and a read's dz.
    fn key_tensors(&self, dz: Option<&CubeTensor>) -> Vec<CubeTensor> {
        let TokenTensors { r, k, a, b, .. } = &self.input;
        let keys = [r, k, a, b].into_iter().chain(dz);
        keys.cloned().collect()
    }

    /// Tensors of one shape as the kernels take them.
    fn arguments(&self, tensors: &[CubeTensor]) -> Vec<TensorArg> {
        if !self.packed {
            return tensors.iter().map(argument).collect();
        }
        let stacked = tensors.iter().map(|tensor| {
            let dims = tensor.shape().to_vec();
            let shape: Vec<usize> = std::iter::once(1).chain(dims).collect();
            CubeBackend::float_reshape(tensor.clone(), shape.into())
        });
        let packed = CubeBackend::float_cat(stacked.collect(), 0);
        vec![argument(&kernel::into_contiguous(packed))]
    }

    fn forward(
        &self,
        s0: CubeTensor,
        y: &CubeTensor,
        state: &CubeTensor,
        starts: Option<&CubeTensor>,
    ) {
        launched(gpu::forward(
            &self.input.r.client,
            self.dims,
            DTYPE,
            self.arguments(&self.key_tensors(None)),
            argument(&self.input.log_w),
            argument(&self.input.v),
            Some(argument(&kernel::into_contiguous(s0))),
            argument(y),
            argument(state),
            starts.map(argument),
        ));
    }

    /// Scratch for sa and dsa, `[2, batch, time, heads, value]`, with sa in it.
    fn replay(&self, starts: &CubeTensor) -> CubeTensor {
        let dims = self.input.v.shape().to_vec();
        let shape: Vec<usize> = std::iter::once(2).chain(dims).collect();
        let scratch = self.empty(shape.into());
        launched(gpu::replay(
            &self.input.r.client,
            self.dims,
            DTYPE,
            self.arguments(&self.key_tensors(None)),
            argument(&self.input.log_w),
            argument(&self.input.v),
            argument(starts),
            argument(&scratch),
        ));
        scratch
    }

    fn backward(
        &self,
        starts: CubeTensor,
        dy: CubeTensor,
        d_state: CubeTensor,
        read: Option<(CubeTensor, CubeTensor)>,
    ) -> (TokenTensors<CubeBackend>, CubeTensor) {
        let client = &self.input.r.client;
        let contiguous = kernel::into_contiguous;
        let [dy, d_state] = [dy, d_state].map(contiguous);
        let read = read.map(|(x, dz)| (contiguous(x), contiguous(dz)));
        let keys = self.key_tensors(read.as_ref().map(|(_, dz)| dz));
        let mut values = vec![dy];
        values.extend(read.as_ref().map(|(x, _)| x.clone()));

        let scratch = self.replay(&starts);
        let dv = self.values();
        let d_starts = self.empty(self.states(self.chunks() + 1));
        launched(gpu::backward(
            client,
            self.dims,
            DTYPE,
            read.is_some(),
            self.arguments(&keys),
            argument(&self.input.log_w),
            self.arguments(&values),
            Some(argument(&d_state)),
            argument(&dv),
            argument(&scratch),
            argument(&d_starts),
        ));
        values.push(self.input.v.clone());
        let dims = self.input.k.shape();
        let shape: Vec<usize> = std::iter::once(5).chain(dims.to_vec()).collect();
        let d_keys = self.empty(shape.into());
        launched(gpu::gradient(
            client,
            self.dims,
            DTYPE,
            read.is_some(),
            self.arguments(&keys),
            argument(&self.input.log_w),
            self.arguments(&values),
            argument(&scratch),
            argument(&starts),
            argument(&d_starts),
            argument(&d_keys),
        ));

        let part = |i: usize| {
            let ranges: Vec<_> = std::iter::once(i..i + 1)
                .chain(dims.iter().map(|&n| 0..n))
                .collect();
            let part = contiguous(kernel::slice(d_keys.clone(), &ranges));
            CubeBackend::float_reshape(part, dims.clone())
        };
        let gradients = TokenTensors {
            r: part(0),
            k: part(1),
            a: part(2),
            b: part(3),
            log_w: part(4),
            v: dv,
        };
        let Dims {
            batch,
            heads,
            value,
            key,
            ..
        } = self.dims;
        let first = [0..batch, 0..heads, 0..1, 0..value, 0..key];
        let d_s0 = contiguous(kernel::slice(d_starts, &first));
        (gradients, CubeBackend::float_reshape(d_s0, d_state.shape()))
    }
}

fn argument(tensor: &CubeTensor) -> TensorArg {
    tensor.clone().into_tensor_arg()
}

/// Sizes were checked before the operation was chosen.
fn launched(result: Result<(), LaunchError>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}
