//! Times the chunked operator, forward and backward, for several chunk lengths on the default device:
//!
//! ```text
//! cargo run --release -p rwkv7-core --example chunk_length
//! ```

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use rwkv7_core::operator::{Wkv7Input, chunked, oracle};

/// Batch, time, heads, head size.
const SHAPES: [[usize; 4]; 3] = [[12, 64, 4, 32], [8, 512, 8, 64], [1, 2048, 12, 64]];

fn main() {
    let device = Device::default().autodiff();
    for shape in SHAPES {
        let [batch, time, heads, size] = shape;
        let tokens = (batch * time) as f64;
        let mut line = format!("{shape:?}:");
        for chunk in [8, 16, 32, 64] {
            let seconds = best_of(3, || run(shape, &device, Some(chunk)));
            line += &format!("  chunk {chunk} {:.2} us/token", 1e6 * seconds / tokens);
        }
        if time <= 64 {
            let seconds = best_of(3, || run(shape, &device, None));
            line += &format!("  oracle {:.2} us/token", 1e6 * seconds / tokens);
        }
        let state = batch * heads * size * size;
        eprintln!("{line}  (state of {state} values)");
    }
}

fn best_of(times: usize, mut run: impl FnMut()) -> f64 {
    (0..times)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn run(shape: [usize; 4], device: &Device, chunk: Option<usize>) {
    let [batch, _, heads, size] = shape;
    let draw = |low: f64, high: f64| {
        Tensor::<4>::random(shape, Distribution::Uniform(low, high), device).require_grad()
    };
    let input = Wkv7Input {
        r: draw(-1.0, 1.0),
        log_w: draw(-0.6, 0.0),
        k: draw(-1.0, 1.0),
        v: draw(-1.0, 1.0),
        a: draw(-0.1, 0.1),
        b: draw(-0.1, 0.1),
    };
    let state = Tensor::zeros([batch, heads, size, size], device);
    let (y, _) = match chunk {
        Some(chunk) => chunked::wkv7(input, state, chunk),
        None => oracle::wkv7(input, state),
    };
    let grads = y.sum().backward();
    drop(grads);
    if let Err(error) = device.sync() {
        eprintln!("{error:?}");
    }
}
