//! A corpus as token ids in a memory-mapped file, made once and used by every later run.

use std::{
    cell::Cell,
    fs::File,
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use memmap2::Mmap;
use rwkv7_core::tokenizer::{Tokenizer, TokenizerError};

use crate::atomic;

use super::{
    DataError,
    source::{self, Piece},
};

const MAGIC: &[u8; 8] = b"RWKVTOK1";

/// Magic, bytes per id, CRC-32 of the ids, number of ids; little-endian. The ids follow.
const HEADER: usize = 8 + 4 + 4 + 8;

/// Time between two log lines that say how far tokenizing is.
const INTERVAL: Duration = Duration::from_secs(5);

/// Token ids, read where they lie on disk. Every document ends with the end-of-text token.
#[derive(Clone)]
pub struct TokenFile {
    map: Arc<Mmap>,
    width: usize,
}

/// Text files and the tokenizer for them.
pub struct Corpus<'a> {
    /// Files and folders.
    pub paths: &'a [PathBuf],
    /// The key of the text in `.jsonl` files.
    pub text_field: &'a str,
    /// Makes the ids.
    pub tokenizer: &'a dyn Tokenizer,
    /// The user's name for the tokenizer; part of the file's identity.
    pub tokenizer_name: &'a str,
}

impl Corpus<'_> {
    /// The corpus as ids: from the cache if it is there and whole, else tokenized now. A log line every few seconds says how
    /// far it is.
    ///
    /// # Errors
    ///
    /// [`DataError`] names the file and the place in it. Nothing is left behind.
    pub fn tokenize(&self, cache: &Path) -> Result<TokenFile, DataError> {
        let files = source::files(self.paths)?;
        let path = cache.join(format!("{:016x}.tokens", self.fingerprint(&files)?));
        if path.is_file() {
            match TokenFile::open(&path) {
                Err(DataError::Damaged { reason, .. }) => {
                    log::warn!("{}: {reason}; tokenizing again", path.display());
                }
                other => return other,
            }
        }
        let failed = |source| DataError::Write {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(cache).map_err(failed)?;
        // An error of the data passes through the writer's: `Result` of a `Result`.
        let mut problem = None;
        let written = atomic::replace(&path, |temporary| {
            let mut out = Writer::create(temporary, self.width())?;
            match self.write(&files, &mut out) {
                Ok(()) => out.finish(),
                Err(WriteError::Io(error)) => Err(error),
                Err(WriteError::Data(error)) => {
                    problem = Some(error);
                    Err(std::io::Error::other("unusable data"))
                }
            }
        });
        match (problem, written) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(failed(error)),
            (None, Ok(())) => TokenFile::open(&path),
        }
    }

    fn width(&self) -> usize {
        if self.tokenizer.vocab_size() <= 1 << 16 {
            2
        } else {
            4
        }
    }

    /// Names, sizes and times of the files, and the tokenizer with its ids of a sample.
    fn fingerprint(&self, files: &[PathBuf]) -> Result<u64, DataError> {
        let mut hash = crc32fast::Hasher::new();
        let mut second = crc32fast::Hasher::new_with_initial(0x5eed);
        let mut add = |bytes: &[u8]| {
            for hash in [&mut hash, &mut second] {
                hash.update(bytes);
                hash.update(&[0]);
            }
        };
        for file in files {
            let read = |source| DataError::Read {
                path: file.clone(),
                source,
            };
            let metadata = file.metadata().map_err(read)?;
            let changed = metadata
                .modified()
                .ok()
                .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            add(file
                .canonicalize()
                .map_err(read)?
                .as_os_str()
                .as_encoded_bytes());
            add(&metadata.len().to_le_bytes());
            add(&changed.map_or(0, |t| t.as_nanos()).to_le_bytes());
        }
        add(self.text_field.as_bytes());
        add(self.tokenizer_name.as_bytes());
        add(&(self.tokenizer.vocab_size() as u64).to_le_bytes());
        let sample = self
            .tokenizer
            .encode("The 1st sample,\n\n  of 文 text.")
            .map_err(|source| DataError::Tokenizer {
                path: self.tokenizer_name.into(),
                source,
            })?;
        sample.iter().for_each(|id| add(&id.to_le_bytes()));
        Ok(u64::from(hash.finalize()) << 32 | u64::from(second.finalize()))
    }

    fn write(&self, files: &[PathBuf], out: &mut Writer) -> Result<(), WriteError> {
        let sizes = files.iter().filter_map(|file| file.metadata().ok());
        let total: u64 = sizes.map(|metadata| metadata.len()).sum();
        let (done, logged) = (Cell::new(0), Cell::new(Instant::now()));
        let progress = |bytes: u64| {
            done.set(done.get() + bytes);
            if logged.get().elapsed() >= INTERVAL {
                logged.set(Instant::now());
                let [done, total] = [done.get(), total].map(|bytes| bytes as f64 / 1e6);
                log::info!("tokenizing: {done:.1} of {total:.1} MB");
            }
        };
        let vocab_size = self.tokenizer.vocab_size();
        let end = self.tokenizer.end_of_text();
        for file in files {
            source::read(file, self.text_field, &progress, &mut |piece| {
                let tokenizer_error = |source| DataError::Tokenizer {
                    path: file.clone(),
                    source,
                };
                let ids = match piece {
                    Piece::Text(text) => self.tokenizer.encode(text).map_err(tokenizer_error)?,
                    Piece::End => vec![end],
                };
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    let error = TokenizerError::UnknownId { id, vocab_size };
                    return Err(tokenizer_error(error).into());
                }
                out.push(&ids).map_err(WriteError::Io)
            })?;
        }
        Ok(())
    }
}

