//! The cut of `[rows, C]` into cubes, and what the kernels do with the rows of a cube.

use cubecl::prelude::*;

/// Most units of a cube. Browsers allow no more.
const MOST_UNITS: usize = 256;

/// Blocks of rows whose sums are added up afterwards, at most.
const MOST_SUMMED_BLOCKS: usize = 1024;

/// Blocks of rows, at most.
const MOST_BLOCKS: usize = 16_384;

/// The cut of `[rows, C]`: `CUBE_POS_X` counts parts of a row, `CUBE_POS_Y` blocks of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Neighbouring channels that a unit takes.
    pub vector: usize,
    /// Vectors in a row.
    pub across: usize,
    /// Rows.
    pub rows: usize,
    /// Rows of a block.
    pub block: usize,
    /// Blocks of rows.
    pub blocks: usize,
    /// Units of a cube.
    pub units: usize,
    /// Neighbouring units that share sums.
    pub lanes: usize,
    /// Cubes across a row.
    pub cubes: usize,
}

impl Cut {
    /// Units that have nothing to do with each other. `summed` is set if every block leaves sums.
    pub fn free(rows: usize, channels: usize, summed: bool) -> Self {
        let vector = vector(channels);
        let across = channels / vector;
        let cubes = across.div_ceil(MOST_UNITS);
        let units = across.div_ceil(cubes).next_multiple_of(32);
        Self::new(rows, summed, [vector, across, units, 1, cubes])
    }

    /// A cube for whole rows, with units that share sums.
    pub fn whole(rows: usize, channels: usize, summed: bool) -> Self {
        let vector = vector(channels);
        let across = channels / vector;
        let units = across.div_ceil(4).next_power_of_two();
        let units = units.clamp(32, MOST_UNITS);
        Self::new(rows, summed, [vector, across, units, units, 1])
    }

    /// Cubes of whole heads, with units of each head that share sums. A head has a multiple of 16 channels, at most 128.
    pub fn heads(rows: usize, heads: usize, head_size: usize, summed: bool) -> Self {
        let lanes = head_size / 4;
        let cubes = heads.div_ceil((MOST_UNITS / 2 / lanes).max(1));
        let units = heads.div_ceil(cubes) * lanes;
        Self::new(rows, summed, [4, heads * lanes, units, lanes, cubes])
    }

    /// Vectors that a unit takes of each row.
    pub fn turns(&self) -> usize {
        self.across.div_ceil(self.units * self.cubes)
    }

    fn new(rows: usize, summed: bool, [vector, across, units, lanes, cubes]: [usize; 5]) -> Self {
        // A block with sums has several rows even if there are few: its sums are written, and read again.
        let block = match summed {
            true => rows.div_ceil(MOST_SUMMED_BLOCKS).max(8),
            false => rows.div_ceil(MOST_BLOCKS),
        };
        Self {
            vector,
            across,
            rows,
            block,
            blocks: rows.div_ceil(block),
            units,
            lanes,
            cubes,
        }
    }

    /// The cut as the kernels take it.
    pub fn work(&self) -> WorkLaunch {
        WorkLaunch::new(self.rows, self.across, self.block, self.units, self.lanes)
    }

    /// Cubes of the launch.
    pub fn count(&self) -> CubeCount {
        CubeCount::Static(self.cubes as u32, self.blocks as u32, 1)
    }

    /// Units of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// Channels that are read together.
fn vector(channels: usize) -> usize {
    [4, 2]
        .into_iter()
        .find(|n| channels.is_multiple_of(*n))
        .unwrap_or(1)
}

/// A [`Cut`] as the kernels take it.
#[derive(CubeType, CubeLaunch)]
pub struct Work {
    /// Rows.
    pub rows: usize,
    /// Vectors in a row.
    pub across: usize,
    block: usize,
    /// Units of a cube.
    #[cube(comptime)]
    pub units: usize,
    /// Neighbouring units that share sums.
    #[cube(comptime)]
    pub lanes: usize,
}

/// What a unit takes of `[rows, C]`.
#[derive(CubeType)]
pub struct Place {
    /// Its vector of a row, and the last one for a unit beside the row.
    pub column: usize,
    /// Whether the unit is not beside the row.
    pub is_inside: bool,
    /// Its first row.
    pub from: usize,
    /// The row after its last row.
    pub to: usize,
}

#[cube]
impl Work {
    /// What this unit takes.
    pub fn place(&self) -> Place {
        let column = CUBE_POS_X as usize * CUBE_DIM_X as usize + UNIT_POS_X as usize;
        let from = CUBE_POS_Y as usize * self.block;
        Place {
            column: column.min(self.across - 1),
            is_inside: column < self.across,
            from,
            to: (from + self.block).min(self.rows),
        }
    }

