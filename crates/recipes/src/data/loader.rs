//! Batches for burn-train, as a pure function of the step: training can stop and go on anywhere without saving a
//! generator's state.

use std::{
    panic::resume_unwind,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
};

use burn::{
    data::{
        dataloader::{DataLoader, DataLoaderIterator, Progress, batcher::Batcher},
        dataset::{Dataset, DatasetError},
    },
    tensor::Device,
};

use super::batch::{LmBatch, LmBatcher, Sequence};

/// Batches that wait for the device while it computes.
const QUEUE: usize = 4;

/// Hands out the batches of a dataset: batch b holds the items b n … (b+1) n - 1 for n rows a batch.
///
/// Each call of `iter` gives the next epoch: epoch e (from 0) of n batches covers the batches e n … (e+1) n - 1, and the last
/// epoch ends with the dataset. A thread reads the items ahead; the calling thread brings them to the device.
///
/// `slice` gives one worker of several its share of every epoch: worker r of w gets the batches r, r + w, r + 2 w … of the
/// epoch, so that all workers together take the same steps as one.
pub struct Loader {
    dataset: Arc<dyn Dataset<Sequence>>,
    rows: usize,
    /// Batches an epoch, of all workers together.
    epoch_batches: usize,
    epoch: AtomicUsize,
    /// Epochs from one `iter` to the next.
    advance: usize,
    worker: Worker,
    /// Into how many slices this loader is cut, once it is.
    slices: Arc<OnceLock<usize>>,
    device: Device,
}

/// Worker `rank` of `count`.
#[derive(Clone, Copy)]
struct Worker {
    rank: usize,
    count: usize,
}

impl Loader {
    /// Batches of `rows` items from `epoch` on (from 0), `epoch_batches` an epoch, until the end of the dataset.
    pub fn training(
        dataset: Arc<dyn Dataset<Sequence>>,
        rows: usize,
        epoch_batches: usize,
        epoch: usize,
        device: &Device,
    ) -> Self {
        Self {
            dataset,
            rows,
            epoch_batches,
            epoch: AtomicUsize::new(epoch),
            advance: 1,
            worker: Worker { rank: 0, count: 1 },
            slices: Arc::default(),
            device: device.clone(),
        }
    }

    /// The whole dataset every time, in batches of `rows` items; the last batch may be smaller.
    pub fn validation(dataset: Arc<dyn Dataset<Sequence>>, rows: usize, device: &Device) -> Self {
        let batches = dataset.len().div_ceil(rows);
        Self {
            advance: 0,
            ..Self::training(dataset, rows, batches, 0, device)
        }
    }

    /// The same loader for a worker; its epochs count on by themselves.
    fn with_worker(&self, worker: Worker) -> Self {
        Self {
            dataset: self.dataset.clone(),
            epoch: AtomicUsize::new(self.epoch.load(Ordering::Relaxed)),
            slices: Arc::default(),
            device: self.device.clone(),
            worker,
            ..*self
        }
    }

    /// Batches of the whole dataset.
    fn batches(&self) -> usize {
        self.dataset.len().div_ceil(self.rows)
    }
}

