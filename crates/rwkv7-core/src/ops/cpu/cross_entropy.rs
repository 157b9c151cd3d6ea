//! Softmax cross-entropy: `loss = log(sum(exp(x))) - x[target]` of every row of logits.

use core::ops::Range;

use pulp::Simd;

use super::rows::{Kernel, assert_len, row, row_mut, run, run_wide};
use super::simd::math::exp;
use super::simd::vector::{Vector, for_lanes, sum_lanes};

/// Elements of a row that are read twice, for their maximum and for the sum. Longer chunks let the memory
/// idle during the exponentials: 4096 is a third slower on long rows.
const CHUNK: usize = 512;

/// The losses, `[rows]`, of logits, `[rows, V]`, for targets, `[rows]`.
///
/// # Panics
///
/// If a target is not in `0..V`.
pub fn forward(logits: &[f32], targets: &[i64]) -> Vec<f32> {
    let classes = assert_shape(logits, targets);
    let kernel = Forward {
        logits,
        targets,
        classes,
    };
    let [losses] = run_wide(&kernel, targets.len(), classes, 1);
    losses
}

/// `(softmax(logits) - onehot(target)) losses_grad`, `[rows, V]`, from `losses_grad`, `[rows]`.
///
/// # Panics
///
/// If a target is not in `0..V`.
pub fn backward(logits: &[f32], targets: &[i64], losses_grad: &[f32]) -> Vec<f32> {
    let classes = assert_shape(logits, targets);
    assert_len(
        targets.len(),
        &[("gradient of the losses", losses_grad.len())],
    );
    let kernel = Backward {
        logits,
        targets,
        losses_grad,
        classes,
    };
    let [logits_grad] = run(&kernel, targets.len(), classes);
    logits_grad
}

/// Checks lengths and targets; returns the number of classes, `V`.
fn assert_shape(logits: &[f32], targets: &[i64]) -> usize {
    let classes = logits.len() / targets.len().max(1);
    assert_len(targets.len() * classes, &[("logits", logits.len())]);
    for (row, target) in targets.iter().enumerate() {
        assert!(
            class(*target) < classes,
            "target {target} of row {row} must be in 0..{classes}"
        );
    }
    classes
}

/// The class of a target, or one that no row has.
#[inline(always)]
fn class(target: i64) -> usize {
    usize::try_from(target).unwrap_or(usize::MAX)
}

/// The largest logit of a row and the sum of `exp(x - largest)`.
#[inline(always)]
fn largest_and_sum<S: Simd>(simd: S, row: &[f32]) -> (f32, f64) {
    let mut largest = f32::NEG_INFINITY;
    let mut sum = 0.0;
    for chunk in row.chunks(CHUNK) {
        let mut maxima = Vector::splat(simd, f32::NEG_INFINITY);
        for_lanes(
            simd,
            chunk.len(),
            #[inline(always)]
            |lane| maxima = maxima.max(lane.or_past_end(lane.load(chunk), f32::NEG_INFINITY)),
        );
        // A NaN may be lost here; it comes back in the sum.
        let found = simd.reduce_max_f32s(maxima.value);
        if found > largest {
            if sum != 0.0 {
                sum *= f64::from(largest - found).exp();
            }
            largest = found;
        }
        let [part] = sum_lanes(
            simd,
            chunk.len(),
            #[inline(always)]
            |lane| {
                let x = lane.load(chunk) - lane.splat(shift(largest));
                [lane.or_past_end(exp(x), 0.0)]
            },
        );
        sum += f64::from(part);
    }
    (largest, sum)
}

/// What is subtracted from the logits: 0 if all so far are `-inf`, which count for nothing.
#[inline(always)]
fn shift(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY {
        0.0
    } else {
        largest
    }
}

struct Forward<'a> {
    logits: &'a [f32],
    targets: &'a [i64],
    classes: usize,
}

impl Kernel<1> for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [losses]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        for (at, loss) in rows.zip(losses) {
            let logits = row(self.logits, at, self.classes);
            let (largest, sum) = largest_and_sum(simd, logits);
            let target = logits[class(self.targets[at])];
            *loss = (f64::from(largest) - f64::from(target) + sum.ln()) as f32;
        }
    }
}

