//! The launch functions: one kernel each, shapes checked, nothing allocated.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::backward::backward_kernel;
use super::forward::forward_kernel;
use super::gradient::gradient_kernel;
use super::read::read_kernel;
use super::replay::replay_kernel;
use super::{Dims, LaunchError, Plan, TILE};

/// Launches the forward pass.
///
/// # Shapes
///
/// - `keys`: r, k, a, b `[batch, time, heads, key]` in `dtype`, or one `[4 or more, batch, time, heads, key]`
/// - `log_w`: `[batch, time, heads, key]` f32; `v`: `[batch, time, heads, value]` in `dtype`
/// - `s0`: `[batch, heads, value, key]` f32
/// - out `y`: `[batch, time, heads, value]` in `dtype`; `state`: `[batch, heads, value, key]` f32
/// - out `starts`: `[batch, heads, chunks, value, key]` f32, the state before each chunk, if wanted
///
/// # Errors
///
/// If the sizes are not ones that the kernels are written for, or `keys` has a wrong number of tensors.
pub fn forward(
    client: &Client,
    dims: Dims,
    dtype: ElemType,
    keys: Vec<TensorArg>,
    log_w: TensorArg,
    v: TensorArg,
    s0: TensorArg,
    y: TensorArg,
    state: TensorArg,
    starts: Option<TensorArg>,
) -> Result<(), LaunchError> {
    let plan = dims.plan(client, Line::Row, keys.len(), None)?;
    forward_kernel::launch(
        client,
        CubeCount::Static(dims.lines(), (dims.value / plan.lanes) as u32, 1),
        CubeDim::new_1d(plan.lanes as u32),
        list(keys),
        log_w.into_buffer_arg(),
        v.into_buffer_arg(),
        s0.into_buffer_arg(),
        y.into_buffer_arg(),
        state.into_buffer_arg(),
        starts.map(TensorArg::into_buffer_arg).into(),
        dims.time,
        dims.heads,
        plan,
        dtype,
    );
    Ok(())
}

/// Launches the replay of `sa_t = S_{t-1} a_t` from the starts, into the first half of `scratch`
/// (`[2, batch, time, heads, value]` f32). [`read`] and [`gradient`] need it. Other shapes as in [`forward`].
///
/// # Errors
///
/// As [`forward`].
pub fn replay(
    client: &Client,
    dims: Dims,
    dtype: ElemType,
    keys: Vec<TensorArg>,
    log_w: TensorArg,
    v: TensorArg,
    starts: TensorArg,
    scratch: TensorArg,
) -> Result<(), LaunchError> {
    let plan = dims.plan(client, Line::Row, keys.len(), None)?;
    replay_kernel::launch(
        client,
        CubeCount::Static(
            dims.lines(),
            dims.chunks(),
            (dims.value / plan.lanes) as u32,
        ),
        CubeDim::new_1d(plan.lanes as u32),
        list(keys),
        log_w.into_buffer_arg(),
        v.into_buffer_arg(),
        starts.into_buffer_arg(),
        scratch.into_buffer_arg(),
        dims.time,
        dims.heads,
        plan,
        dtype,
    );
    Ok(())
}

/// Launches the read `z_t = x_t S_t` with the state after token t. Run [`replay`] before.
///
/// # Shapes
///
/// - `values`: x, v `[batch, time, heads, value]` in `dtype`, or one `[2, batch, time, heads, value]` if `keys` is one
/// - `scratch`: as [`replay`] left it; `starts`: as [`forward`] left it
/// - out `z`: `[batch, time, heads, key]` in `dtype`
///
/// The gradient with respect to x is the y of [`forward`] with r := dz; the others come from [`backward`].
///
/// # Errors
///
/// As [`forward`].
pub fn read(
    client: &Client,
    dims: Dims,
    dtype: ElemType,
    keys: Vec<TensorArg>,
    log_w: TensorArg,
    values: Vec<TensorArg>,
    scratch: TensorArg,
    starts: TensorArg,
    z: TensorArg,
) -> Result<(), LaunchError> {
    let plan = dims.plan(client, Line::Column, keys.len(), None)?;
    count("values", values.len(), if plan.packed { 1 } else { 2 })?;
    read_kernel::launch(
        client,
        CubeCount::Static(
            dims.lines(),
            dims.chunks(),
            (dims.key / plan.columns / plan.lanes) as u32,
        ),
        CubeDim::new_1d(plan.lanes as u32),
        plan.columns,
        list(keys),
        log_w.into_buffer_arg(),
        list(values),
        scratch.into_buffer_arg(),
        starts.into_buffer_arg(),
        z.into_buffer_arg(),
        dims.time,
        dims.heads,
        plan,
        dtype,
    );
    Ok(())
}