impl DataLoader<LmBatch> for Loader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<LmBatch> + 'a> {
        let epoch = self.epoch.fetch_add(self.advance, Ordering::Relaxed);
        let first = epoch * self.epoch_batches;
        let end = (first + self.epoch_batches).min(self.batches());
        let batches: Vec<usize> = (first + self.worker.rank..end)
            .step_by(self.worker.count)
            .collect();
        Box::new(Batches::new(self, batches))
    }

    /// Batches an epoch of this worker.
    fn num_items(&self) -> usize {
        self.epoch_batches / self.worker.count
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<LmBatch>> {
        Arc::new(Self {
            device: device.clone(),
            slices: self.slices.clone(),
            ..self.with_worker(self.worker)
        })
    }

    /// The share of one worker of several: the `start / (end - start)`-th of `num_items / (end - start)`, as burn-train asks
    /// for it.
    ///
    /// # Panics
    ///
    /// If the shares are not equal in every epoch: a worker with fewer steps would leave the others waiting.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<LmBatch>> {
        let (items, share) = (self.num_items(), end.saturating_sub(start));
        let slices = items.checked_div(share).unwrap_or(0);
        let workers = self.worker.count * slices;
        let last_epoch = self.batches() % self.epoch_batches;
        let equal = slices > 0
            && [items, start].iter().all(|n| n.is_multiple_of(share))
            && [self.epoch_batches, last_epoch]
                .iter()
                .all(|n| n.is_multiple_of(workers))
            && *self.slices.get_or_init(|| slices) == slices;
        assert!(
            equal,
            "the devices need equal shares of every epoch, and batches {start} to {end} of {items} (of {last_epoch} in the last \
             epoch) are none; make the steps of an epoch and of the run multiples of the number of devices"
        );
        Arc::new(self.with_worker(Worker {
            rank: self.worker.rank + self.worker.count * (start / share),
            count: workers,
        }))
    }
}

/// The batches of an epoch, from the thread that reads their items.
struct Batches {
    queue: Option<Receiver<Result<Vec<Sequence>, DatasetError>>>,
    reader: Option<JoinHandle<()>>,
    device: Device,
    done: usize,
    count: usize,
}

impl Batches {
    fn new(loader: &Loader, batches: Vec<usize>) -> Self {
        let (dataset, rows) = (loader.dataset.clone(), loader.rows);
        let count = batches.len();
        let (sender, queue) = sync_channel(QUEUE);
        let reader = std::thread::spawn(move || {
            for batch in batches {
                let items = batch * rows..((batch + 1) * rows).min(dataset.len());
                let items = dataset.get_many(items.collect());
                let failed = items.is_err();
                if sender.send(items).is_err() || failed {
                    return;
                }
            }
        });
        Self {
            queue: Some(queue),
            reader: Some(reader),
            device: loader.device.clone(),
            done: 0,
            count,
        }
    }
}

