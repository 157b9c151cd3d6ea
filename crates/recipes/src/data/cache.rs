//! The folder of token files. It stays below a size, and nothing that a killed process left remains in it.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::atomic;

/// The ending of token files.
const ENDING: &str = "tokens";

/// Gigabytes that token files may take in all.
const LIMIT: f64 = 50.0;

/// The environment variable that sets another limit.
const LIMIT_NAME: &str = "METASTATE_CACHE_GB";

/// A folder of token files.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// A token file in the folder.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was made or used last.
    pub used: SystemTime,
}

impl Cache {
    /// The cache in a folder, which need not exist.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
        }
    }

    /// The cache in the user's cache folder.
    pub fn of_user() -> Self {
        let folder = dirs::cache_dir().unwrap_or_else(std::env::temp_dir);
        Self::new(&folder.join("metastate"))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes that token files may take in all: 50 GB, or what `METASTATE_CACHE_GB` says.
    pub fn limit() -> u64 {
        let set = std::env::var(LIMIT_NAME).ok();
        let gigabytes = set.map_or(LIMIT, |text| match text.trim().parse::<f64>() {
            Ok(gigabytes) if gigabytes >= 0.0 => gigabytes,
            _ => {
                log::warn!(
                    "{LIMIT_NAME} is `{text}`, expected a number of gigabytes; {LIMIT} is taken"
                );
                LIMIT
            }
        });
        (gigabytes * 1e9) as u64
    }

    /// The token files, those that were not used for the longest time first.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = self
            .files()?
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|ending| ending == ENDING))
            .map(|(path, metadata)| Entry {
                path,
                bytes: metadata.len(),
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            })
            .collect();
        entries.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(entries)
    }

    /// Removes all token files, and returns how many bytes they had. A run that uses one of them keeps it until the run ends.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn clear(&self) -> io::Result<u64> {
        let mut freed = self.remove_leftovers()?;
        for entry in self.entries()? {
            remove(&entry.path)?;
            freed += entry.bytes;
        }
        Ok(freed)
    }

    /// The file of a key.
    pub(super) fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.{ENDING}"))
    }

    /// Notes that a token file is used now, and makes room for it. What fails here is no reason to stop: the next use tries again.
    pub(super) fn used(&self, file: &Path) {
        let now = File::options().append(true).open(file);
        let noted = now.and_then(|file| file.set_modified(SystemTime::now()));
        let tidied = noted
            .and_then(|()| self.remove_leftovers())
            .and_then(|_| self.shrink(file, Self::limit()));
        if let Err(error) = tidied {
            log::debug!("{}: {error}", self.folder.display());
        }
    }

    /// Removes the token files that were not used for the longest time until all together are below the limit; `kept` stays.
    fn shrink(&self, kept: &Path, limit: u64) -> io::Result<()> {
        let entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        for entry in entries.iter().filter(|entry| entry.path != kept) {
            if total <= limit {
                break;
            }
            remove(&entry.path)?;
            total -= entry.bytes;
            log::info!(
                "{} is removed, as tokenized texts may take {} GB ({LIMIT_NAME})",
                entry.path.display(),
                limit as f64 / 1e9
            );
        }
        Ok(())
    }

    /// Removes the unfinished files of processes that are gone, and returns how many bytes they had.
    fn remove_leftovers(&self) -> io::Result<u64> {
        let mut freed = 0;
        for (path, metadata) in self.files()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(atomic::TEMPORARY) && is_abandoned(&path, &metadata) {
                remove(&path)?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }

    /// The files of the folder.
    fn files(&self) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let entries = match self.folder.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            // Another process may have removed the file.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                files.push((entry.path(), metadata));
            }
        }
        Ok(files)
    }
}

/// Removes a file that another process may have removed already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Whether no process writes the file: its writer locks it before the first byte.
fn is_abandoned(path: &Path, metadata: &Metadata) -> bool {
    let age = metadata
        .modified()
        .ok()
        .and_then(|time| time.elapsed().ok());
    if metadata.len() == 0 && age.is_none_or(|age| age < Duration::from_secs(60)) {
        return false;
    }
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(cache: &Cache, name: &str, bytes: usize, seconds: u64) -> PathBuf {
        let path = cache.folder().join(name);
        fs::write(&path, vec![1; bytes]).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
        path
    }

    #[test]
    fn the_file_not_used_for_the_longest_time_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let [a, b, c] = [("a.tokens", 30), ("b.tokens", 10), ("c.tokens", 20)]
            .map(|(name, at)| file(&cache, name, 100, at));
        let other = file(&cache, "notes.txt", 100, 1);
        cache.shrink(&c, 250).unwrap();
        assert_eq!(
            [&a, &b, &c, &other].map(|path| path.exists()),
            [true, false, true, true]
        );
        // The file in use stays, however large it is.
        cache.shrink(&c, 50).unwrap();
        assert_eq!([&a, &c].map(|path| path.exists()), [false, true]);
        assert_eq!(cache.clear().unwrap(), 100);
        assert!(cache.entries().unwrap().is_empty() && other.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_a_file_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let name = |rest: &str| format!("{}{rest}", atomic::TEMPORARY);
        let left = file(&cache, &name("left"), 10, 5);
        let written = file(&cache, &name("written"), 10, 5);
        let lock = File::open(&written).unwrap();
        lock.lock().unwrap();
        let fresh = folder.path().join(name("fresh"));
        fs::write(&fresh, "").unwrap();
        let used = file(&cache, "a.tokens", 10, 5);
        cache.used(&used);
        assert_eq!(
            [&left, &written, &fresh, &used].map(|path| path.exists()),
            [false, true, true, true]
        );
        assert!(
            used.metadata()
                .unwrap()
                .modified()
                .unwrap()
                .elapsed()
                .unwrap()
                < Duration::from_secs(60)
        );
    }
}
