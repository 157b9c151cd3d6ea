//! The operator on the default device, or the one that BURN_DEVICE names: forward, forward and backward, and with a read of
//! the states; the custom operation against the chunked tensor form.
//!
//! ```text
//! cargo bench -p rwkv7-core --bench operator
//! ```

use std::fmt;

use burn::tensor::{Device, Distribution, Tensor};
use divan::{Bencher, counter::ItemsCount};
use rwkv7_core::{
    device::{CompilationLog, keep_kernels},
    ops::{Side, Wkv7Input, chunked, read_states, wkv7, wkv7_traced},
};

fn main() {
    keep_kernels(CompilationLog::Off);
    divan::main();
}

/// Batch, time, heads, head size.
#[derive(Clone, Copy)]
struct Sizes([usize; 4]);

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [batch, time, heads, size] = self.0;
        write!(f, "B{batch} T{time} H{heads} N{size}")
    }
}

/// The same number of tokens in short and in long sequences, a small model's, and one token of a 0.1B model.
const SIZES: [Sizes; 4] = [
    Sizes([8, 512, 8, 64]),
    Sizes([1, 4096, 8, 64]),
    Sizes([12, 64, 4, 32]),
    Sizes([1, 1, 12, 64]),
];

const LONG: [Sizes; 2] = [Sizes([16, 512, 8, 64]), Sizes([1, 8192, 8, 64])];

fn draw(shape: [usize; 4], low: f64, high: f64, device: &Device) -> Tensor<4> {
    Tensor::<4>::random(shape, Distribution::Uniform(low, high), device)
}

fn input(sizes: Sizes, device: &Device) -> (Wkv7Input, Tensor<4>) {
    let [batch, _, heads, size] = sizes.0;
    let draw = |low, high| draw(sizes.0, low, high, device);
    let input = Wkv7Input {
        r: draw(-1.0, 1.0),
        log_w: draw(-0.6, 0.0),
        k: draw(-1.0, 1.0),
        v: draw(-1.0, 1.0),
        a: draw(-0.1, 0.1),
        b: draw(-0.1, 0.1),
    };
    (input, Tensor::zeros([batch, heads, size, size], device))
}

/// Times `run`, waiting for the device.
fn time(
    bencher: Bencher,
    sizes: Sizes,
    device: &Device,
    run: impl Fn(Wkv7Input, Tensor<4>) + Sync,
) {
    let [batch, time, ..] = sizes.0;
    let (input, s0) = input(sizes, device);
    let input = if device.is_autodiff() {
        input.map(Tensor::require_grad)
    } else {
        input
    };
    bencher
        .counter(ItemsCount::new(batch * time))
        .bench_local(|| {
            run(input.clone(), s0.clone());
            if let Err(error) = device.sync() {
                panic!("{error:?}");
            }
        });
}

#[divan::bench(args = SIZES)]
fn forward(bencher: Bencher, sizes: Sizes) {
    time(bencher, sizes, &Device::default(), |input, s0| {
        divan::black_box(wkv7(input, s0));
    });
}

#[divan::bench(args = SIZES[..3].iter().copied().chain(LONG), sample_count = 10)]
fn forward_and_backward(bencher: Bencher, sizes: Sizes) {
    time(
        bencher,
        sizes,
        &Device::default().autodiff(),
        |input, s0| {
            divan::black_box(wkv7(input, s0).0.sum().backward());
        },
    );
}

#[divan::bench(args = SIZES[..3].iter().copied(), sample_count = 10)]
fn with_a_read(bencher: Bencher, sizes: Sizes) {
    read(bencher, sizes, Side::Value);
}

#[divan::bench(args = SIZES[..3].iter().copied(), sample_count = 10)]
fn with_a_read_along_the_key_side(bencher: Bencher, sizes: Sizes) {
    read(bencher, sizes, Side::Key);
}

fn read(bencher: Bencher, sizes: Sizes, side: Side) {
    let device = Device::default().autodiff();
    let x = draw(sizes.0, -1.0, 1.0, &device).require_grad();
    time(bencher, sizes, &device, |input, s0| {
        let (y, _, trace) = wkv7_traced(input, s0);
        divan::black_box((read_states(x.clone(), &trace, side).sum() + y.sum()).backward());
    });
}

#[divan::bench(args = [Sizes([8, 512, 8, 64]), Sizes([12, 64, 4, 32])], consts = [16, 64], sample_count = 3)]
fn chunks_forward_and_backward<const CHUNK: usize>(bencher: Bencher, sizes: Sizes) {
    time(
        bencher,
        sizes,
        &Device::default().autodiff(),
        |input, s0| {
            divan::black_box(chunked::wkv7(input, s0, CHUNK).0.sum().backward());
        },
    );
}
