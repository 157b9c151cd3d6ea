//! Rows of different lengths, and the token that token shift carries from one piece of a sequence to the next.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::ops;

/// Number of real tokens in each row of a batch. The positions after them are padding, which changes no result.
#[derive(Clone, Debug)]
pub struct Lengths {
    ragged: Option<Ragged>,
}

#[derive(Clone, Debug)]
struct Ragged {
    /// True at padding, `[batch, time, 1]`.
    padding: Tensor<3, Bool>,
    /// Number of real tokens, `[batch, 1, 1]`.
    lengths: Tensor<3, Int>,
}

impl Lengths {
    /// Every position of every row.
    pub fn full() -> Self {
        Self { ragged: None }
    }

    /// Rows with these numbers of real tokens, padded to `time`.
    ///
    /// # Panics
    ///
    /// If a length exceeds `time`.
    pub fn new(lengths: &[usize], time: usize, device: &Device) -> Self {
        if let Some(long) = lengths.iter().find(|&&l| l > time) {
            panic!("a row of {long} tokens in a batch padded to {time}");
        }
        if lengths.iter().all(|&l| l == time) {
            return Self::full();
        }
        let batch = lengths.len();
        let padding: Vec<bool> = lengths
            .iter()
            .flat_map(|&l| (0..time).map(move |t| t >= l))
            .collect();
        let lengths: Vec<i32> = lengths.iter().map(|&l| l as i32).collect();
        Self {
            ragged: Some(Ragged {
                padding: Tensor::from_data(TensorData::new(padding, [batch, time, 1]), device),
                lengths: Tensor::from_data(TensorData::new(lengths, [batch, 1, 1]), device),
            }),
        }
    }

    /// Sets padding to zero in `x [batch, time, width]`.
    pub fn clear_padding(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.ragged {
            None => x,
            Some(Ragged { padding, .. }) => {
                let dims = x.dims();
                x.mask_fill(padding.clone().expand(dims), 0.0)
            }
        }
    }
}

/// `h + (previous - h) ⊙ μ` for `h [batch, time, width]` and μ `[1, 1, width]`, with `last [batch, width]` the token before
/// the first one.
pub fn token_shift(h: Tensor<3>, last: Tensor<2>, mu: Tensor<3>) -> Tensor<3> {
    ops::token_shift(h, last, mu)
}

/// The last real token of each row of `h [batch, time, width]`, `[batch, width]`; of an empty row `last`, the token before
/// the first one.
pub fn last_token(h: &Tensor<3>, last: &Tensor<2>, lengths: &Lengths) -> Tensor<2> {
    let [batch, time, width] = h.dims();
    let token = match &lengths.ragged {
        None => h.clone().narrow(1, time - 1, 1),
        Some(Ragged { lengths, .. }) => {
            let last = last.clone().cast(h.dtype()).unsqueeze_dim::<3>(1);
            let all = Tensor::cat(vec![last, h.clone()], 1);
            all.gather(1, lengths.clone().expand([batch, 1, width]))
        }
    };
    token.reshape([batch, width])
}
