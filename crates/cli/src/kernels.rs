//! Compiled kernels: kept for the next start, and a word while they are compiled.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rwkv7_core::device::{self, CompilationLog, KernelCache};

/// How long kernels are compiled before the first line.
const PATIENCE: Duration = Duration::from_secs(3);

/// Time between lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Size from which the file of kernels is worth a warning: every build of the program adds its own kernels.
const LARGE: u64 = 2 << 30;

/// What is known of the compilation so far.
struct Progress {
    kernels: usize,
    /// When the first kernel was compiled and when the last line was printed.
    times: Option<(Instant, Option<Instant>)>,
    /// Whether the kernels of the opened device are kept.
    kept: bool,
    /// Whether a dashboard has the screen, where lines would be in the way.
    dashboard: bool,
}

static PROGRESS: Mutex<Progress> = Mutex::new(Progress {
    kernels: 0,
    times: None,
    kept: false,
    dashboard: false,
});

/// Keeps compiled kernels from now on. The first call decides, and has to come before the first device is opened.
pub fn keep() -> &'static KernelCache {
    static CACHE: OnceLock<KernelCache> = OnceLock::new();
    CACHE.get_or_init(|| {
        let cache = device::keep_kernels(CompilationLog::Info);
        if let KernelCache::Kept(file) = &cache
            && size(file) > LARGE
        {
            log::warn!(
                "{}: has {} GiB of compiled kernels, most of them of older builds; delete it when no program runs that uses a GPU",
                file.display(),
                size(file) >> 30
            );
        }
        cache
    })
}

/// Bytes of the file of kernels and of the log beside it, which holds what was written last.
pub fn size(file: &Path) -> u64 {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    [file, Path::new(&log)]
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|found| found.len())
        .sum()
}

/// Says that the device that was opened keeps its kernels, if [`keep`] can make it.
pub fn opened(keeps_kernels: bool) {
    let kept = keeps_kernels && matches!(keep(), KernelCache::Kept(_));
    with(|progress| progress.kept = kept);
}

/// Says that a dashboard takes the screen: progress goes into the title of the terminal then.
pub fn dashboard() {
    with(|progress| progress.dashboard = true);
}

/// Counts a kernel that is being compiled, and prints a line now and then.
pub fn compiled() {
    let (line, dashboard) = with(|progress| (progress.count(Instant::now()), progress.dashboard));
    match line {
        Some(line) if !dashboard => log::info!("{line}"),
        Some(line) if io::stderr().is_terminal() => {
            let _ = write!(io::stderr(), "\x1b]2;{line}\x07");
        }
        _ => {}
    }
}

impl Progress {
    /// Counts a kernel, and gives the line that is due.
    fn count(&mut self, now: Instant) -> Option<String> {
        self.kernels += 1;
        let (first, last) = *self.times.get_or_insert((now, None));
        let due = match last {
            None => now - first >= PATIENCE,
            Some(last) => now - last >= INTERVAL,
        };
        if !due {
            return None;
        }
        self.times = Some((first, Some(now)));
        let kept = match self.kept {
            true => ", kept for next time",
            false => "",
        };
        let kernels = self.kernels;
        Some(format!("compiling kernels for this GPU{kept}: {kernels}"))
    }
}

fn with<T>(change: impl FnOnce(&mut Progress) -> T) -> T {
    change(&mut PROGRESS.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_after_a_while_and_then_now_and_again() {
        let mut progress = Progress {
            kernels: 0,
            times: None,
            kept: true,
            dashboard: false,
        };
        let start = Instant::now();
        let seconds = [0, 1, 2, 4, 6, 13, 14, 15];
        let lines = seconds.map(|second| progress.count(start + Duration::from_secs(second)));
        let numbers: Vec<usize> = (0..8)
            .filter(|i| lines[*i].is_some())
            .map(|i| i + 1)
            .collect();
        assert_eq!(numbers, [4, 7], "{lines:?}");
        let line = lines[3].as_deref();
        assert_eq!(
            line,
            Some("compiling kernels for this GPU, kept for next time: 4")
        );
    }
}
