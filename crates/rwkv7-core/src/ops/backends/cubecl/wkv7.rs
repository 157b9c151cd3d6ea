//! The recurrence and the reads of its states on GPUs; the kernels are in [`gpu::wkv7`](crate::ops::gpu::wkv7).

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend, kernel, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::ir::ElemType;

use super::{argument, arguments, buffers, element};
use crate::ops::{
    Path, Side,
    backends::wkv7::{CHUNK, Wkv7Ops, Wkv7Tensors},
    gpu::wkv7::{self as gpu, Dims, LaunchError},
    multi_output::PendingGradients,
};

/// Storage buffers of the kernel that has the most of them, inputs not packed. Browsers offer as few as 8.
const BUFFERS: usize = 17;

/// Whether the kernels are written for these sizes.
pub fn supports(batch: usize, time: usize, heads: usize, value: usize, key: usize) -> bool {
    let size = |n: usize| (16..=128).contains(&n) && n.is_multiple_of(16);
    // The largest grid that every graphics API takes.
    let grid = |n: usize| n <= 65_535;
    // The kernels count with 32 bits: gradients of five keys, and the states at the chunks' beginnings.
    let tokens = (batch * heads).saturating_mul(time.next_multiple_of(CHUNK) + CHUNK);
    let largest = tokens.saturating_mul((5 * key).max(2 * value).max(value * key / CHUNK));
    size(value)
        && size(key)
        && grid(batch * heads)
        && grid(time.div_ceil(CHUNK))
        && largest <= u32::MAX as usize
}

impl Wkv7Ops for CubeBackend {
    fn wkv7_forward(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let call = Call::new(input);
        let (y, state) = (call.outputs(), call.empty(s0.shape()));
        call.forward(s0, &y, &state, None);
        (y, state)
    }

    fn wkv7_traced(
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        _: PendingGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let call = Call::new(input);
        let (y, state) = (call.outputs(), call.empty(s0.shape()));
        let starts = call.empty(call.states(call.chunks()));
        call.forward(s0, &y, &state, Some(&starts));
        (y, state, starts)
    }

    fn wkv7_read(
        x: FloatTensor<Self>,
        input: Wkv7Tensors<Self>,
        s0: FloatTensor<Self>,
        starts: FloatTensor<Self>,
        side: Side,
        _: PendingGradients,
    ) -> FloatTensor<Self> {
        if side == Side::Key {
            return Self::wkv7_forward(Wkv7Tensors { r: x, ..input }, s0).0;
        }
        let call = Call::new(input);
        let keys = call.pack(call.key_tensors(None));
        let values = call.pack(vec![kernel::into_contiguous(x), call.input.v.clone()]);
        let scratch = call.replay(&keys, &starts);
        let z = call.empty_of(call.input.k.shape(), call.input.k.dtype());
        launched(gpu::read(
            &call.input.r.client,
            call.dims,
            call.dtype,
            arguments(&keys),
            argument(&call.input.log_w),
            arguments(&values),
            argument(&scratch),
            argument(&starts),
            argument(&z),
        ));
        z
    }

    fn wkv7_backward(
        input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        Call::new(input).backward(starts, dy, d_state, None)
    }

    fn wkv7_read_backward(
        input: Wkv7Tensors<Self>,
        starts: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        d_state: FloatTensor<Self>,
        of_value: FloatTensor<Self>,
        of_key: FloatTensor<Self>,
    ) -> (Wkv7Tensors<Self>, FloatTensor<Self>) {
        Call::new(input).backward(starts, dy, d_state, Some((of_value, of_key)))
    }
}

/// One call: sizes, and inputs laid out as their shapes say.
struct Call {
    dims: Dims,
    /// Of all inputs for each token but the log decay, and of y, z, dy, x and dz.
    dtype: ElemType,
    input: Wkv7Tensors<CubeBackend>,
    /// Whether inputs of one shape have to share a buffer.
    packed: bool,
}

