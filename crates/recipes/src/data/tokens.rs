//! Token ids in a file.
//!
//! | bytes | content, little-endian |
//! |---|---|
//! | 8 | `RWKVTOK2` |
//! | 4 | bytes of an id: 2 or 4 |
//! | 4 | CRC-32 of the blocks and of the 16 bytes after this number |
//! | 8 | number of ids |
//! | 8 | bytes of the text |
//! | the rest | blocks of 64 ids; before each block, the bytes of the text before its first id (8 bytes) |

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rwkv7_core::tokenizer::Tokenizer;

use super::{DataError, read_error};

const MAGIC: &[u8; 8] = b"RWKVTOK2";

const HEADER: usize = 32;

/// Ids of a block. The last block may have fewer.
const BLOCK: usize = 64;

/// Bytes before the ids of a block.
const MARK: usize = 8;

/// Token ids, read where they lie on disk. Every document ends with the end-of-text token.
///
/// The file is read and not mapped into memory: a file that is cut off while it is used gives an error.
#[derive(Clone)]
pub struct TokenFile {
    file: Arc<Mutex<File>>,
    path: Arc<Path>,
    fingerprint: Arc<str>,
    width: usize,
    count: usize,
    text_bytes: u64,
}

impl TokenFile {
    /// Opens a token file of the text with this fingerprint, and checks that the file is whole and that all ids are below
    /// `vocab_size`.
    pub(super) fn open(
        path: &Path,
        fingerprint: &str,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        let read = |source| read_error(path, source);
        let damaged = |reason: String| DataError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let mut file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        let mut header = [0; HEADER];
        let whole = size >= HEADER as u64;
        if whole {
            file.read_exact(&mut header).map_err(read)?;
        }
        if !whole || !header.starts_with(MAGIC) {
            return Err(damaged("it does not start like one".into()));
        }
        let (words, _) = header[8..].as_chunks::<4>();
        let [width, checksum, count, count_high, bytes, bytes_high] =
            [0, 1, 2, 3, 4, 5].map(|i| u32::from_le_bytes(words[i]));
        let width = width as usize;
        if !matches!(width, 2 | 4) {
            return Err(damaged(format!("ids of {width} bytes, expected 2 or 4")));
        }
        let count = u64::from(count) | u64::from(count_high) << 32;
        let blocks = count.div_ceil(BLOCK as u64);
        let expected = count
            .checked_mul(width as u64)
            .and_then(|ids| ids.checked_add(blocks * MARK as u64));
        let found = size - HEADER as u64;
        if expected != Some(found) {
            return Err(damaged(format!(
                "{found} bytes after its header do not hold {count} ids of {width} bytes"
            )));
        }
        let (mut hash, largest) = check(&file, width).map_err(read)?;
        hash.update(&header[16..]);
        if hash.finalize() != checksum {
            return Err(damaged("its checksum is wrong".into()));
        }
        if largest as usize >= vocab_size && count > 0 {
            return Err(damaged(format!(
                "it holds the id {largest}, and the tokenizer has ids below {vocab_size}"
            )));
        }
        Ok(Self {
            file: Arc::new(Mutex::new(file)),
            path: path.into(),
            fingerprint: fingerprint.into(),
            width,
            count: count as usize,
            text_bytes: u64::from(bytes) | u64::from(bytes_high) << 32,
        })
    }

    /// What tells the text from every other one: 32 hexadecimal digits, a hash of the content of its files. The tokenizer and the
    /// place of the files do not count.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no ids.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The ids in a range.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`] if the file was cut off since it was opened.
    ///
    /// # Panics
    ///
    /// If the range exceeds [`len`](Self::len).
    pub fn ids(&self, range: Range<usize>) -> Result<Vec<u32>, DataError> {
        assert!(range.end <= self.count, "ids {range:?} of {}", self.count);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let blocks = range.start / BLOCK..(range.end - 1) / BLOCK + 1;
        let end =
            self.block(blocks.end - 1) + (MARK + ((range.end - 1) % BLOCK + 1) * self.width) as u64;
        let start = self.block(blocks.start);
        let bytes = self.read(start, (end - start) as usize)?;
        let mut ids = Vec::with_capacity(blocks.len() * BLOCK);
        for block in bytes.chunks(MARK + BLOCK * self.width) {
            each_id(&block[MARK..], self.width, |id| ids.push(id));
        }
        ids.drain(..range.start % BLOCK);
        Ok(ids)
    }

