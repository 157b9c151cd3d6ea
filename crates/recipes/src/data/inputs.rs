//! The content of text files and pipes, known by its hash.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use twox_hash::XxHash3_128;

use super::{DataError, cache::Cache, read_error};

/// Time between two log lines that say how far reading is.
const INTERVAL: Duration = Duration::from_secs(5);

/// A file or a pipe, and the hash of its content.
pub(super) struct Input {
    /// Its name.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The hash of its content.
    pub hash: u128,
    /// The content of a pipe, which can be read only once.
    kept: Option<File>,
}

/// Reads files for their hashes, and keeps what pipes give in the folder of the cache.
pub(super) fn read(paths: Vec<PathBuf>, cache: &Cache) -> Result<Vec<Input>, DataError> {
    let sizes = paths.iter().filter_map(|path| path.metadata().ok());
    let progress = Progress::new("reading", sizes.map(|metadata| metadata.len()).sum());
    let mut buffer = vec![0; 1 << 20];
    let inputs = paths
        .into_iter()
        .map(|path| Input::read(path, cache, &mut buffer, &progress));
    inputs.collect()
}

impl Input {
    fn read(
        path: PathBuf,
        cache: &Cache,
        buffer: &mut [u8],
        progress: &Progress,
    ) -> Result<Self, DataError> {
        let failed = |source| read_error(&path, source);
        let mut kept = match path.metadata().map_err(failed)?.is_file() {
            true => None,
            false => Some(keep_pipe(&path, cache)?),
        };
        let mut file = File::open(&path).map_err(failed)?;
        let (mut hash, mut bytes) = (XxHash3_128::new(), 0);
        loop {
            let count = match file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count.map_err(failed)?,
            };
            if count == 0 {
                break;
            }
            let part = &buffer[..count];
            hash.write(part);
            bytes += count as u64;
            progress.add(count as u64);
            if let Some(kept) = &mut kept {
                kept.write_all(part).map_err(|e| write_error(cache, e))?;
            }
        }
        Ok(Self {
            path,
            bytes,
            hash: hash.finish_128(),
            kept,
        })
    }

    /// The content from its start.
    pub fn content<'a>(&self, progress: &'a Progress) -> Result<Content<'a>, DataError> {
        let opened = match &self.kept {
            None => File::open(&self.path),
            Some(kept) => kept.try_clone().and_then(|mut file| {
                file.rewind()?;
                Ok(file)
            }),
        };
        Ok(Content {
            file: opened.map_err(|source| read_error(&self.path, source))?,
            hash: XxHash3_128::new(),
            progress,
        })
    }
}

/// A file for the content of a pipe, without a name, so that nothing is left of it.
fn keep_pipe(path: &Path, cache: &Cache) -> Result<File, DataError> {
    if !is_pipe(path) {
        // A device such as /dev/zero has no end.
        return Err(DataError::NotText {
            path: path.to_path_buf(),
            reason: "it is a device; expected a file, a folder or a pipe".into(),
        });
    }
    log::info!("{}: reading a pipe to its end", path.display());
    std::fs::create_dir_all(cache.folder())
        .and_then(|()| tempfile::tempfile_in(cache.folder()))
        .map_err(|source| write_error(cache, source))
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let metadata = path.metadata();
    metadata.is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_path: &Path) -> bool {
    false
}

fn write_error(cache: &Cache, source: io::Error) -> DataError {
    DataError::Write {
        path: cache.folder().to_path_buf(),
        source,
    }
}

/// The content of a file, hashed while it is read.
pub(super) struct Content<'a> {
    file: File,
    hash: XxHash3_128,
    progress: &'a Progress,
}

impl Content<'_> {
    /// Checks at the end that the content is what it was when the hash of `input` was made.
    pub fn check(&self, input: &Input) -> Result<(), DataError> {
        match self.hash.finish_128() == input.hash {
            true => Ok(()),
            false => Err(DataError::Changed {
                path: input.path.clone(),
            }),
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.write(&buffer[..read]);
        self.progress.add(read as u64);
        Ok(read)
    }
}

/// Says how far reading is.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: Cell<u64>,
    logged: Cell<Instant>,
}

impl Progress {
    /// The progress of `what`, up to this many bytes.
    pub fn new(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            done: Cell::new(0),
            logged: Cell::new(Instant::now()),
        }
    }

    fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        if self.logged.get().elapsed() >= INTERVAL {
            self.logged.set(Instant::now());
            let [done, total] = [self.done.get(), self.total].map(|bytes| bytes as f64 / 1e6);
            log::info!("{}: {done:.1} of {total:.1} MB", self.what);
        }
    }
}
