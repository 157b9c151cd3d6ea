//! The lines of a text file.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use crate::data::DataError;

/// Some editors write this at the start of a UTF-8 file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Lines of a text, checked to be text in UTF-8; a byte order mark at its start is not part of it.
pub struct Lines<'a> {
    /// The file.
    pub path: &'a Path,
    reader: BufReader<Box<dyn Read + 'a>>,
    compressed: bool,
    /// The line handed on last, and the start of a character that goes on after it.
    bytes: Vec<u8>,
    /// Bytes of the line handed on last.
    used: usize,
    /// Where `bytes` begin in the text.
    offset: u64,
}

impl<'a> Lines<'a> {
    /// The lines that `reader` gives of the file `path`, which is compressed or not.
    pub fn new(path: &'a Path, reader: Box<dyn Read + 'a>, compressed: bool) -> Self {
        Self {
            path,
            reader: BufReader::with_capacity(1 << 16, reader),
            compressed,
            bytes: Vec::new(),
            used: 0,
            offset: 0,
        }
    }

    /// The next line with its end, or about the next `most` bytes of a longer line; none at the end of the text.
    pub fn next(&mut self, most: usize) -> Result<Option<&str>, DataError> {
        self.bytes.drain(..self.used);
        self.offset += self.used as u64;
        self.used = 0;
        let room = most.saturating_sub(self.bytes.len()) as u64;
        let read = (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.bytes);
        read.map_err(|source| self.read_error(source))?;
        if self.bytes.is_empty() {
            return Ok(None);
        }
        self.used = match std::str::from_utf8(&self.bytes) {
            Ok(text) => text.len(),
            // A character that goes on after this part of a long line.
            Err(error) if error.error_len().is_none() && self.bytes.len() >= most => {
                error.valid_up_to()
            }
            Err(error) => return Err(self.not_utf8(error.valid_up_to())),
        };
        // Checked above.
        let text = std::str::from_utf8(&self.bytes[..self.used]).unwrap_or_default();
        if let Some(at) = text.find('\0') {
            return Err(self.not_text(format!(
                "byte {} is NUL, which is no text; the file is binary or not UTF-8 (convert UTF-16 by iconv -f utf-16le -t utf-8)",
                self.offset + at as u64
            )));
        }
        Ok(Some(match self.offset {
            0 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
            _ => text,
        }))
    }

    fn not_utf8(&self, at: usize) -> DataError {
        if self.offset == 0
            && (self.bytes.starts_with(&[0xff, 0xfe]) || self.bytes.starts_with(&[0xfe, 0xff]))
        {
            return self
                .not_text("the text is UTF-16; convert it by iconv -f utf-16 -t utf-8".into());
        }
        DataError::NotUtf8 {
            path: self.path.to_path_buf(),
            offset: self.offset + at as u64,
        }
    }

    fn not_text(&self, reason: String) -> DataError {
        DataError::NotText {
            path: self.path.to_path_buf(),
            reason,
        }
    }

    fn read_error(&self, source: io::Error) -> DataError {
        let path = self.path.to_path_buf();
        if self.compressed {
            let offset = self.offset + self.bytes.len() as u64;
            DataError::Compressed {
                path,
                offset,
                source,
            }
        } else {
            DataError::Read { path, source }
        }
    }
}
