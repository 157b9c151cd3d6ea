//! The product against the same in f64 of factors rounded by another implementation.

use std::io::{Write, stderr};

use burn::tensor::bf16;

use super::{DEPTH, HEIGHT, Matrix, WIDTH, is_available, kernel, product};
use crate::ops::cpu::check::{data, with_threads};

/// Says that a test is skipped where the processor cannot run it. Written past the test harness, which hides what passes.
fn is_missing() -> bool {
    if !is_available() {
        let _ = writeln!(stderr(), "skipped: this processor has no bf16 products");
    }
    !is_available()
}

/// `left right` for factors given in row-major order, or their transposes.
fn run(
    [rows, depth, columns]: [usize; 3],
    transposed: [bool; 2],
    left: &[f32],
    right: &[f32],
) -> Vec<f32> {
    let view = |data, [rows, columns]: [usize; 2], transposed| match transposed {
        false => Matrix::new(data, [rows, columns]),
        true => Matrix::new(data, [columns, rows]).transpose(),
    };
    let left = view(left, [rows, depth], transposed[0]);
    let right = view(right, [depth, columns], transposed[1]);
    product(left, right)
}

#[test]
fn products_of_any_shape_are_those_of_rounded_factors() {
    if is_missing() {
        return;
    }
    let shapes = [
        [1, 1, 1],
        [1, 2, 3],
        [5, 3, 7],
        [kernel::ROWS, 16, kernel::COLUMNS],
        [kernel::ROWS + 1, 17, kernel::COLUMNS + 1],
        [HEIGHT + 5, DEPTH - 1, 33],
        [40, DEPTH + 1, 64],
        [3, 2 * DEPTH + 3, 70],
        [13, 6, WIDTH + 9],
    ];
    for [rows, depth, columns] in shapes {
        for transposed in [[false, false], [true, false], [false, true], [true, true]] {
            let (left, right) = (data(rows * depth, 1), data(depth * columns, 2));
            let found = run([rows, depth, columns], transposed, &left, &right);
            let rounded = |data: &[f32], at: usize| f64::from(bf16::from_f32(data[at]).to_f32());
            for i in 0..rows {
                for j in 0..columns {
                    let terms = (0..depth).map(|k| {
                        let left_at = [i * depth + k, k * rows + i][usize::from(transposed[0])];
                        let right_at = [k * columns + j, j * depth + k][usize::from(transposed[1])];
                        rounded(&left, left_at) * rounded(&right, right_at)
                    });
                    let (sum, size) = terms.fold((0.0, 1e-30), |(sum, size), term| {
                        (sum + term, size + f64::abs(term))
                    });
                    let found = f64::from(found[i * columns + j]);
                    assert!(
                        (found - sum).abs() < 1e-6 * size,
                        "{rows} x {depth} x {columns}, {transposed:?}, [{i}, {j}]: {found} and {sum}"
                    );
                }
            }
        }
    }
}

#[test]
fn infinities_and_nan_stay() {
    if is_missing() {
        return;
    }
    let few_bits = f32::from_bits(0x7f80_0001);
    for [value, expected] in [
        [f32::NAN, f32::NAN],
        [few_bits, f32::NAN],
        [f32::INFINITY, f32::INFINITY],
        [f32::MAX, f32::INFINITY],
    ] {
        let found = run([1, 1, 1], [false, false], &[value], &[1.0])[0];
        assert!(
            found == expected || found.is_nan() && expected.is_nan(),
            "{value}: {found}"
        );
    }
}

#[test]
fn products_do_not_depend_on_the_number_of_threads() {
    if is_missing() {
        return;
    }
    let shape = [HEIGHT * 3 + 7, DEPTH + 9, 45];
    let [rows, depth, columns] = shape;
    let (left, right) = (data(rows * depth, 3), data(depth * columns, 4));
    let run = |threads| with_threads(threads, || run(shape, [false, false], &left, &right));
    assert!(run(1) == run(5));
}
