//! The layer's measurements of itself while it runs: whether ms tells tokens apart, and whether its values stay in range.
//!
//! z is never negative, so ms is a sum of non-negative matrices and has one dominant direction. The read of ms may then be almost
//! the same at every token, which the effective rank shows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use nalgebra::DMatrix;

/// Names of the measurements, in their order.
pub const MEASUREMENTS: [&str; 4] = [
    "effective rank",
    "cosine of neighbours",
    "largest u",
    "zeros in z",
];

/// A switch, and the measurements of the last forward pass; clones of a layer share both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diagnostics(Arc<Mutex<Slot>>);

#[derive(Debug, Default)]
struct Slot {
    on: bool,
    zeros: f64,
    last: Vec<f64>,
}

impl Diagnostics {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn switch(&self, on: bool) {
        *self.slot() = Slot {
            on,
            ..Slot::default()
        };
    }

    pub fn last(&self) -> Vec<f64> {
        self.slot().last.clone()
    }

    /// Notes the share of zeros in `z` after its ReLU.
    pub fn encoded(&self, z: &Tensor<4>) {
        let mut slot = self.slot();
        if slot.on {
            let zeros = plain(z).equal_elem(0.0).float().mean();
            slot.zeros = f64::from(zeros.into_scalar::<f32>());
        }
    }

    /// Measures the read of ms, `u`, and its layer norm, both `[batch, time, heads, n]`.
    pub fn read(&self, u: &Tensor<4>, normal: &Tensor<4>) {
        let mut slot = self.slot();
        if slot.on {
            let largest = f64::from(plain(u).abs().max().into_scalar::<f32>());
            let normal = plain(normal);
            slot.last = vec![
                effective_rank(normal.clone()),
                cosine_of_neighbours(normal),
                largest,
                slot.zeros,
            ];
        }
    }
}

fn plain(x: &Tensor<4>) -> Tensor<4> {
    if x.is_autodiff() {
        x.clone().inner()
    } else {
        x.clone()
    }
}

/// The number of directions that rows `[batch, time, heads, n]` use, mean over the heads: e to the entropy of the
/// eigenvalues of `Σ yᵀ y`, normalised to sum 1. From 1 (all on a line) to n.
pub fn effective_rank(rows: Tensor<4>) -> f64 {
    let [batch, time, heads, size] = rows.dims();
    let rows = rows.reshape([batch * time, heads, size]).swap_dims(0, 1);
    let gram = rows.clone().transpose().matmul(rows); // [heads, n, n]
    let values: Vec<f64> = gram.into_data().iter::<f64>().collect();
    if values.iter().any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    let rank = |gram: &[f64]| {
        let eigenvalues = DMatrix::from_row_slice(size, size, gram).symmetric_eigenvalues();
        let total: f64 = eigenvalues.iter().map(|value| value.max(0.0)).sum();
        let shares = eigenvalues
            .iter()
            .map(|value| value.max(0.0) / total.max(f64::MIN_POSITIVE));
        let entropy: f64 = shares.filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
        entropy.exp()
    };
    values.chunks(size * size).map(rank).sum::<f64>() / heads as f64
}

/// Mean cosine between the rows of neighbouring tokens in `[batch, time, heads, n]`; 1 for a single token.
pub fn cosine_of_neighbours(rows: Tensor<4>) -> f64 {
    let time = rows.dims()[1];
    if time == 1 {
        return 1.0;
    }
    let earlier = rows.clone().narrow(1, 0, time - 1);
    let later = rows.narrow(1, 1, time - 1);
    let length = |x: &Tensor<4>| x.clone().square().sum_dim(3).sqrt();
    let lengths = (length(&earlier) * length(&later)).clamp_min(1e-12);
    let cosine = (earlier * later).sum_dim(3) / lengths;
    f64::from(cosine.mean().into_scalar::<f32>())
}