    /// Bytes of the text that the ids of a range stand for. `tokenizer` made the ids.
    ///
    /// Blocks of 64 ids have exact bytes. At the ends of a range within a block, the block's bytes are shared out by the lengths of
    /// the texts of its ids, which is exact too unless the tokenizer changes texts.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`] if the file was cut off since it was opened.
    pub fn text_bytes(
        &self,
        range: Range<usize>,
        tokenizer: &dyn Tokenizer,
    ) -> Result<u64, DataError> {
        let end = self.bytes_before(range.end, tokenizer)?;
        Ok(end.saturating_sub(self.bytes_before(range.start, tokenizer)?))
    }

    fn bytes_before(&self, position: usize, tokenizer: &dyn Tokenizer) -> Result<u64, DataError> {
        if position >= self.count {
            return Ok(self.text_bytes);
        }
        let block = position / BLOCK;
        let first = self.mark(block)?;
        if position.is_multiple_of(BLOCK) {
            return Ok(first);
        }
        let end = self.count.min((block + 1) * BLOCK);
        let next = match end == self.count {
            true => self.text_bytes,
            false => self.mark(block + 1)?,
        };
        let length = |id: &u32| match *id == tokenizer.end_of_text() {
            true => 0,
            false => tokenizer
                .decode_bytes(&[*id])
                .map_or(0, |bytes| bytes.len()),
        };
        let lengths: Vec<usize> = self.ids(block * BLOCK..end)?.iter().map(length).collect();
        let before: usize = lengths[..position % BLOCK].iter().sum();
        let all = lengths.iter().sum::<usize>().max(1);
        let part = next.saturating_sub(first) as f64 * before as f64 / all as f64;
        Ok(first + part.round() as u64)
    }

    fn mark(&self, block: usize) -> Result<u64, DataError> {
        let mut mark = [0; MARK];
        mark.copy_from_slice(&self.read(self.block(block), MARK)?);
        Ok(u64::from_le_bytes(mark))
    }

    /// Where a block lies in the file.
    fn block(&self, block: usize) -> u64 {
        (HEADER + block * (MARK + BLOCK * self.width)) as u64
    }

    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; length];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|source| read_error(&self.path, source))?;
        Ok(bytes)
    }
}

/// The checksum of the blocks that follow in the file, and the largest id.
fn check(mut file: &File, width: usize) -> io::Result<(crc32fast::Hasher, u32)> {
    let block = MARK + BLOCK * width;
    let mut blocks = Vec::new();
    let (mut hash, mut largest) = (crc32fast::Hasher::new(), 0);
    loop {
        blocks.clear();
        let part = 4096 * block as u64;
        if (&mut file).take(part).read_to_end(&mut blocks)? == 0 {
            return Ok((hash, largest));
        }
        hash.update(&blocks);
        for block in blocks.chunks(block) {
            let ids = block.get(MARK..).unwrap_or_default();
            each_id(ids, width, |id| largest = largest.max(id));
        }
    }
}

/// Gives every id of 2 or 4 bytes to `each`.
fn each_id(bytes: &[u8], width: usize, mut each: impl FnMut(u32)) {
    match width {
        2 => {
            let (ids, _) = bytes.as_chunks();
            ids.iter()
                .for_each(|id| each(u16::from_le_bytes(*id).into()));
        }
        _ => {
            let (ids, _) = bytes.as_chunks();
            ids.iter().for_each(|id| each(u32::from_le_bytes(*id)));
        }
    }
}

/// Writes a token file.
pub(super) struct Writer {
    out: BufWriter<File>,
    hash: crc32fast::Hasher,
    count: u64,
    width: usize,
    text_bytes: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// A file for ids below `vocab_size`. It is locked until it is whole, so that nobody takes it for the rest of a killed process.
    pub fn create(path: &Path, vocab_size: usize) -> io::Result<Self> {
        let file = File::create(path)?;
        // A file system without locks has no protection.
        let _ = file.lock();
        let mut out = BufWriter::with_capacity(1 << 18, file);
        out.write_all(&[0; HEADER])?;
        Ok(Self {
            out,
            hash: crc32fast::Hasher::new(),
            count: 0,
            width: if vocab_size <= 1 << 16 { 2 } else { 4 },
            text_bytes: 0,
            buffer: Vec::new(),
        })
    }

