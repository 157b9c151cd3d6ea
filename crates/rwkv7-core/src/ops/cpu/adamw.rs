//! One step of AdamW on one tensor, in place, and the sum of squares for the norm of the gradients.
//!
//! ```text
//! m = beta1 m + (1 - beta1) g
//! v = beta2 v + (1 - beta2) g^2
//! p = p (1 - lr weight_decay) - lr (m / correction1) / (sqrt(v / correction2) + eps)
//! ```
//!
//! The operations and their order are those of burn-optim 0.22.1 (`optim/adamw.rs`).

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, run_in_place, run_wide};
use super::simd::vector::{Vector, for_lanes};

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    pub beta1: f32,
    pub beta2: f32,
    /// Added to the square root.
    pub eps: f32,
    pub weight_decay: f32,
    /// `1 - beta1^t` in step `t`, counted from 1.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
}

/// Updates the parameters `p` and the moments `m` and `v` from the gradient `g`; all have the same length.
pub fn step(step: Step, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let len = p.len();
    assert_len(len, &[("g", g.len()), ("m", m.len()), ("v", v.len())]);
    run_in_place(&Update { step, g }, [p, m, v]);
}

/// `sum(x^2)`, relative error below 1e-6 for any length.
///
/// `f32` within 16 vectors (a dozen roundings at most), `f64` beyond.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let chunks = x.len().div_ceil(CHUNK);
    let [partial] = run_wide(&Squares(x), chunks, CHUNK, 1);
    partial.iter().map(|sum| f64::from(*sum)).sum()
}

/// Elements of one partial sum of squares.
const CHUNK: usize = 4096;

struct Update<'a> {
    step: Step,
    g: &'a [f32],
}

impl Kernel<3> for Update<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        elements: Range<usize>,
        [p, m, v]: [&mut [f32]; 3],
        _sums: &mut [f32],
    ) {
        let g = &self.g[elements];
        let (p, m, v) = (&mut p[..g.len()], &mut m[..g.len()], &mut v[..g.len()]);
        let Step {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            correction1,
            correction2,
        } = self.step;
        let keep = (1.0 - lr * f64::from(weight_decay)) as f32;
        let lr = lr as f32;
        for_lanes(
            simd,
            g.len(),
            #[inline(always)]
            |lane| {
                let grad = lane.load(g);
                let moment1 = lane.load(m) * lane.splat(beta1) + grad * lane.splat(1.0 - beta1);
                let moment2 =
                    lane.load(v) * lane.splat(beta2) + grad * grad * lane.splat(1.0 - beta2);
                lane.store(m, moment1);
                lane.store(v, moment2);
                let divisor = (moment2 / lane.splat(correction2)).sqrt() + lane.splat(eps);
                let delta = moment1 / lane.splat(correction1) / divisor;
                lane.store(p, lane.load(p) * lane.splat(keep) - delta * lane.splat(lr));
            },
        );
    }
}

struct Squares<'a>(&'a [f32]);

impl Kernel<1> for Squares<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        chunks: Range<usize>,
        [partial]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        for (chunk, partial) in chunks.zip(partial) {
            let chunk = &self.0[chunk * CHUNK..];
            let chunk = &chunk[..chunk.len().min(CHUNK)];
            let mut total = 0.0;
            for part in chunk.chunks(16 * S::F32_LANES) {
                let mut sum = Vector::splat(simd, 0.0);
                for quarter in part.chunks(4 * S::F32_LANES) {
                    let mut squares = Vector::splat(simd, 0.0);
                    for_lanes(
                        simd,
                        quarter.len(),
                        #[inline(always)]
                        |lane| {
                            let x = lane.load(quarter);
                            squares = x.mul_add(x, squares);
                        },
                    );
                    sum += squares;
                }
                total += f64::from(sum.sum());
            }
            *partial = total as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{data, with_threads};
    use super::*;

    const STEP: Step = Step {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        correction1: 0.0,
        correction2: 0.0,
    };

    #[test]
    fn ten_steps_agree_with_the_formula() {
        for len in [1, 7, 48, 500, 100_003] {
            let mut p = data(len, 1);
            let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
            let mut expected: Vec<[f64; 3]> = p.iter().map(|p| [f64::from(*p), 0.0, 0.0]).collect();
            for t in 1..=10 {
                let g = data(len, 10 + t);
                let corrections = [1.0 - 0.9f64.powi(t as i32), 1.0 - 0.99f64.powi(t as i32)];
                let numbers = Step {
                    correction1: corrections[0] as f32,
                    correction2: corrections[1] as f32,
                    ..STEP
                };
                step(numbers, &mut p, &g, &mut m, &mut v);
                for ([p, m, v], g) in expected.iter_mut().zip(&g) {
                    let g = f64::from(*g);
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.99 * *v + 0.01 * g * g;
                    let delta = *m / corrections[0] / ((*v / corrections[1]).sqrt() + 1e-8);
                    *p = *p * (1.0 - 0.01 * 0.1) - 0.01 * delta;
                }
            }
            for (at, expected) in expected.iter().enumerate() {
                for (expected, found) in expected.iter().zip([p[at], m[at], v[at]]) {
                    let error = (expected - f64::from(found)).abs();
                    assert!(error < 2e-6, "{len}, element {at}: {expected} {found}");
                }
            }
        }
    }

    #[test]
    fn operations_are_those_of_burn_to_the_last_bit() {
        let (mut p, g, mut m) = (data(999, 1), data(999, 2), data(999, 3));
        let mut v: Vec<f32> = data(999, 4).iter().map(|x| x.abs()).collect();
        let numbers = Step {
            correction1: 1.0 - 0.9f32.powi(3),
            correction2: 1.0 - 0.99f32.powi(3),
            ..STEP
        };
        let old = (p.clone(), m.clone(), v.clone());
        step(numbers, &mut p, &g, &mut m, &mut v);
        for at in 0..p.len() {
            let moment1 = old.1[at] * 0.9 + g[at] * (1.0 - 0.9);
            let moment2 = old.2[at] * 0.99 + g[at] * g[at] * (1.0 - 0.99);
            let delta = (moment1 / numbers.correction1)
                / ((moment2 / numbers.correction2).sqrt() + numbers.eps);
            let decay = (1.0 - 0.01 * f64::from(numbers.weight_decay)) as f32;
            let expected = [old.0[at] * decay - delta * 0.01, moment1, moment2];
            assert_eq!([p[at], m[at], v[at]], expected, "element {at}");
        }
    }

    #[test]
    fn sum_of_squares_is_accurate_for_long_slices() {
        for len in [0, 1, 7, 4097, 3_000_001] {
            for x in [data(len, 1), vec![0.1; len]] {
                let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let found = sum_of_squares(&x);
                assert!(
                    (found - expected).abs() <= 3e-7 * expected,
                    "{found} {expected}"
                );
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let x = data(1_000_003, 1);
        let one = with_threads(1, || sum_of_squares(&x));
        assert_eq!(one, with_threads(3, || sum_of_squares(&x)));
    }
}