impl Call {
    fn new(input: Wkv7Tensors<CubeBackend>) -> Self {
        let [batch, time, heads, key] = input.r.shape().dims();
        let dims = Dims {
            batch,
            time,
            heads,
            value: input.v.shape()[3],
            key,
            chunk: CHUNK,
        };
        let dtype = element(input.r.dtype());
        let packed = buffers(&input.r) < BUFFERS || Path::asked().1;
        let input = input.into_array().map(kernel::into_contiguous);
        Self {
            dims,
            dtype,
            packed,
            input: Wkv7Tensors::from_array(input),
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

    fn empty_of(&self, shape: Shape, dtype: DType) -> CubeTensor {
        let like = &self.input.r;
        empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
    }

    fn empty(&self, shape: Shape) -> CubeTensor {
        self.empty_of(shape, DType::F32)
    }

    /// Room for y.
    fn outputs(&self) -> CubeTensor {
        self.empty_of(self.input.v.shape(), self.input.v.dtype())
    }

    /// r, k, a, b and a read's dz.
    fn key_tensors(&self, dz: Option<&CubeTensor>) -> Vec<CubeTensor> {
        let Wkv7Tensors { r, k, a, b, .. } = &self.input;
        let keys = [r, k, a, b].into_iter().chain(dz);
        keys.cloned().collect()
    }

    /// Tensors of one shape as the kernels take them: as they are, or one that holds them all.
    fn pack(&self, tensors: Vec<CubeTensor>) -> Vec<CubeTensor> {
        if !self.packed {
            return tensors;
        }
        let stacked = tensors.into_iter().map(|tensor| {
            let dims = tensor.shape().to_vec();
            let shape: Vec<usize> = std::iter::once(1).chain(dims).collect();
            CubeBackend::float_reshape(tensor, shape.into())
        });
        let packed = CubeBackend::float_cat(stacked.collect(), 0);
        vec![kernel::into_contiguous(packed)]
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
            self.dtype,
            arguments(&self.pack(self.key_tensors(None))),
            argument(&self.input.log_w),
            argument(&self.input.v),
            argument(&kernel::into_contiguous(s0)),
            argument(y),
            argument(state),
            starts.map(argument),
        ));
    }

    /// Scratch for sa and dsa, `[2, batch, time, heads, value]`, with sa in it; `keys` as packed.
    fn replay(&self, keys: &[CubeTensor], starts: &CubeTensor) -> CubeTensor {
        let dims = self.input.v.shape().to_vec();
        let shape: Vec<usize> = std::iter::once(2).chain(dims).collect();
        let scratch = self.empty(shape.into());
        launched(gpu::replay(
            &self.input.r.client,
            self.dims,
            self.dtype,
            arguments(&keys[..keys.len().min(4)]),
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
    ) -> (Wkv7Tensors<CubeBackend>, CubeTensor) {
        let client = &self.input.r.client;
        let contiguous = kernel::into_contiguous;
        let [dy, d_state] = [dy, d_state].map(contiguous);
        let read = read.map(|(x, dz)| (contiguous(x), contiguous(dz)));
        let keys = self.pack(self.key_tensors(read.as_ref().map(|(_, dz)| dz)));
        let mut values = vec![dy];
        values.extend(read.as_ref().map(|(x, _)| x.clone()));
        let before_v = values.len();
        values.push(self.input.v.clone());
        let values = self.pack(values);

        let scratch = self.replay(&keys, &starts);
        let dv = self.empty(self.input.v.shape());
        let d_starts = self.empty(self.states(self.chunks() + 1));
        launched(gpu::backward(
            client,
            self.dims,
            self.dtype,
            read.is_some(),
            arguments(&keys),
            argument(&self.input.log_w),
            arguments(&values[..values.len().min(before_v)]),
            argument(&d_state),
            argument(&dv),
            argument(&scratch),
            argument(&d_starts),
        ));
        let dims = self.input.k.shape();
        let d_keys = match self.packed {
            true => {
                let shape: Vec<usize> = std::iter::once(5).chain(dims.to_vec()).collect();
                vec![self.empty(shape.into())]
            }
            false => (0..5).map(|_| self.empty(dims.clone())).collect(),
        };
        launched(gpu::gradient(
            client,
            self.dims,
            self.dtype,
            read.is_some(),
            arguments(&keys),
            argument(&self.input.log_w),
            arguments(&values),
            argument(&scratch),
            argument(&starts),
            argument(&d_starts),
            arguments(&d_keys),
        ));

        let part = |i: usize| {
            if !self.packed {
                return d_keys[i].clone();
            }
            let ranges: Vec<_> = std::iter::once(i..i + 1)
                .chain(dims.iter().map(|&n| 0..n))
                .collect();
            let part = contiguous(kernel::slice(d_keys[0].clone(), &ranges));
            CubeBackend::float_reshape(part, dims.clone())
        };
        let like_inputs = |x| kernel::cast(x, self.input.r.dtype());
        let gradients = Wkv7Tensors {
            r: like_inputs(part(0)),
            k: like_inputs(part(1)),
            a: like_inputs(part(2)),
            b: like_inputs(part(3)),
            log_w: part(4),
            v: like_inputs(dv),
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

/// Sizes were checked before the operation was chosen.
fn launched(result: Result<(), LaunchError>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}
