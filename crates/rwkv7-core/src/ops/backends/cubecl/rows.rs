//! What the operations on `[rows, C]` share: the sizes of a call, room for results, and the sums over the blocks of rows.

use burn::{
    backend::{DispatchDevice, TensorMetadata},
    tensor::{DType, Shape},
};
use burn_cubecl::{kernel, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{
    client::Client,
    ir::ElemType,
    prelude::{BufferArg, CubeCount, CubeDim, CubePrimitive, SequenceArg},
};

use super::element;
use crate::ops::{
    Path,
    gpu::{
        rows::Cut,
        sums::{GROUPS, LANES, sum_kernel},
    },
};

/// Whether a kernel of this many storage buffers runs on a GPU, for tensors of up to `elements` numbers.
pub fn supports(device: &DispatchDevice, buffers: usize, elements: usize) -> bool {
    let DispatchDevice::Cube(device) = device else {
        return false;
    };
    // Browsers offer as few as 7 beside the sizes.
    let most = match Path::asked().1 {
        true => 7,
        false => device.client().properties().hardware.max_bindings as usize,
    };
    buffers <= most && elements > 0 && elements <= u32::MAX as usize
}

/// One call: sizes, and where its tensors are.
pub struct Rows {
    pub client: Client,
    like: CubeTensor,
    pub rows: usize,
    pub channels: usize,
}

impl Rows {
    /// Of tensors like `x [.., channels]`.
    pub fn new(x: &CubeTensor, channels: usize) -> Self {
        Self {
            client: x.client.clone(),
            like: x.clone(),
            rows: x.shape().num_elements() / channels,
            channels,
        }
    }

    /// The type of what the kernels read.
    pub fn element(&self) -> ElemType {
        element(self.like.dtype)
    }

    /// Room for a tensor of another's shape and type.
    pub fn like(&self, tensor: &CubeTensor) -> CubeTensor {
        self.empty(tensor.shape(), tensor.dtype)
    }

    /// Room for a tensor.
    pub fn empty(&self, shape: Shape, dtype: DType) -> CubeTensor {
        let (client, device) = (self.client.clone(), self.like.device.clone());
        empty_device_contiguous_dtype(client, device, shape, dtype)
    }

    /// Room for `S` sums of every block for every channel.
    pub fn partial<const S: usize>(&self, cut: &Cut) -> CubeTensor {
        self.empty([cut.blocks, S, self.channels].into(), DType::F32)
    }

    /// The sums over all blocks, each of the shape and type of a parameter.
    pub fn totals<const S: usize>(
        &self,
        cut: &Cut,
        partial: CubeTensor,
        parameters: [&CubeTensor; S],
    ) -> [CubeTensor; S] {
        let totals = parameters.map(|parameter| self.like(parameter));
        sum_kernel::launch(
            &self.client,
            CubeCount::Static(self.channels.div_ceil(LANES) as u32, S as u32, 1),
            CubeDim::new_2d(LANES as u32, GROUPS as u32),
            buffer(&partial),
            list(&totals),
            cut.blocks,
            self.channels,
            S,
            self.element(),
        );
        totals
    }
}

/// The tensors laid out as their shapes say.
pub fn contiguous<const N: usize>(tensors: [CubeTensor; N]) -> [CubeTensor; N] {
    tensors.map(kernel::into_contiguous)
}

/// A tensor as the kernels take it.
pub fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// Tensors as the kernels take a list of them.
pub fn list<E: CubePrimitive>(tensors: &[CubeTensor]) -> SequenceArg<Box<[E]>> {
    tensors.iter().map(buffer).collect()
}
