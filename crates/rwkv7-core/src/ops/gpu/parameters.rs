//! The norm of all gradients, their scaling, and AdamW: kernels over many tensors of any lengths, a launch for each group.
//!
//! A tensor is cut into blocks, and a cube computes one block. The blocks of a group's tensors are numbered one after another;
//! `layout` has the number of each tensor's first block, then the number of blocks, then each tensor's length.

use cubecl::prelude::*;

/// Elements of a block.
const BLOCK: usize = 8192;

/// Units of a cube.
const UNITS: usize = 256;

/// Most tensors of a launch: each costs the compiler a branch and the driver its bindings.
const MOST: usize = 32;

/// Numbers that [`adamw`] reads for each tensor.
pub const NUMBERS: usize = 9;

/// Tensors that one launch takes if each has `buffers` and the launch `others` besides; a device binds at most `bindings`.
pub fn group_size(bindings: usize, buffers: usize, others: usize) -> usize {
    (bindings.saturating_sub(others) / buffers).clamp(1, MOST)
}

/// Blocks of a tensor of `len` elements.
pub fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

/// The numbers of a group of tensors of these lengths, for `layout`.
pub fn layout(lengths: &[usize]) -> Vec<u32> {
    let mut first = 0;
    let firsts = lengths.iter().map(|&len| {
        let at = first;
        first += blocks(len) as u32;
        at
    });
    let mut layout: Vec<u32> = firsts.collect();
    layout.push(first);
    layout.extend(lengths.iter().map(|&len| len as u32));
    layout
}

/// Sums of squares of each block, into `partial` from `offset` on.
pub fn squares(
    client: &Client,
    lengths: &[usize],
    tensors: Vec<TensorArg>,
    layout: TensorArg,
    partial: TensorArg,
    offset: usize,
) {
    squares_kernel::launch(
        client,
        cubes(lengths),
        CubeDim::new_1d(UNITS as u32),
        list(tensors),
        layout.into_buffer_arg(),
        partial.into_buffer_arg(),
        offset,
        lengths.len(),
    );
}

/// From `partial`, `[count]`: the norm, into `norm [1]`, and the factor that makes the norm `largest` at most, into
/// `factor [1]`. The factor is 1 if the norm is not a number.
pub fn norm(
    client: &Client,
    partial: TensorArg,
    count: usize,
    largest: f32,
    norm: TensorArg,
    factor: TensorArg,
) {
    norm_kernel::launch(
        client,
        CubeCount::Static(1, 1, 1),
        CubeDim::new_1d(UNITS as u32),
        partial.into_buffer_arg(),
        norm.into_buffer_arg(),
        factor.into_buffer_arg(),
        count,
        largest,
    );
}

/// Multiplies tensors in place with `factor [1]`. With a factor of 1 nothing is read or written.
pub fn scale(
    client: &Client,
    lengths: &[usize],
    tensors: Vec<TensorArg>,
    layout: TensorArg,
    factor: TensorArg,
) {
    scale_kernel::launch(
        client,
        cubes(lengths),
        CubeDim::new_1d(UNITS as u32),
        list(tensors),
        layout.into_buffer_arg(),
        factor.into_buffer_arg(),
        lengths.len(),
    );
}

/// One step of AdamW: `updated` from `parameters` and `gradients`; the moments in place. `numbers` has [`NUMBERS`] for each
/// tensor: rate, `1 - rate · weight decay`, β₁, `1 - β₁`, β₂, `1 - β₂`, ε, `1 - β₁^t`, `1 - β₂^t`.
pub fn adamw(
    client: &Client,
    lengths: &[usize],
    parameters: Vec<TensorArg>,
    gradients: Vec<TensorArg>,
    first: Vec<TensorArg>,
    second: Vec<TensorArg>,
    updated: Vec<TensorArg>,
    layout: TensorArg,
    numbers: TensorArg,
) {
    adamw_kernel::launch(
        client,
        cubes(lengths),
        CubeDim::new_1d(UNITS as u32),
        list(parameters),
        list(gradients),
        list(first),
        list(second),
        list(updated),
        layout.into_buffer_arg(),
        numbers.into_buffer_arg(),
        lengths.len(),
    );
}

/// A cube for each block, in two dimensions because one holds 65,535 at most.
fn cubes(lengths: &[usize]) -> CubeCount {
    let blocks: usize = lengths.iter().map(|&len| blocks(len)).sum();
    let across = blocks.clamp(1, 32_768);
    CubeCount::Static(across as u32, blocks.div_ceil(across) as u32, 1)
}

