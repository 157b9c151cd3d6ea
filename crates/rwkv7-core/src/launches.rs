//! Counting the kernels that some work launches on a GPU.
//!
//! Every launch costs the host several microseconds, whatever the kernel computes. A small model's step takes as long as its
//! launches.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use cubecl::logging::{LaunchObservation, LaunchObserver};

/// Counts every launch of the process, on all devices, from [`start`](Self::start) to [`stop`](Self::stop). A count that
/// begins while another runs takes its launches away.
///
/// Burn launches late: synchronise the device before the count begins and before it stops.
pub struct LaunchCounter {
    counts: Arc<Names>,
    _observation: LaunchObservation,
}

/// Launches by the kernel's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launches(pub BTreeMap<&'static str, usize>);

#[derive(Default)]
struct Names(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Names {
    fn launched(&self, kernel: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(kernel).or_default() += 1;
    }
}

impl LaunchCounter {
    /// Begins to count.
    pub fn start() -> Self {
        let counts = Arc::new(Names::default());
        Self {
            _observation: LaunchObservation::new(counts.clone()),
            counts,
        }
    }

    /// Ends the count.
    pub fn stop(self) -> Launches {
        let counts = self.counts.0.lock();
        Launches(counts.unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Launches {
    /// All launches.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }
}

/// A line for each kernel, the most frequent first; the names without paths and type arguments.
impl fmt::Display for Launches {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let mut counts = BTreeMap::<&str, usize>::new();
        for (name, count) in &self.0 {
            let name = name.split('<').next().unwrap_or(name);
            let short = name.rsplit("::").next().unwrap_or(name);
            *counts.entry(short).or_default() += count;
        }
        let mut lines: Vec<_> = counts.into_iter().collect();
        lines.sort_by_key(|(name, count)| (Reverse(*count), *name));
        for (name, count) in lines {
            writeln!(out, "{count:6} {name}")?;
        }
        Ok(())
    }
}
