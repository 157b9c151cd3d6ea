//! A training example as datasets have it, and a batch of them on a device.

use burn::{
    data::dataloader::batcher::Batcher,
    tensor::{Device, Int, Tensor, TensorData},
};

/// An item of the datasets: the ids of one sequence and the id after each.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Input ids.
    pub inputs: Vec<i32>,
    /// The id after each input.
    pub targets: Vec<i32>,
    /// 1 for targets that count, 0 for others; `None` counts all.
    pub mask: Option<Vec<f32>>,
}

impl Sequence {
    /// The sequence of ids of which all but the last are inputs and all but the first are targets.
    ///
    /// # Panics
    ///
    /// If there are no ids.
    pub fn new(ids: &[i32]) -> Self {
        Self {
            inputs: ids[..ids.len() - 1].to_vec(),
            targets: ids[1..].to_vec(),
            mask: None,
        }
    }
}

/// A batch on a device.
#[derive(Clone, Debug)]
pub struct LmBatch {
    /// Input ids, `[batch, time]`.
    pub inputs: Tensor<2, Int>,
    /// The id after each input, `[batch, time]`.
    pub targets: Tensor<2, Int>,
    /// 1 for targets that count, `[batch, time]`; `None` counts all.
    pub mask: Option<Tensor<2>>,
    /// Number of targets that count.
    pub counted: usize,
}

/// Makes a batch of sequences of equal length, a row each.
///
/// # Panics
///
/// If the sequences differ in length.
#[derive(Clone, Copy, Debug, Default)]
pub struct LmBatcher;

impl Batcher<Sequence, LmBatch> for LmBatcher {
    fn batch(&self, items: Vec<Sequence>, device: &Device) -> LmBatch {
        let time = items.first().map_or(0, |item| item.inputs.len());
        let shape = [items.len(), time];
        let masked = items.iter().any(|item| item.mask.is_some());
        let (mut inputs, mut targets, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            assert!(
                item.inputs.len() == time && item.targets.len() == time,
                "the sequences of a batch have equal lengths, found {} inputs and {} targets beside {time}",
                item.inputs.len(),
                item.targets.len()
            );
            inputs.extend(item.inputs);
            targets.extend(item.targets);
            mask.extend(item.mask.unwrap_or_else(|| vec![1.0; time]));
        }
        let counted = mask.iter().filter(|&&counts| counts > 0.0).count();
        let ids = |ids: Vec<i32>| Tensor::from_data(TensorData::new(ids, shape), device);
        LmBatch {
            inputs: ids(inputs),
            targets: ids(targets),
            mask: masked.then(|| Tensor::from_data(TensorData::new(mask, shape), device)),
            counted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_without_a_mask_counts_whole_beside_one_with_a_mask() {
        let whole = Sequence::new(&[1, 2, 3]);
        let half = Sequence {
            mask: Some(vec![0.0, 1.0]),
            ..whole.clone()
        };
        let device = Device::flex();
        let plain = LmBatcher.batch(vec![whole.clone(), whole.clone()], &device);
        assert!(plain.mask.is_none() && plain.counted == 4);
        let mixed = LmBatcher.batch(vec![whole, half], &device);
        let mask = mixed
            .mask
            .map(|mask| mask.into_data().iter::<f32>().collect());
        assert_eq!(mask, Some(vec![1.0, 1.0, 0.0, 1.0]));
        assert_eq!(mixed.counted, 3);
    }
}