fn list(tensors: Vec<TensorArg>) -> SequenceArg<Box<[f32]>> {
    tensors
        .into_iter()
        .map(TensorArg::into_buffer_arg)
        .collect()
}

#[cube(launch)]
fn squares_kernel(
    tensors: Sequence<Box<[f32]>>,
    layout: &[u32],
    partial: &mut [f32],
    offset: usize,
    #[comptime] count: usize,
) {
    let block = cube_number();
    let tensor = tensor_of(block, layout, count);
    let (from, end) = range(block, tensor, layout, count);
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..count {
        if i == tensor {
            let mut at = from;
            while at < end {
                let x = tensors[i][at];
                sum += x * x;
                at += UNITS;
            }
        }
    }
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 && block < layout[count] as usize {
        partial[offset + block] = sum;
    }
}

#[cube(launch)]
fn norm_kernel(partial: &[f32], norm: &mut [f32], factor: &mut [f32], count: usize, largest: f32) {
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X as usize;
    while at < count {
        sum += partial[at];
        at += UNITS;
    }
    let sum = sum_of_cube(sum);
    if UNIT_POS_X == 0 {
        let length = sum.sqrt();
        norm[0] = length;
        let wanted = largest / (length + 1e-6);
        factor[0] = select(wanted < 1.0, wanted, f32::new(1.0));
    }
}

#[cube(launch)]
fn scale_kernel(
    mut tensors: Sequence<Box<[f32]>>,
    layout: &[u32],
    factor: &[f32],
    #[comptime] count: usize,
) {
    let factor = factor[0];
    if factor < 1.0 {
        let block = cube_number();
        let tensor = tensor_of(block, layout, count);
        let (from, end) = range(block, tensor, layout, count);
        #[unroll]
        for i in 0..count {
            if i == tensor {
                let tensor = &mut tensors[i];
                let mut at = from;
                while at < end {
                    tensor[at] *= factor;
                    at += UNITS;
                }
            }
        }
    }
}

#[cube(launch)]
fn adamw_kernel(
    parameters: Sequence<Box<[f32]>>,
    gradients: Sequence<Box<[f32]>>,
    mut first: Sequence<Box<[f32]>>,
    mut second: Sequence<Box<[f32]>>,
    mut updated: Sequence<Box<[f32]>>,
    layout: &[u32],
    numbers: &[f32],
    #[comptime] count: usize,
) {
    let block = cube_number();
    let tensor = tensor_of(block, layout, count);
    let (from, end) = range(block, tensor, layout, count);
    let n = tensor * NUMBERS;
    let rate = numbers[n];
    let keep = numbers[n + 1];
    let beta1 = numbers[n + 2];
    let rest1 = numbers[n + 3];
    let beta2 = numbers[n + 4];
    let rest2 = numbers[n + 5];
    let epsilon = numbers[n + 6];
    let correction1 = numbers[n + 7];
    let correction2 = numbers[n + 8];
    #[unroll]
    for i in 0..count {
        if i == tensor {
            let first = &mut first[i];
            let second = &mut second[i];
            let updated = &mut updated[i];
            let mut at = from;
            while at < end {
                let g = gradients[i][at];
                let m = first[at] * beta1 + g * rest1;
                let v = second[at] * beta2 + g * g * rest2;
                first[at] = m;
                second[at] = v;
                let delta = m / correction1 / ((v / correction2).sqrt() + epsilon);
                updated[at] = parameters[i][at] * keep - delta * rate;
                at += UNITS;
            }
        }
    }
}

/// Number of this cube in the grid of [`cubes`].
#[cube]
fn cube_number() -> usize {
    CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize
}

/// The tensor that a block is of.
#[cube]
#[allow(clippy::needless_range_loop)]
fn tensor_of(block: usize, layout: &[u32], #[comptime] count: usize) -> usize {
    let mut tensor = 0usize;
    for i in 1..count {
        if block >= layout[i] as usize {
            tensor = i;
        }
    }
    tensor
}

/// This unit's first element in the block's tensor, and the end of the block.
#[cube]
fn range(block: usize, tensor: usize, layout: &[u32], #[comptime] count: usize) -> (usize, usize) {
    let begin = (block - layout[tensor] as usize) * BLOCK;
    let length = layout[count + 1 + tensor] as usize;
    (begin + UNIT_POS_X as usize, (begin + BLOCK).min(length))
}

/// The sum of all units' numbers, for every unit.
#[cube]
fn sum_of_cube(x: f32) -> f32 {
    let unit = UNIT_POS_X as usize;
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    sums[unit] = x;
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        sync_cube();
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        half /= 2;
    }
    sync_cube();
    sums[0]
}
