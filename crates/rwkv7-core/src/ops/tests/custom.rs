//! The custom operation of the default device.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    case::{Case, Decay, Keys, NAMES, Rate, SIDES, assert_close, relative_error},
    *,
};

/// The custom operation: every size with every length once, and other batches, heads, decays and keys in turn.
#[test]
fn custom_operation_agrees() {
    let decays = [Decay::Mixed, Decay::Strongest, Decay::Slowest];
    let rates = [Rate::Random, Rate::Always(0.0), Rate::Always(1.0)];
    let mut n = 0;
    for size in [16, 32, 64, 128] {
        for time in [1, 15, 16, 17, 33, 64, 200, 1000] {
            // A GPU test on a software driver has to be small.
            let heads = if size * time > 16_384 { 1 } else { 1 + n % 5 };
            let batch = if size * time > 4096 { 1 } else { 1 + n % 3 };
            let keys = if n % 4 == 3 {
                Keys::Repeated
            } else {
                Keys::Random
            };
            let dims = [batch, time, heads, size];
            let mut case = Case::random(dims, n as u64, decays[n % 3], rates[n / 2 % 3], keys);
            if n % 2 == 0 {
                case = case.without_state();
            }
            compare(&public, &case, "custom");
            n += 1;
        }
    }
}

/// Cases drawn at random.
#[test]
fn custom_operation_agrees_on_random_cases() {
    let mut rng = StdRng::seed_from_u64(2024);
    for seed in 0..24 {
        let dims = [
            rng.random_range(1..4),
            rng.random_range(1..150),
            rng.random_range(1..6),
            16 * rng.random_range(1..5),
        ];
        let decay = [Decay::Mixed, Decay::Strongest, Decay::Slowest][rng.random_range(0..3)];
        let keys = if rng.random() {
            Keys::Random
        } else {
            Keys::Repeated
        };
        let rate = Rate::Always(rng.random());
        let case = Case::random(dims, seed, decay, rate, keys);
        compare(&public, &case, "custom");
    }
}

#[test]
fn custom_operation_in_half_precision() {
    for dtype in [DType::BF16, DType::F16] {
        if !Device::default().supports_dtype(dtype) {
            eprintln!("skipped: the device has no {dtype:?}");
            continue;
        }
        for dims in [[2, 40, 2, 32], [1, 17, 3, 16], [1, 33, 1, 64]] {
            let mut case = Case::random(dims, 8, Decay::Mixed, Rate::Random, Keys::Random);
            // The values that the half-precision tensors hold, so that only the arithmetic is compared.
            let rounded = case.tensors(dtype, &Device::default()).map(values);
            case.values = rounded;
            let round = |d: Vec<f64>| {
                let data = TensorData::new(d.clone(), [d.len(), 1, 1, 1]);
                values(Tensor::from_data(data, (&Device::default(), dtype)))
            };
            let [dy, d_state, dz] = case.output_gradients();
            let weights = [round(dy), d_state, round(dz)];
            let forms: [(&str, Recurrence); 3] = [
                ("traced", &public),
                ("untraced", &untraced),
                ("untraced, a and b in f32", &wide_keys),
            ];
            for case in SIDES.map(|side| case.on(side)) {
                let expected = scalar::run(&case, &weights);
                for (form, operator) in forms {
                    let found = run(operator, &case, dtype);
                    let what = format!("{form} {dtype:?} {dims:?} {:?} side", case.side);
                    // A gradient is rounded in both calls and in their sum: bf16 keeps it to 2⁻⁹ each time.
                    assert_close(&found, &expected, (5e-3, 6e-3), &what);
                }
            }
        }
    }
}

