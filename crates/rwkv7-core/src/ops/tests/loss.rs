//! Cross-entropy on the default device, and the head with its loss in parts, against the formulas in f64 and against autodiff
//! of the formulas.

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

use crate::{
    MatmulPrecision,
    loss::{cross_entropy, l2_wrap},
    ops::{self, head_loss::head_loss_in_parts, reference},
};

fn device() -> Device {
    Device::default().autodiff()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1e-2_f32, |m, x| m.max(x.abs()));
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * scale, "{name} {at}: {a} and {b}");
    }
}

/// Logits of every size, and targets of every class.
fn case(rows: usize, classes: usize) -> (Vec<f32>, Vec<i32>) {
    let logits = (0..rows * classes).map(|i| 9.0 * ((i * 31) as f32 * 0.173).sin());
    let targets = (0..rows).map(|row| (row * 7919 % classes) as i32);
    (logits.collect(), targets.collect())
}

#[test]
fn losses_and_gradients_are_those_of_the_formula() {
    for (rows, classes) in [(1, 2), (3, 7), (5, 256), (2, 1030), (3, 5001)] {
        let (logits, targets) = case(rows, classes);
        let x = Tensor::<2>::from_data(TensorData::new(logits.clone(), [rows, classes]), &device())
            .require_grad();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(targets.clone(), [rows]), &device());
        let weights: Vec<f32> = (0..rows).map(|row| 0.5 - 0.3 * row as f32).collect();
        let factors = Tensor::<1>::from_data(TensorData::new(weights.clone(), [rows]), &device());
        let losses = ops::cross_entropy(x.clone(), ids);
        let grads = (losses.clone() * factors).sum().backward();

        let (mut expected, mut slopes) = (Vec::new(), Vec::new());
        for (row, logits) in logits.chunks(classes).enumerate() {
            let target = targets[row] as usize;
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            expected.push((sum.ln() - f64::from(logits[target])) as f32);
            slopes.extend(logits.iter().enumerate().map(|(class, &x)| {
                let share = f64::from(x).exp() / sum - f64::from(u8::from(class == target));
                (share * f64::from(weights[row])) as f32
            }));
        }
        let name = format!("{rows} {classes}");
        assert_close(&name, &values(losses), &expected);
        assert_close(&name, &values(x.grad(&grads).unwrap()), &slopes);
    }
}

/// Ruled-out classes and huge logits.
#[test]
fn extreme_logits() {
    let mut logits = vec![f32::NEG_INFINITY; 2 * 600];
    (logits[1], logits[2]) = (2.0, 2.0);
    logits[600..].fill(-3e38);
    logits[600] = 3e38;
    let logits = Tensor::<2>::from_data(TensorData::new(logits, [2, 600]), &device());
    let logits = logits.require_grad();
    let targets = Tensor::<1, Int>::from_data([2, 0], &device());
    let losses = ops::cross_entropy(logits.clone(), targets);
    let slopes = values(logits.grad(&losses.clone().sum().backward()).unwrap());
    let losses = values(losses);
    assert!((losses[0] - 2f32.ln()).abs() < 1e-6, "{losses:?}");
    assert_eq!(losses[1], 0.0);
    assert_close("first row", &slopes[..4], &[0.0, 0.5, -0.5, 0.0]);
    assert!(slopes[3..].iter().all(|slope| *slope == 0.0));
}

/// The head in parts of 4 of 10 rows is the product, the loss, the hits and L2Wrap over all rows: results and gradients.
#[test]
fn the_head_in_parts_is_the_head_and_its_loss() {
    let [rows, width, classes] = [10, 24, 52];
    let draw = |shape: [usize; 2]| {
        Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), &device()).require_grad()
    };
    let (x, weight) = (draw([rows, width]), draw([width, classes]));
    let targets: Vec<i32> = (0..rows).map(|row| (row * 5 % classes) as i32).collect();
    let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [rows]), &device());
    // The largest logit of row 3 is its target's.
    let best = x.clone().matmul(weight.clone()).argmax(1).reshape([rows]);
    let targets = Tensor::cat(
        vec![
            targets.clone().narrow(0, 0, 3),
            best.narrow(0, 3, 1),
            targets.narrow(0, 4, rows - 4),
        ],
        0,
    );
    for masked in [false, true] {
        for with_l2_wrap in [false, true] {
            let mask: Vec<f32> = (0..rows)
                .map(|row| f32::from(!masked || row % 3 > 0))
                .collect();
            let counted: f32 = mask.iter().sum();
            let mask = Tensor::<1>::from_data(TensorData::new(mask, [rows]), &device());

            let logits: Tensor<3> = x.clone().matmul(weight.clone()).unsqueeze();
            let mut loss = cross_entropy(
                logits.clone(),
                targets.clone().unsqueeze(),
                Some(mask.clone().unsqueeze()),
            );
            if with_l2_wrap {
                loss = loss + l2_wrap(logits.clone());
            }
            let grads = loss.backward();
            let expected = [
                values(loss),
                values(x.grad(&grads).unwrap()),
                values(weight.grad(&grads).unwrap()),
            ];
            let hits = logits
                .inner()
                .argmax(2)
                .reshape([rows])
                .equal(targets.clone().inner());

            let found = head_loss_in_parts(
                x.clone(),
                weight.clone(),
                targets.clone(),
                mask / counted,
                if with_l2_wrap {
                    1e-4 / rows as f64
                } else {
                    0.0
                },
                MatmulPrecision::F32,
                4,
            );
            // A gradient that arrives scales the gradients.
            let grads = (found.loss.clone() * 2.0).backward();
            let half = |x: Tensor<2>| values(x * 0.5);
            let found_hits = values(found.hits);
            let found = [
                values(found.loss),
                half(x.grad(&grads).unwrap()),
                half(weight.grad(&grads).unwrap()),
            ];
            for (name, (found, expected)) in ["loss", "x", "weight"]
                .iter()
                .zip(found.iter().zip(&expected))
            {
                assert_close(name, found, expected);
            }
            assert_eq!(found_hits, values(hits.float()));
            assert_eq!(found_hits[3], 1.0);
        }
    }
}

/// The kernel's losses, hits and gradient are those of the formulas in tensor operations.
#[test]
fn rows_of_the_loss_agree_with_the_reference() {
    for (rows, classes) in [(1, 4), (7, 33), (3, 2048)] {
        let (logits, targets) = case(rows, classes);
        let device = Device::default();
        let run =
            |f: fn(Tensor<2>, Tensor<1>, Tensor<1, Int>, f64, bool) -> ops::head_loss::LossRows| {
                let logits =
                    Tensor::from_data(TensorData::new(logits.clone(), [rows, classes]), &device);
                let targets = Tensor::from_data(TensorData::new(targets.clone(), [rows]), &device);
                let weights = Tensor::<1, Int>::arange(1..rows as i64 + 1, &device).float();
                let found = f(logits, weights, targets, 1e-3, true);
                [
                    values(found.losses),
                    values(found.hits),
                    values(found.gradient.unwrap()),
                ]
            };
        let (found, expected) = (run(ops::head_loss::loss_rows), run(reference::loss_rows));
        for (name, (found, expected)) in ["losses", "hits", "gradient"]
            .iter()
            .zip(found.iter().zip(&expected))
        {
            assert_close(name, found, expected);
        }
    }
}
