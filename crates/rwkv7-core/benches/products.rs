//! Products with weight matrices, in f32 and in bf16, on the default device or the one that BURN_DEVICE names.
//!
//! ```text
//! cargo bench -p rwkv7-core --bench products
//! ```

use std::fmt;

use burn::tensor::{Device, Distribution, Tensor};
use divan::{Bencher, counter::ItemsCount};
use rwkv7_core::Products;

fn main() {
    divan::main();
}

/// Rows, depth, columns.
#[derive(Clone, Copy)]
struct Sizes([usize; 3]);

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, depth, columns] = self.0;
        write!(f, "{rows} x {depth} x {columns}")
    }
}

/// Of an L6 C512 model with 4,096 tokens, and of a small one: projections, feed-forward, low-rank factors.
const SIZES: [Sizes; 6] = [
    Sizes([4096, 512, 512]),
    Sizes([4096, 512, 2048]),
    Sizes([4096, 2048, 512]),
    Sizes([4096, 512, 64]),
    Sizes([4096, 64, 512]),
    Sizes([768, 128, 128]),
];

const PRODUCTS: [Products; 2] = [Products::F32, Products::Bf16];

/// Counted in floating-point operations.
fn time(bencher: Bencher, sizes: Sizes, products: Products, backward: bool) {
    let device = if backward {
        Device::default().autodiff()
    } else {
        Device::default()
    };
    let [rows, depth, columns] = sizes.0;
    let draw = |shape| Tensor::<2>::random(shape, Distribution::Default, &device);
    let (x, weight) = (draw([rows, depth]), draw([depth, columns]));
    let passes = if backward { 3 } else { 1 };
    bencher
        .counter(ItemsCount::new(2 * passes * rows * depth * columns))
        .bench_local(|| {
            if backward {
                let (x, weight) = (x.clone().require_grad(), weight.clone().require_grad());
                let _gradients = products.product(x, weight).sum().backward();
            } else {
                let _y = products.product(x.clone(), weight.clone());
            }
            device.sync().expect("the device runs");
        });
}

#[divan::bench(args = SIZES, consts = [0, 1])]
fn forward<const P: usize>(bencher: Bencher, sizes: Sizes) {
    time(bencher, sizes, PRODUCTS[P], false);
}

#[divan::bench(args = SIZES, consts = [0, 1])]
fn forward_and_backward<const P: usize>(bencher: Bencher, sizes: Sizes) {
    time(bencher, sizes, PRODUCTS[P], true);
}