struct Backward<'a> {
    logits: &'a [f32],
    targets: &'a [i64],
    losses_grad: &'a [f32],
    classes: usize,
}

impl Kernel<1> for Backward<'_> {
    #[inline(always)]
    fn run<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        [logits_grad]: [&mut [f32]; 1],
        _sums: &mut [f32],
    ) {
        for at in rows.clone() {
            let logits = row(self.logits, at, self.classes);
            let logits_grad = row_mut(logits_grad, at - rows.start, self.classes);
            let (largest, sum) = largest_and_sum(simd, logits);
            let grad = self.losses_grad[at];
            let factor = (f64::from(grad) / sum) as f32;
            for_lanes(
                simd,
                self.classes,
                #[inline(always)]
                |lane| {
                    let x = lane.load(logits) - lane.splat(shift(largest));
                    lane.store(logits_grad, exp(x) * lane.splat(factor));
                },
            );
            logits_grad[class(self.targets[at])] -= grad;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Case, assert_case, data, with_threads};
    use super::*;

    fn naive(logits: &[f64], targets: &[i64]) -> Vec<f64> {
        let classes = logits.len() / targets.len();
        logits
            .chunks(classes)
            .zip(targets)
            .map(|(row, target)| {
                let largest = row.iter().fold(f64::MIN, |a, b| a.max(*b));
                let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
                largest + sum.ln() - row[*target as usize]
            })
            .collect()
    }

    fn compute(logits: &[f32], targets: &[i64], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
        (forward(logits, targets), backward(logits, targets, grad))
    }

    fn case_data(rows: usize, classes: usize) -> (Vec<f32>, Vec<i64>, Vec<f32>) {
        let logits = data(rows * classes, 1).iter().map(|x| 8.0 * x).collect();
        let targets = (0..rows).map(|row| (row * 7919 % classes) as i64);
        (logits, targets.collect(), data(rows, 2))
    }

    #[test]
    fn losses_and_gradients_agree_with_the_formula() {
        let shapes = [1, 2, 33, 500].map(|rows| [2, 7, 48, 256].map(|classes| (rows, classes)));
        for (rows, classes) in shapes.concat().into_iter().chain([(3, 65_536), (2, 5001)]) {
            let (logits, targets, grad) = case_data(rows, classes);
            let (losses, logits_grad) = compute(&logits, &targets, &grad);
            assert_case(Case {
                name: &format!("cross-entropy {rows} {classes}"),
                naive: &|x| naive(&x[0], &targets),
                inputs: &[logits],
                outputs: &[losses],
                output_grads: &[grad],
                gradients: &[logits_grad],
                step: 1e-5,
            });
        }
    }

    #[test]
    fn extreme_logits() {
        let inf = f32::INFINITY;
        // A class that is ruled out, a first chunk that is ruled out, huge logits.
        let mut logits = vec![-inf; 3 * 5000];
        logits[1] = 2.0;
        logits[2] = 2.0;
        logits[5000 + 4999] = 3.0;
        logits[10_000..].fill(-3e38);
        logits[10_000] = 3e38;
        let (losses, grad) = compute(&logits, &[2, 4999, 0], &[1.0; 3]);
        assert!((losses[0] - 2f32.ln()).abs() < 1e-6);
        assert_eq!(losses[1..], [0.0, 0.0]);
        assert_eq!(grad[..4], [0.0, 0.5, -0.5, 0.0]);
        assert!(grad[4..].iter().all(|g| *g == 0.0));

        let (losses, grad) = compute(&[1.0, f32::NAN, 2.0], &[0], &[1.0]);
        assert!(losses[0].is_nan() && grad.iter().all(|g| g.is_nan()));
    }

    #[test]
    #[should_panic(expected = "target -1 of row 1 must be in 0..3")]
    fn target_outside_the_classes_is_named() {
        forward(&[0.0; 6], &[2, -1]);
    }

    #[test]
    fn result_does_not_depend_on_the_number_of_threads() {
        let (logits, targets, grad) = case_data(500, 1000);
        let one = with_threads(1, || compute(&logits, &targets, &grad));
        assert!(one == with_threads(3, || compute(&logits, &targets, &grad)));
    }
}
