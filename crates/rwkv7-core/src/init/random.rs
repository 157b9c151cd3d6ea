//! Random numbers that do not depend on the device: a seed and a name decide them.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// The seed of the tensor `name` in a model of seed `seed`: FNV-1a over both.
pub fn named_seed(seed: u64, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The increment of SplitMix64, 2⁶⁴ divided by the golden ratio.
pub const SPLIT_MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Two independent standard normal values from two uniform ones in `[0, 1)`, by the Box-Muller transform.
pub fn normal_pair(first: f64, second: f64) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - first).ln()).sqrt();
    let angle = std::f64::consts::TAU * second;
    (radius * angle.cos(), radius * angle.sin())
}

/// Value number `index` of a sequence of standard normal values that `seed` decides.
pub fn normal_at(seed: u64, index: u64) -> f64 {
    let uniform = |stream: u64| {
        let bits = mix(seed ^ (2 * index + stream).wrapping_mul(SPLIT_MIX));
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    };
    normal_pair(uniform(0), uniform(1)).0
}

/// A generator for the tensor `name`.
pub(super) fn named_rng(seed: u64, name: &str) -> StdRng {
    StdRng::seed_from_u64(named_seed(seed, name))
}

/// A random matrix `[rows, cols]`, row-major: the longer side's vectors orthonormal, times `gain`.
///
/// The Q of a QR decomposition of a Gaussian matrix with positive diagonal of R, by Gram-Schmidt applied twice: the
/// shorter side's vectors, each against all before it.
pub(super) fn orthogonal(dims: [usize; 2], gain: f32, rng: &mut impl Rng) -> Vec<f32> {
    let [rows, cols] = dims;
    let (count, length) = (rows.min(cols), rows.max(cols));
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut x: Vec<f32> = gaussian(length, rng);
        for _ in 0..2 {
            for q in &vectors {
                let along = dot(q, &x);
                x.iter_mut().zip(q).for_each(|(x, q)| *x -= along * q);
            }
        }
        let scale = 1.0 / dot(&x, &x).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
        vectors.push(x);
    }
    let at = |row: usize, col: usize| {
        gain * if rows <= cols {
            vectors[row][col]
        } else {
            vectors[col][row]
        }
    };
    (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
}

/// A dot product in 16 independent sums, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    rest + sums.iter().sum::<f32>()
}

/// Standard normal values.
fn gaussian(count: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let pair = normal_pair(rng.random::<f64>(), rng.random::<f64>());
        values.extend([pair.0 as f32, pair.1 as f32]);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_matrices_have_their_gain() {
        for dims in [[24, 24], [8, 40], [40, 8]] {
            let m = orthogonal(dims, 0.5, &mut named_rng(1, "m"));
            let (count, length) = (dims[0].min(dims[1]), dims[0].max(dims[1]));
            let vector = |i: usize| -> Vec<f32> {
                (0..length)
                    .map(|j| {
                        if dims[0] <= dims[1] {
                            m[i * dims[1] + j]
                        } else {
                            m[j * dims[1] + i]
                        }
                    })
                    .collect()
            };
            for i in 0..count {
                for j in 0..count {
                    let expected = if i == j { 0.25 } else { 0.0 };
                    let found = dot(&vector(i), &vector(j));
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{dims:?}: vectors {i}, {j}: {found}"
                    );
                }
            }
        }
    }
}