enum WriteError {
    Io(std::io::Error),
    Data(DataError),
}

impl From<DataError> for WriteError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

struct Writer {
    out: std::io::BufWriter<File>,
    hash: crc32fast::Hasher,
    count: u64,
    width: usize,
}

impl Writer {
    fn create(path: &Path, width: usize) -> std::io::Result<Self> {
        let mut out = std::io::BufWriter::new(File::create(path)?);
        out.write_all(&[0; HEADER])?;
        Ok(Self {
            out,
            hash: crc32fast::Hasher::new(),
            count: 0,
            width,
        })
    }

    fn push(&mut self, ids: &[u32]) -> std::io::Result<()> {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| id.to_le_bytes().into_iter().take(self.width))
            .collect();
        self.hash.update(&bytes);
        self.count += ids.len() as u64;
        self.out.write_all(&bytes)
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(MAGIC)?;
        self.out.write_all(&(self.width as u32).to_le_bytes())?;
        self.out.write_all(&self.hash.finalize().to_le_bytes())?;
        self.out.write_all(&self.count.to_le_bytes())?;
        self.out.flush()
    }
}

impl TokenFile {
    /// Opens a token file and checks that it is whole.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`] or [`DataError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::Read {
            path: path.to_path_buf(),
            source,
        };
        let damaged = |reason: String| DataError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let file = File::open(path).map_err(read)?;
        let map = map(&file).map_err(read)?;
        let header = map.get(..HEADER).filter(|header| header.starts_with(MAGIC));
        let header = header.ok_or_else(|| damaged("it does not start like one".into()))?;
        let (words, _) = header[8..].as_chunks::<4>();
        let [width, checksum, low, high] = [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]));
        let count = u64::from(low) | u64::from(high) << 32;
        let width = width as usize;
        if !matches!(width, 2 | 4) {
            return Err(damaged(format!("ids of {width} bytes, expected 2 or 4")));
        }
        let found = (map.len() - HEADER) as u64;
        if count.checked_mul(width as u64) != Some(found) {
            return Err(damaged(format!(
                "{found} bytes of ids, expected {count} ids of {width} bytes"
            )));
        }
        if crc32fast::hash(&map[HEADER..]) != checksum {
            return Err(damaged("its checksum is wrong".into()));
        }
        Ok(Self {
            map: Arc::new(map),
            width,
        })
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        (self.map.len() - HEADER) / self.width
    }

    /// Whether there are no ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids in a range.
    ///
    /// # Panics
    ///
    /// If the range exceeds [`len`](Self::len).
    pub fn ids(&self, range: Range<usize>) -> impl Iterator<Item = u32> + '_ {
        let bytes = &self.map[HEADER + range.start * self.width..HEADER + range.end * self.width];
        bytes.chunks_exact(self.width).map(|id| {
            let mut value = [0; 4];
            value[..id.len()].copy_from_slice(id);
            u32::from_le_bytes(value)
        })
    }
}

/// Maps a file into memory.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, and token files are replaced whole, never changed in place.
    unsafe { Mmap::map(file) }
}

/// Where token files are kept: the user's cache folder.
pub fn cache_folder() -> PathBuf {
    dirs::cache_dir()
        .unwrap_or_else(std::env::temp_dir)
        .join("metastate")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rwkv7_core::tokenizer::ByteTokenizer;

    use super::*;

    fn corpus(paths: &[PathBuf]) -> Corpus<'_> {
        Corpus {
            paths,
            text_field: "text",
            tokenizer: &ByteTokenizer,
            tokenizer_name: "byte",
        }
    }

    #[test]
    fn documents_end_with_the_end_of_text_and_the_file_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.jsonl");
        std::fs::write(&source, "{\"text\": \"ab\"}\n{\"text\": \"c\"}\n").unwrap();
        let cache = folder.path().join("cache");
        let paths = [source.clone()];
        let file = corpus(&paths).tokenize(&cache).unwrap();
        let expected = [97, 98, 0, 99, 0];
        assert_eq!(file.ids(0..file.len()).collect::<Vec<_>>(), expected);

        let entry = || cache.read_dir().unwrap().next().unwrap().unwrap().path();
        let modified = entry().metadata().unwrap().modified().unwrap();
        corpus(&paths).tokenize(&cache).unwrap();
        assert_eq!(entry().metadata().unwrap().modified().unwrap(), modified);

        // A damaged file is noticed and made again.
        drop(file);
        let mut bytes = std::fs::read(entry()).unwrap();
        bytes[HEADER] ^= 1;
        std::fs::write(entry(), &bytes).unwrap();
        assert!(matches!(
            TokenFile::open(&entry()),
            Err(DataError::Damaged { .. })
        ));
        let file = corpus(&paths).tokenize(&cache).unwrap();
        assert_eq!(file.ids(0..5).collect::<Vec<_>>(), expected);

        // Other text, another file.
        std::fs::write(&source, "{\"text\": \"other\"}\n").unwrap();
        assert_eq!(corpus(&paths).tokenize(&cache).unwrap().len(), 6);
        assert_eq!(cache.read_dir().unwrap().count(), 2);
    }

    #[test]
    fn unusable_text_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.txt");
        std::fs::write(&source, b"ab\xff").unwrap();
        let cache = folder.path().join("cache");
        let error = corpus(&[source]).tokenize(&cache).err().unwrap();
        assert!(
            matches!(error, DataError::NotUtf8 { offset: 2, .. }),
            "{error}"
        );
        assert_eq!(cache.read_dir().unwrap().count(), 0);
    }
}