/// The gradients are the sum of what each output says, whichever of them the loss looks at.
#[test]
fn custom_operation_any_output_alone() {
    let case = Case::random([2, 21, 2, 16], 4, Decay::Mixed, Rate::Random, Keys::Random);
    let weights = case.output_gradients();
    let device = Device::default().autodiff();
    let read = [case.on(Side::Value), case.on(Side::Key)];
    for (used, case) in [(0, &case), (1, &case), (2, &read[0]), (2, &read[1])] {
        let mut only = weights.clone();
        for (i, weights) in only.iter_mut().enumerate() {
            if i != used {
                weights.fill(0.0);
            }
        }
        let expected = scalar::run(case, &only);
        let inputs = case.tensors(DType::F32, &device).map(Tensor::require_grad);
        let output = call(&public, inputs.clone(), case.side)[used].clone();
        let d = TensorData::new(weights[used].clone(), output.dims());
        let grads = (output * Tensor::from_data(d, (&device, DType::F32)))
            .sum()
            .backward();
        for (i, name) in NAMES.iter().enumerate() {
            let found = inputs[i]
                .grad(&grads)
                .map_or(vec![0.0; case.values[i].len()], values);
            let error = relative_error(&found, &expected[3 + i].1);
            assert!(error < 1e-4, "output {used} alone, d{name}: {error:e}");
        }
    }
}

/// Where the reference runs: a software GPU driver would compile kernels for minutes.
fn slow_device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(not(feature = "flex"))]
    Device::default()
}

/// As in Meta-State, where the query is made of y; and the states may be read more than once, on both sides.
#[test]
fn custom_operation_reads_with_queries_from_y() {
    let case = Case::random([2, 33, 2, 16], 6, Decay::Mixed, Rate::Random, Keys::Random);
    let weights = case.output_gradients();
    type Loss<'a> = &'a dyn Fn(Wkv7Input, Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;
    let gradients = |device: Device, operator: Loss| {
        let device = device.autodiff();
        let inputs = case.tensors(DType::F32, &device).map(Tensor::require_grad);
        let [r, log_w, k, v, a, b, s0, x] = inputs.clone();
        let weight = TensorData::new(weights[2].clone(), case.shape(7));
        let weight = Tensor::from_data(weight, (&device, DType::F32));
        let out = operator(input([r, log_w, k, v, a, b]), s0, x, weight);
        let grads = out.sum().backward();
        inputs.map(|x| values(x.grad(&grads).unwrap()))
    };
    let found = gradients(Device::default(), &|input, s0, x, weight| {
        let (y, _, trace) = wkv7_traced(input, s0);
        let z = read_states(y * x.clone(), &trace, Side::Value);
        let again = read_states(z.clone() + x, &trace, Side::Key);
        (z * weight.clone()) + again * weight
    });
    let expected = gradients(slow_device(), &|input, s0, x, weight| {
        let (y, _, states) = reference::wkv7_traced(input, s0);
        let z = reference::read_states(y * x.clone(), &states, Side::Value);
        let again = reference::read_states(z.clone() + x, &states, Side::Key);
        (z * weight.clone()) + again * weight
    });
    for ((name, found), expected) in NAMES.iter().zip(found).zip(expected) {
        let error = relative_error(&found, &expected);
        assert!(error < 1e-4, "d{name}: {error:e}");
    }
}

/// Constants get no gradient, and nothing breaks.
#[test]
fn custom_operation_with_constants() {
    let case = Case::random([1, 20, 2, 16], 6, Decay::Mixed, Rate::Random, Keys::Random);
    let device = Device::default().autodiff();
    for case in SIDES.map(|side| case.on(side)) {
        let expected = scalar::run(&case, &case.output_gradients().map(|d| vec![1.0; d.len()]));
        for tracked in [0, 3, 6, 7] {
            let mut inputs = case.tensors(DType::F32, &device);
            inputs[tracked] = inputs[tracked].clone().require_grad();
            let [y, state, z] = call(&public, inputs.clone(), case.side);
            let grads = (y.sum() + state.sum() + z.sum()).backward();
            let found = values(inputs[tracked].grad(&grads).unwrap());
            let error = relative_error(&found, &expected[3 + tracked].1);
            let name = NAMES[tracked];
            assert!(error < 1e-4, "d{name}, {:?} side: {error:e}", case.side);
        }
    }
}