/// Launches the part of the backward pass that goes through time.
///
/// # Shapes
///
/// - `keys`: r, k, a, b and, with `read`, dz `[batch, time, heads, key]` in `dtype`, or one packed tensor of them
/// - `values`: dy and, with `read`, x `[batch, time, heads, value]` in `dtype`, or one packed tensor that begins so
/// - `d_state`: `[batch, heads, value, key]` f32
/// - out `dv`: `[batch, time, heads, value]` f32
/// - out `scratch`: `[2, batch, time, heads, value]` f32, whose channel mixer receives dsa
/// - out `d_starts`: `[batch, heads, chunks + 1, value, key]` f32: the gradient of the state before each chunk, of which
///   entry 0 is the gradient of `s0`, then `d_state`
///
/// # Errors
///
/// As [`forward`].
pub fn backward(
    client: &Client,
    dims: Dims,
    dtype: ElemType,
    read: bool,
    keys: Vec<TensorArg>,
    log_w: TensorArg,
    values: Vec<TensorArg>,
    d_state: TensorArg,
    dv: TensorArg,
    scratch: TensorArg,
    d_starts: TensorArg,
) -> Result<(), LaunchError> {
    let plan = dims.plan(client, Line::Row, keys.len(), Some(read))?;
    let expected = if plan.packed { 1 } else { 1 + read as usize };
    count("values", values.len(), expected)?;
    backward_kernel::launch(
        client,
        CubeCount::Static(dims.lines(), (dims.value / plan.lanes) as u32, 1),
        CubeDim::new_1d(plan.lanes as u32),
        list(keys),
        log_w.into_buffer_arg(),
        list(values),
        d_state.into_buffer_arg(),
        dv.into_buffer_arg(),
        scratch.into_buffer_arg(),
        d_starts.into_buffer_arg(),
        dims.time,
        dims.heads,
        plan,
        dtype,
    );
    Ok(())
}

/// Launches the part of the backward pass that goes through the chunks side by side. Run [`replay`] and [`backward`]
/// before, with the same `scratch`.
///
/// # Shapes
///
/// - `keys`: as in [`backward`]
/// - `values`: dy, with `read` x, then v `[batch, time, heads, value]` in `dtype`, or one packed tensor of them
/// - `starts`, `scratch`, `d_starts`: as [`forward`], [`replay`] and [`backward`] left them
/// - out `d_keys`: dr, dk, da, db, dlog_w `[batch, time, heads, key]` f32, or one packed tensor of them if `keys` is one
///
/// # Errors
///
/// As [`forward`].
pub fn gradient(
    client: &Client,
    dims: Dims,
    dtype: ElemType,
    read: bool,
    keys: Vec<TensorArg>,
    log_w: TensorArg,
    values: Vec<TensorArg>,
    scratch: TensorArg,
    starts: TensorArg,
    d_starts: TensorArg,
    d_keys: Vec<TensorArg>,
) -> Result<(), LaunchError> {
    let plan = dims.plan(client, Line::Column, keys.len(), Some(read))?;
    let expected = if plan.packed { 1 } else { 2 + read as usize };
    count("values", values.len(), expected)?;
    count("d_keys", d_keys.len(), if plan.packed { 1 } else { 5 })?;
    gradient_kernel::launch(
        client,
        CubeCount::Static(
            dims.lines(),
            dims.chunks(),
            (dims.key / plan.columns / plan.lanes) as u32,
        ),
        CubeDim::new_1d(plan.lanes as u32),
        plan.columns,
        list(keys),
        log_w.into_buffer_arg(),
        list(values),
        scratch.into_buffer_arg(),
        starts.into_buffer_arg(),
        d_starts.into_buffer_arg(),
        list(d_keys),
        dims.time,
        dims.heads,
        plan,
        dtype,
    );
    Ok(())
}

/// What a unit owns of the state.
#[derive(Clone, Copy)]
enum Line {
    Row,
    Column,
}

impl Dims {
    /// Checks the sizes and says what to compile. `read` is set for the backward kernels, which read dz as a fifth key.
    ///
    /// A unit owns one row, for there are few cubes in the kernels that go through time. It owns as many columns as make
    /// 128 registers: what is fetched from shared memory then serves more multiplications.
    fn plan(
        &self,
        client: &Client,
        line: Line,
        keys: usize,
        read: Option<bool>,
    ) -> Result<Plan, LaunchError> {
        for (name, size) in [("value", self.value), ("key", self.key)] {
            if size == 0 || size > 128 || !size.is_multiple_of(16) {
                return Err(LaunchError::HeadSize { name, size });
            }
        }
        if self.chunk == 0 || !self.chunk.is_multiple_of(TILE) {
            return Err(LaunchError::Chunk(self.chunk));
        }
        let (cubes_x, cubes_y, _) = client.properties().hardware.max_cube_count;
        for (name, size, most) in [
            ("batch x heads", self.batch * self.heads, cubes_x),
            ("chunks", self.time.div_ceil(self.chunk), cubes_y),
        ] {
            if size == 0 || size > most as usize {
                return Err(LaunchError::Grid { name, size, most });
            }
        }
        let packed = keys == 1;
        let read = read.unwrap_or(false);
        if !packed {
            count("keys", keys, 4 + read as usize)?;
        }
        let columns = match line {
            Line::Row => 1,
            Line::Column => [4, 2]
                .into_iter()
                .find(|n| n * self.value <= 128 && self.key.is_multiple_of(16 * n))
                .unwrap_or(1),
        };
        let units = match line {
            Line::Row => self.value,
            Line::Column => self.key / columns,
        };
        Ok(Plan {
            value: self.value,
            key: self.key,
            chunk: self.chunk,
            lanes: if units.is_multiple_of(32) { 32 } else { 16 },
            columns,
            packed,
            read,
        })
    }

    fn lines(&self) -> u32 {
        (self.batch * self.heads) as u32
    }

    fn chunks(&self) -> u32 {
        self.time.div_ceil(self.chunk) as u32
    }
}

fn count(name: &'static str, found: usize, expected: usize) -> Result<(), LaunchError> {
    if found == expected {
        Ok(())
    } else {
        Err(LaunchError::Count {
            name,
            found,
            expected,
        })
    }
}

fn list<E: CubePrimitive>(tensors: Vec<TensorArg>) -> SequenceArg<Box<[E]>> {
    tensors
        .into_iter()
        .map(TensorArg::into_buffer_arg)
        .collect()
}
