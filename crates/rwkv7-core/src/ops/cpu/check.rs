//! Comparison of a kernel with a formula in `f64` and its central finite differences.

/// A kernel's results and the formula they are compared with.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    /// The inputs -> all outputs one after another.
    pub(crate) naive: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    pub(crate) inputs: &'a [Vec<f32>],
    pub(crate) outputs: &'a [Vec<f32>],
    pub(crate) output_grads: &'a [Vec<f32>],
    /// One for each of the first inputs.
    pub(crate) gradients: &'a [Vec<f32>],
    /// Step of the finite differences.
    pub(crate) step: f64,
}

/// Random numbers in `[-1, 1)`, the same for the same seed.
pub(crate) fn data(len: usize, seed: u32) -> Vec<f32> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    (0..len).map(|_| next()).collect()
}

pub(crate) fn slices<const N: usize>(arrays: &[Vec<f32>; N]) -> [&[f32]; N] {
    arrays.each_ref().map(|array| &array[..])
}

pub(crate) fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

/// Compares outputs element by element, every gradient along one random direction that touches all its
/// elements, and single elements of it (all of a small array, some of a large one).
pub(crate) fn assert_case(case: Case<'_>) {
    let mut x: Vec<Vec<f64>> = case
        .inputs
        .iter()
        .map(|input| input.iter().map(|x| f64::from(*x)).collect())
        .collect();

    let expected = (case.naive)(&x);
    let found: Vec<f32> = case.outputs.concat();
    assert_eq!(expected.len(), found.len(), "{}: outputs", case.name);
    let mut begin = 0;
    for (index, output) in case.outputs.iter().enumerate() {
        let expected = &expected[begin..begin + output.len()];
        begin += output.len();
        let scale = rms(expected.iter().copied());
        for (at, (expected, found)) in expected.iter().zip(output).enumerate() {
            let error = (expected - f64::from(*found)).abs();
            assert!(
                error <= 3e-6 * (expected.abs() + scale),
                "{}: output {index}, element {at}: expected {expected}, found {found}",
                case.name
            );
        }
    }

    let weights: Vec<f64> = case
        .output_grads
        .concat()
        .iter()
        .map(|w| f64::from(*w))
        .collect();
    let loss = |x: &[Vec<f64>]| -> f64 {
        (case.naive)(x)
            .iter()
            .zip(&weights)
            .map(|(y, w)| y * w)
            .sum()
    };
    for (index, gradient) in case.gradients.iter().enumerate() {
        let original = x[index].clone();
        let scale = rms(gradient.iter().map(|g| f64::from(*g)));

        let direction: Vec<f64> = data(gradient.len(), 77)
            .iter()
            .map(|d| f64::from(*d))
            .collect();
        let mut along = |step: f64| {
            for ((x, original), direction) in x[index].iter_mut().zip(&original).zip(&direction) {
                *x = original + step * direction;
            }
            loss(&x)
        };
        let expected = (along(case.step) - along(-case.step)) / (2.0 * case.step);
        let products = gradient
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(*g) * d);
        let found: f64 = products.clone().sum();
        let size = products.map(|p| p * p).sum::<f64>().sqrt();
        assert!(
            (expected - found).abs() <= 2e-5 * (expected.abs() + size) + 1e-7 * scale,
            "{}: gradient {index} along a direction: expected {expected}, found {found}, size {size}",
            case.name
        );
        x[index].copy_from_slice(&original);

        let all = x.iter().map(|x| x.len()).sum::<usize>();
        let samples = if all <= 1000 {
            gradient.len().min(64)
        } else {
            3
        };
        for sample in 0..samples {
            let at = if samples == gradient.len() {
                sample
            } else {
                (sample * 7919 + 13 * index + 5) * 31 % gradient.len()
            };
            let mut moved = |step: f64| {
                x[index][at] = original[at] + step;
                loss(&x)
            };
            let expected = (moved(case.step) - moved(-case.step)) / (2.0 * case.step);
            x[index][at] = original[at];
            let found = f64::from(gradient[at]);
            assert!(
                (expected - found).abs() <= 1e-5 * (expected.abs() + scale),
                "{}: gradient {index}, element {at}: expected {expected}, found {found}",
                case.name
            );
        }
    }
}

fn rms(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1);
    (values.map(|x| x * x).sum::<f64>() / count as f64).sqrt()
}
