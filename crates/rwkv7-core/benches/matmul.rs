//! Products with weight matrices, in f32 and in bf16, on the default device or the one that BURN_DEVICE names.
//!
//! ```text
//! cargo bench -p rwkv7-core --bench matmul
//! ```

#![allow(clippy::print_stderr)]

use burn::tensor::{Device, Distribution, Tensor};
use divan::{Bencher, counter::ItemsCount};
use rwkv7_core::{
    MatmulPrecision,
    device::{CompilationLog, keep_kernels},
};

fn main() {
    keep_kernels(CompilationLog::Off);
    divan::main();
}

/// Rows, depth, columns: of an L6 C512 model with 4,096 tokens, and of a small one; projections, feed-forward, low-rank factors.
const SIZES: [[usize; 3]; 6] = [
    [4096, 512, 512],
    [4096, 512, 2048],
    [4096, 2048, 512],
    [4096, 512, 64],
    [4096, 64, 512],
    [768, 128, 128],
];

type Case = (MatmulPrecision, [usize; 3]);

/// All that the device can do.
fn cases() -> Vec<Case> {
    [MatmulPrecision::F32, MatmulPrecision::Bf16]
        .into_iter()
        .filter(|precision| match precision.check(&Device::default()) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("left out: {error}");
                false
            }
        })
        .flat_map(|precision| SIZES.map(|sizes| (precision, sizes)))
        .collect()
}

/// Counted in floating-point operations.
#[divan::bench(args = cases())]
fn forward(bencher: Bencher, (precision, [rows, depth, columns]): Case) {
    let device = Device::default();
    let draw = |shape| Tensor::<2>::random(shape, Distribution::Default, &device);
    let (x, weight) = (draw([rows, depth]), draw([depth, columns]));
    bencher
        .counter(ItemsCount::new(2 * rows * depth * columns))
        .bench_local(|| {
            let _y = precision.matmul(x.clone(), weight.clone());
            device.sync().expect("the device runs");
        });
}

/// With both gradients.
#[divan::bench(args = cases())]
fn forward_and_backward(bencher: Bencher, (precision, [rows, depth, columns]): Case) {
    let device = Device::default().autodiff();
    let draw = |shape| Tensor::<2>::random(shape, Distribution::Default, &device).require_grad();
    let (x, weight) = (draw([rows, depth]), draw([depth, columns]));
    bencher
        .counter(ItemsCount::new(3 * 2 * rows * depth * columns))
        .bench_local(|| {
            let _gradients = precision.matmul(x.clone(), weight.clone()).sum().backward();
            device.sync().expect("the device runs");
        });
}