    /// Where sum number `which` of this block lies in `[blocks, sums, across]`.
    pub fn sum_place(
        &self,
        #[comptime] which: usize,
        #[comptime] sums: usize,
        column: usize,
    ) -> usize {
        (CUBE_POS_Y as usize * sums + which) * self.across + column
    }
}

/// A vector of a tensor, in f32.
#[cube]
pub fn load<F: Float, N: Size>(x: &[Vector<F, N>], at: usize) -> Vector<f32, N> {
    Vector::cast_from(x[at])
}

/// Up to four sums at once.
pub type Quad<E> = Vector<E, Const<4>>;

/// Slots of the shared memory of [`total`].
const SLOTS: usize = 3;

/// Units that add up a wider group's numbers first.
const FIRST: usize = 8;

/// The widest group whose units add up all numbers each.
const NARROW: usize = 16;

/// Length of the shared memory that [`total`] needs.
fn shared_size(units: usize, width: usize) -> usize {
    let sums = if width > NARROW {
        units / width * FIRST
    } else {
        0
    };
    SLOTS * (units + sums)
}

/// The shared memory that [`total`] needs.
#[cube]
pub fn shared_sums(work: &Work) -> Shared<[Quad<f32>]> {
    Shared::<[Quad<f32>]>::new_slice(comptime![shared_size(work.units, work.lanes)])
}

/// Sums over each group of `lanes` neighbouring units; every unit gets those of its group. All units of a cube call it. Two calls
/// one after the other have different slots, of 3.
#[cube]
pub fn total(tile: &mut Shared<[Quad<f32>]>, slot: usize, x: Quad<f32>, work: &Work) -> Quad<f32> {
    let units = comptime![work.units];
    let width = comptime![work.lanes];
    let unit = UNIT_POS_X as usize;
    let group = unit / width;
    let own = slot * units;
    tile[own + unit] = x;
    sync_cube();
    let mut sum = Quad::<f32>::new(0.0);
    if comptime![width > NARROW] {
        let lane = unit % width;
        let firsts = SLOTS * units + slot * comptime![units / width * FIRST] + group * FIRST;
        if lane < FIRST {
            let mut part = Quad::<f32>::new(0.0);
            #[unroll]
            for n in 0..comptime![width / FIRST] {
                part += tile[own + group * width + n * FIRST + lane];
            }
            tile[firsts + lane] = part;
        }
        sync_cube();
        #[unroll]
        for n in 0..FIRST {
            sum += tile[firsts + n];
        }
    } else {
        #[unroll]
        for n in 0..width {
            sum += tile[own + group * width + n];
        }
    }
    sum
}

/// The sum over a vector, for [`total`].
#[cube]
pub fn one_sum(x: Quad<f32>) -> Quad<f32> {
    let mut sums = Quad::<f32>::new(0.0);
    sums.insert(0usize, Vector::vector_sum(x));
    sums
}

/// The sums over two vectors, for [`total`].
#[cube]
pub fn two_sums(x: Quad<f32>, y: Quad<f32>) -> Quad<f32> {
    let mut sums = one_sum(x);
    sums.insert(1usize, Vector::vector_sum(y));
    sums
}

/// σ(x) and 1 - σ(x), each exact to its own last digits. No exponential overflows.
#[cube]
pub fn sigmoid<N: Size>(x: Vector<f32, N>) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0);
    let is_negative = x.less_than(&Vector::new(0.0));
    let small = Vector::exp(select_many(is_negative, x, -x));
    let large = Vector::recip(one + small);
    let small = small * large;
    (
        select_many(is_negative, small, large),
        select_many(is_negative, large, small),
    )
}