    /// Appends the ids of a text of this many bytes. `ends` says where in the text the part of each id ends.
    pub fn push(&mut self, ids: &[u32], ends: &[usize], text_bytes: usize) -> io::Result<()> {
        self.buffer.clear();
        let mut start = 0;
        while start < ids.len() {
            let in_block = (self.count % BLOCK as u64) as usize;
            if in_block == 0 {
                let before = start.checked_sub(1).and_then(|before| ends.get(before));
                let mark = self.text_bytes + before.map_or(0, |&end| end as u64);
                self.buffer.extend(mark.to_le_bytes());
            }
            let part = &ids[start..ids.len().min(start + BLOCK - in_block)];
            match self.width {
                2 => part
                    .iter()
                    .for_each(|&id| self.buffer.extend((id as u16).to_le_bytes())),
                _ => part
                    .iter()
                    .for_each(|id| self.buffer.extend(id.to_le_bytes())),
            }
            start += part.len();
            self.count += part.len() as u64;
        }
        self.text_bytes += text_bytes as u64;
        self.hash.update(&self.buffer);
        self.out.write_all(&self.buffer)
    }

    /// Bytes of all texts so far.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Writes the header. The file that is returned keeps the lock.
    pub fn finish(mut self) -> io::Result<File> {
        let mut numbers = Vec::from(self.count.to_le_bytes());
        numbers.extend(self.text_bytes.to_le_bytes());
        self.hash.update(&numbers);
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(MAGIC)?;
        self.out.write_all(&(self.width as u32).to_le_bytes())?;
        self.out.write_all(&self.hash.finalize().to_le_bytes())?;
        self.out.write_all(&numbers)?;
        self.out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rwkv7_core::tokenizer::WorldTokenizer;

    use super::*;

    /// A tokenizer whose id i stands for 1 + i mod 3 bytes.
    fn tokenizer() -> WorldTokenizer {
        let mut lines: Vec<String> = (0..256)
            .map(|b| format!("{} b'\\x{b:02x}' 1", 3 * b + 300))
            .collect();
        for id in (1..200).filter(|id| id % 3 > 0) {
            let [a, b] = [id / 16, id % 16]
                .map(|digit| b'a' + digit as u8)
                .map(char::from);
            let token: String = [a, b, a].into_iter().take(1 + id % 3).collect();
            lines.push(format!("{id} '{token}' {}", token.len()));
        }
        for (i, id) in (3..200).step_by(3).enumerate() {
            lines[i] = format!("{id} b'\\x{i:02x}' 1");
        }
        WorldTokenizer::from_bytes(lines.join("\n").as_bytes(), Path::new("v.txt")).unwrap()
    }

    /// 200 ids whose texts have 1, 2, 3, 1, 2, 3 … bytes, pushed in parts of 70. The first is the end of text.
    fn written(path: &Path, vocab_size: usize) -> Vec<u64> {
        let mut out = Writer::create(path, vocab_size).unwrap();
        let lengths: Vec<usize> = (0..200).map(|i| usize::from(i > 0) * (1 + i % 3)).collect();
        for (part, lengths) in lengths.chunks(70).enumerate() {
            let ids: Vec<u32> = (0..lengths.len()).map(|i| (70 * part + i) as u32).collect();
            let mut end = 0;
            let ends: Vec<usize> = lengths
                .iter()
                .map(|length| {
                    end += length;
                    end
                })
                .collect();
            out.push(&ids, &ends, end).unwrap();
        }
        drop(out.finish().unwrap());
        lengths.into_iter().map(|length| length as u64).collect()
    }

    #[test]
    fn every_range_gives_its_ids_and_bytes() {
        let tokenizer = tokenizer();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        for vocab_size in [256, 100_000] {
            let lengths = written(&path, vocab_size);
            let file = TokenFile::open(&path, "", vocab_size).unwrap();
            assert_eq!(file.len(), 200);
            for (start, end) in [
                (0, 200),
                (0, 0),
                (0, 64),
                (63, 65),
                (64, 128),
                (100, 199),
                (199, 200),
                (200, 200),
            ] {
                let expected: Vec<u32> = (start as u32..end as u32).collect();
                assert_eq!(file.ids(start..end).unwrap(), expected);
                let exact: u64 = lengths[start..end].iter().sum();
                assert_eq!(file.text_bytes(start..end, &tokenizer).unwrap(), exact);
            }
        }
    }

    #[test]
    fn ids_that_the_tokenizer_does_not_have_are_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        written(&path, 256);
        let error = TokenFile::open(&path, "", 199).err().unwrap().to_string();
        assert!(
            error.contains("the id 199") && error.contains("below 199"),
            "{error}"
        );
    }

    /// A mapped file would end the program by a signal.
    #[test]
    fn a_file_that_is_cut_off_while_it_is_used_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        written(&path, 256);
        let file = TokenFile::open(&path, "", 256).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(100)
            .unwrap();
        let error = file.ids(150..160).err().unwrap().to_string();
        assert!(error.contains("a.tokens"), "{error}");
    }
}