impl Iterator for Batches {
    type Item = Result<LmBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(items) = self.queue.as_ref()?.recv() {
            self.done += 1;
            return Some(items.map(|items| LmBatcher.batch(items, &self.device)));
        }
        // The reader has ended: after the last batch, after an error, or by a panic, which goes on here.
        self.queue = None;
        match self.reader.take()?.join() {
            Ok(()) => None,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // Without a queue the reader ends at its next batch.
        self.queue = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl DataLoaderIterator<LmBatch> for Batches {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.count, Some("steps".into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::data::dataloader::split::split_dataloader;

    use super::*;

    /// Items that hold their index; the `bad` one fails, or panics if `panics`.
    struct Numbered {
        len: usize,
        bad: Option<usize>,
        panics: bool,
    }

    fn numbered(len: usize) -> Arc<Numbered> {
        Arc::new(Numbered {
            len,
            bad: None,
            panics: false,
        })
    }

    impl Dataset<Sequence> for Numbered {
        fn get(&self, index: usize) -> Result<Sequence, DatasetError> {
            assert!(!(self.panics && self.bad == Some(index)), "no item {index}");
            match self.bad == Some(index) {
                true => Err(DatasetError::new(std::io::Error::other("no item"))),
                false => Ok(Sequence::new(&[index as i32, 0])),
            }
        }

        fn len(&self) -> usize {
            self.len
        }
    }

    /// The first item of each batch of an epoch, up to an error.
    fn epoch(loader: &dyn DataLoader<LmBatch>) -> Vec<i32> {
        let first = |batch: LmBatch| batch.inputs.into_data().iter::<i32>().next().unwrap();
        loader.iter().map_while(|b| b.ok().map(first)).collect()
    }

    #[test]
    fn epochs_follow_each_other_and_the_last_one_ends_with_the_last_step() {
        let device = Device::flex();
        let training = Loader::training(numbered(16), 2, 3, 1, &device);
        assert_eq!(epoch(&training), [6, 8, 10]);
        assert_eq!(epoch(&training), [12, 14]);
        assert_eq!(epoch(&training), [0; 0]);
        let validation = Loader::validation(numbered(3), 2, &device);
        assert_eq!([epoch(&validation), epoch(&validation)], [[0, 2], [0, 2]]);
        let sizes: Vec<usize> = validation.iter().map(|b| b.unwrap().counted).collect();
        assert_eq!(sizes, [2, 1]);
    }

    /// Through the function by which burn-train shares a loader between devices, resumed after the first epoch.
    #[test]
    fn the_workers_batches_in_turn_are_those_of_a_single_worker() {
        let device = Device::flex();
        let whole = Loader::training(numbered(60), 1, 24, 1, &device);
        let expected = [epoch(&whole), epoch(&whole)];
        assert_eq!([expected[0].len(), expected[1].len()], [24, 12]);
        for count in [1, 2, 3, 4] {
            let whole = Arc::new(Loader::training(numbered(60), 1, 24, 1, &device));
            let workers = split_dataloader(whole, &vec![device.clone(); count]);
            for expected in &expected {
                // Each worker takes its epoch as a whole, one after the other.
                let shares: Vec<Vec<i32>> = workers.iter().map(|w| epoch(w.as_ref())).collect();
                let turns = 0..expected.len() / count;
                let found: Vec<i32> = turns
                    .flat_map(|turn| shares.iter().map(move |share| share[turn]))
                    .collect();
                assert_eq!(&found, expected, "{count} workers");
            }
            assert!(
                workers
                    .iter()
                    .all(|worker| worker.num_items() == 24 / count)
            );
        }
        // A slice of a slice: the second of three of the second of two.
        let whole = Loader::training(numbered(24), 1, 24, 0, &device);
        assert_eq!(
            epoch(whole.slice(12, 24).slice(4, 8).as_ref()),
            [3, 9, 15, 21]
        );
    }

    #[test]
    fn shares_that_are_not_equal_are_refused() {
        // 8 batches for 3 workers would look like a fourth and a half; 9 batches of the last epoch have no half.
        for (epoch_batches, batches, count) in [(8, 8, 3), (7, 7, 4), (2, 2, 3), (10, 19, 2)] {
            let loader = Loader::training(numbered(batches), 1, epoch_batches, 0, &Device::flex());
            let split = || split_dataloader(Arc::new(loader), &vec![Device::flex(); count]).len();
            let panic = catch_unwind(AssertUnwindSafe(split)).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains("equal shares"), "{message}");
        }
    }

    #[test]
    fn no_reader_is_left_when_an_epoch_is_dropped_early() {
        let dataset = numbered(100);
        let loader = Loader::training(dataset.clone(), 1, 100, 0, &Device::flex());
        let mut batches = loader.iter();
        batches.next().unwrap().unwrap();
        drop(batches);
        assert_eq!(
            Arc::strong_count(&dataset),
            2,
            "the test's and the loader's"
        );
    }

    #[test]
    fn errors_and_panics_of_the_dataset_come_through_in_their_place() {
        let failing = |panics| {
            let dataset = Numbered {
                len: 9,
                bad: Some(2),
                panics,
            };
            Loader::validation(Arc::new(dataset), 1, &Device::flex())
        };
        let loader = failing(false);
        let found: Vec<bool> = loader.iter().map(|batch| batch.is_ok()).collect();
        assert_eq!(found, [true, true, false]);
        let loader = failing(true);
        let mut batches = loader.iter();
        assert!(batches.by_ref().take(2).all(|batch| batch.is_ok()));
        let panic = catch_unwind(AssertUnwindSafe(|| batches.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "no item 2");
    }
}
