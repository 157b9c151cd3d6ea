//! Softmax cross-entropy of rows of logits, its gradient, and which rows have their largest logit at the target: one kernel, a
//! cube for each row.
//!
//! ```text
//! loss     = largest - x_target + ln Σ exp(x - largest)
//! gradient = weight (exp(x - largest) / Σ exp(x - largest) - [target]) + pull largest [at the largest]
//! ```
//!
//! Logits and gradient are f32 or a half precision that the device computes in; everything else is f32.

use cubecl::{ir::ElemType, prelude::*};

/// Units of a cube.
const UNITS: usize = 256;

/// Launches the kernel.
///
/// # Shapes
///
/// - `logits`: `[rows, classes]` of the first of the types; fewer than 2³² elements
/// - `targets`: `[rows]` integers of the second
/// - `weights`: `[rows]` f32, read for the gradient alone
/// - out `losses`, `hits`: `[rows]` f32; a hit is 1, no hit is 0
/// - out `gradient`: like `logits`, if wanted; `pull` times a row's largest logit is added at the largest logit
pub fn rows(
    client: &Client,
    [rows, classes]: [usize; 2],
    dtypes: [ElemType; 2],
    logits: TensorArg,
    targets: TensorArg,
    weights: TensorArg,
    losses: TensorArg,
    hits: TensorArg,
    gradient: Option<TensorArg>,
    pull: f32,
) {
    let lanes = if classes.is_multiple_of(4) { 4 } else { 1 };
    let across = rows.clamp(1, 32_768);
    rows_kernel::launch(
        client,
        CubeCount::Static(across as u32, rows.div_ceil(across) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        lanes,
        logits.into_buffer_arg(),
        targets.into_buffer_arg(),
        weights.into_buffer_arg(),
        losses.into_buffer_arg(),
        hits.into_buffer_arg(),
        gradient.map(TensorArg::into_buffer_arg).into(),
        rows,
        classes / lanes,
        pull,
        lanes,
        dtypes,
    );
}

#[cube(launch)]
fn rows_kernel<F: Float, N: Size, I: Int>(
    logits: &[Vector<F, N>],
    targets: &[I],
    weights: &[f32],
    losses: &mut [f32],
    hits: &mut [f32],
    mut gradient: ComptimeOption<&mut [Vector<F, N>]>,
    rows: usize,
    width: usize,
    pull: f32,
    #[comptime] lanes: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS_X as usize;
    let begin = row * width;
    let target = u32::cast_from(targets[row]);

    let mut largest = f32::min_value();
    let mut place = 0u32;
    let mut sum = f32::new(0.0);
    let mut j = unit;
    while j < width {
        let x = Vector::<f32, N>::cast_from(logits[begin + j]);
        let before = largest;
        #[unroll]
        for l in 0..lanes {
            let value = x.extract(l);
            if value > largest {
                largest = value;
                place = (j * lanes + l) as u32;
            }
        }
        sum *= (before - largest).exp();
        #[unroll]
        for l in 0..lanes {
            sum += (x.extract(l) - largest).exp();
        }
        j += UNITS;
    }

    let mut largests = Shared::<[f32]>::new_slice(UNITS);
    let mut places = Shared::<[u32]>::new_slice(UNITS);
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    largests[unit] = largest;
    places[unit] = place;
    sums[unit] = sum;
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        sync_cube();
        if unit < half {
            let ours = largests[unit];
            let theirs = largests[unit + half];
            let our_place = places[unit];
            let their_place = places[unit + half];
            let most = ours.max(theirs);
            let theirs_first = theirs > ours || (theirs == ours && their_place < our_place);
            let our_sum = sums[unit] * (ours - most).exp();
            sums[unit] = our_sum + sums[unit + half] * (theirs - most).exp();
            places[unit] = select(theirs_first, their_place, our_place);
            largests[unit] = most;
        }
        half /= 2;
    }
    sync_cube();
    let largest = largests[0];
    let place = places[0];
    let sum = sums[0];

    if unit == 0 {
        let at = target as usize / lanes;
        let x = Vector::<f32, N>::cast_from(logits[begin + at]);
        let mut of_target = f32::new(0.0);
        #[unroll]
        for l in 0..lanes {
            if target as usize % lanes == l {
                of_target = x.extract(l);
            }
        }
        losses[row] = largest - of_target + sum.ln();
        hits[row] = select(place == target, f32::new(1.0), f32::new(0.0));
    }

    #[comptime]
    match &mut gradient {
        ComptimeOption::Some(gradient) => {
            let weight = weights[row];
            let share = weight / sum;
            let mut j = unit;
            while j < width {
                let x = Vector::<f32, N>::cast_from(logits[begin + j]);
                let mut out = Vector::<f32, N>::empty();
                #[unroll]
                for l in 0..lanes {
                    let class = (j * lanes + l) as u32;
                    let mut slope = (x.extract(l) - largest).exp() * share;
                    slope -= select(class == target, weight, f32::new(0.0));
                    slope += select(class == place, pull * largest, f32::new(0.0));
                    out.insert(l, slope);
                }
                gradient[begin + j] = Vector::<F, N>::cast_from(out);
                j += UNITS;
            }
        }
        ComptimeOption::None => {}
    }
}
