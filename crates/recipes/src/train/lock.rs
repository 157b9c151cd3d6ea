//! The lock of a run's folder: one process at a time trains in it.
//!
//! The operating system gives the lock back when the process ends, however that happens. The file stays, and says which process
//! locked it last.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{TrainError, run_dir::file_error};

/// The file in the folder of the run.
pub const LOCK: &str = "run.lock";

/// A locked folder, until this is dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks the run's folder, which must be there.
    pub fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(LOCK);
        let failed = |source| file_error(&path, source);
        let mut file = open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(folder, &mut file)),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => log::warn!(
                "{}: the folder cannot be locked ({error}); no other process may train in it",
                folder.display()
            ),
        }
        write_holder(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// Refuses a folder that another process trains in at this moment. Nothing is written.
    pub fn check(folder: &Path) -> Result<(), TrainError> {
        let Ok(mut file) = File::open(folder.join(LOCK)) else {
            return Ok(());
        };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Err(in_use(folder, &mut file)),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// The process and when it locked the folder, in seconds of Unix time.
fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let line = format!("{} {}\n", std::process::id(), now().as_secs());
    file.write_all(line.as_bytes())
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// The error that names the process in the lock's file. The process may not have written its name yet.
fn in_use(folder: &Path, file: &mut File) -> TrainError {
    let mut text = String::new();
    let read = file.take(64).read_to_string(&mut text);
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse::<u32>().ok());
    let since = words.next().and_then(|word| word.parse::<u64>().ok());
    let holder = match (read, pid, since) {
        (Ok(_), Some(pid), Some(since)) => {
            let seconds = now().as_secs().saturating_sub(since);
            format!("process {pid} (for {})", duration(seconds))
        }
        _ => "another process".into(),
    };
    TrainError::InUse {
        path: PathBuf::from(folder),
        holder,
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_folder_is_refused_with_the_process_that_has_it_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        RunLock::check(folder.path()).unwrap();
        let lock = RunLock::take(folder.path()).unwrap();
        for refused in [
            RunLock::take(folder.path()).map(drop),
            RunLock::check(folder.path()),
        ] {
            let error = refused.unwrap_err().to_string();
            let process = format!("process {}", std::process::id());
            for part in [process.as_str(), "for 0 s", "--out"] {
                assert!(error.contains(part), "{error}");
            }
        }
        drop(lock);
        RunLock::check(folder.path()).unwrap();
        RunLock::take(folder.path()).unwrap();
    }

    #[test]
    fn one_of_many_that_start_at_once_wins() {
        let folder = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(8);
        let take = || {
            barrier.wait();
            let lock = RunLock::take(folder.path());
            barrier.wait();
            lock.is_ok()
        };
        let won = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .filter_map(|t| t.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(won, 1);
    }
}
