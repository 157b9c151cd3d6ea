//! The sum over the blocks of what each block left for each channel.

use cubecl::prelude::*;

/// Channels of a cube.
pub const LANES: usize = 32;

/// Groups of units that share the blocks.
pub const GROUPS: usize = 8;

/// Adds `partial` over the blocks; `CUBE_POS_X` counts parts of the channels, `CUBE_POS_Y` sums. The order depends on the sizes
/// alone.
#[cube(launch)]
pub fn sum_kernel<F: Float>(
    partial: &[f32],                // [blocks, sums, C]
    mut totals: Sequence<Box<[F]>>, // C each
    blocks: usize,
    channels: usize,
    #[comptime] sums: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = Shared::<[f32]>::new_slice(comptime![LANES * GROUPS]);
    let lane = UNIT_POS_X as usize;
    let group = UNIT_POS_Y as usize;
    let which = CUBE_POS_Y as usize;
    let channel = CUBE_POS_X as usize * LANES + lane;

    let mut sum = 0.0f32;
    if channel < channels {
        let mut block = group;
        while block < blocks {
            sum += partial[(block * sums + which) * channels + channel];
            block += GROUPS;
        }
    }
    tile[group * LANES + lane] = sum;
    sync_cube();
    if group == 0 && channel < channels {
        let mut total = 0.0f32;
        #[unroll]
        for n in 0..GROUPS {
            total += tile[n * LANES + lane];
        }
        #[unroll]
        for n in 0..sums {
            if which == n {
                let output = totals.index_mut(n);
                output[channel] = F::cast_from(total);
            }
        }
    }
}
