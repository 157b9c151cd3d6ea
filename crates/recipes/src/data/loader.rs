//! Batches for burn-train, as a pure function of the step: training can stop and go on anywhere without saving a
//! generator's state.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use burn::{
    data::{
        dataloader::{DataLoader, DataLoaderIterator, Progress},
        dataset::DatasetError,
    },
    tensor::{Device, Int, Tensor, TensorData},
};

/// A batch in memory, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Input ids.
    pub inputs: Vec<i32>,
    /// The id after each input.
    pub targets: Vec<i32>,
    /// 1 for targets that count, 0 for others; `None` counts all.
    pub mask: Option<Vec<f32>>,
}

/// A batch on a device.
#[derive(Clone, Debug)]
pub struct LmBatch {
    /// Input ids, `[batch, time]`.
    pub inputs: Tensor<2, Int>,
    /// The id after each input, `[batch, time]`.
    pub targets: Tensor<2, Int>,
    /// 1 for targets that count, `[batch, time]`.
    pub mask: Option<Tensor<2>>,
    /// Number of targets that count.
    pub counted: usize,
}

impl Batch {
    /// The batch on a device.
    pub fn to_device(&self, device: &Device) -> LmBatch {
        let shape = [self.rows, self.inputs.len() / self.rows];
        let ids = |ids: &Vec<i32>| Tensor::from_data(TensorData::new(ids.clone(), shape), device);
        let mask =
            |mask: &Vec<f32>| Tensor::from_data(TensorData::new(mask.clone(), shape), device);
        LmBatch {
            inputs: ids(&self.inputs),
            targets: ids(&self.targets),
            mask: self.mask.as_ref().map(mask),
            counted: match &self.mask {
                None => self.inputs.len(),
                Some(mask) => mask.iter().filter(|&&m| m > 0.0).count(),
            },
        }
    }
}

/// Makes the batch of any step.
pub trait BatchSource: Send + Sync {
    /// The batch of this step, always the same one.
    fn batch(&self, step: usize) -> Batch;
}

/// Hands out the batches of one epoch after another: epoch e (from 0) of n steps covers the steps e n … (e+1) n, the
/// last epoch what is left.
pub struct Loader {
    source: Arc<dyn BatchSource>,
    steps: usize,
    total: usize,
    epoch: Arc<AtomicUsize>,
    advance: usize,
    device: Device,
}

impl Loader {
    /// Training batches from `epoch` on (from 0), `steps` an epoch and `total` in all.
    pub fn training(
        source: Arc<dyn BatchSource>,
        (steps, total): (usize, usize),
        epoch: usize,
        device: &Device,
    ) -> Self {
        Self {
            source,
            steps,
            total,
            epoch: Arc::new(AtomicUsize::new(epoch)),
            advance: 1,
            device: device.clone(),
        }
    }

    /// The same `steps` validation batches every time.
    pub fn validation(source: Arc<dyn BatchSource>, steps: usize, device: &Device) -> Self {
        Self {
            advance: 0,
            ..Self::training(source, (steps, steps), 0, device)
        }
    }
}

impl DataLoader<LmBatch> for Loader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<LmBatch> + 'a> {
        let epoch = self.epoch.fetch_add(self.advance, Ordering::Relaxed);
        let first = epoch * self.steps;
        Box::new(Steps {
            loader: self,
            first,
            count: self.steps.min(self.total.saturating_sub(first)),
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.steps
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<LmBatch>> {
        Arc::new(Self {
            source: self.source.clone(),
            epoch: self.epoch.clone(),
            device: device.clone(),
            ..*self
        })
    }

    /// Training runs on one device and is never sliced: the whole is a valid answer for the only slice there is.
    fn slice(&self, _start: usize, _end: usize) -> Arc<dyn DataLoader<LmBatch>> {
        self.to_device(&self.device)
    }
}

struct Steps<'a> {
    loader: &'a Loader,
    first: usize,
    count: usize,
    done: usize,
}

impl Iterator for Steps<'_> {
    type Item = Result<LmBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done == self.count {
            return None;
        }
        let batch = self.loader.source.batch(self.first + self.done);
        self.done += 1;
        Some(Ok(batch.to_device(&self.loader.device)))
    }
}

impl DataLoaderIterator<LmBatch> for Steps<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.count, Some("steps".into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Numbered;

    impl BatchSource for Numbered {
        fn batch(&self, step: usize) -> Batch {
            Batch {
                rows: 1,
                inputs: vec![step as i32],
                targets: vec![0],
                mask: None,
            }
        }
    }

    fn steps(loader: &Loader) -> Vec<i32> {
        let step = |batch: Result<LmBatch, _>| batch.unwrap().inputs.into_scalar::<i32>();
        loader.iter().map(step).collect()
    }

    #[test]
    fn epochs_follow_each_other_and_the_last_one_ends_with_the_last_step() {
        let device = Device::flex();
        let training = Loader::training(Arc::new(Numbered), (3, 8), 1, &device);
        assert_eq!(steps(&training), [3, 4, 5]);
        assert_eq!(steps(&training), [6, 7]);
        let validation = Loader::validation(Arc::new(Numbered), 2, &device);
        assert_eq!([steps(&validation), steps(&validation)], [[0, 1], [0, 1]]);
    }
}
