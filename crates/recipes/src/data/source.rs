//! Documents from files: plain text, `.jsonl`, folders of these, and `.gz` or `.zst` of them.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::DataError;

/// Plain text is handed on in pieces of about this size, split at line ends: memory stays constant, and only a token
/// that would span such a split is lost.
const PIECE: usize = 1 << 20;

/// Some editors write this at the start of a UTF-8 file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A part of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text of the current document.
    Text(&'a str),
    /// The document is complete.
    End,
}

/// The files with text at `paths`: files as they are, folders searched through in the order of names.
///
/// # Errors
///
/// [`DataError::Read`] for a file that is not there, [`DataError::NoText`] for a folder without text.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        let metadata = path.metadata().map_err(|e| read_error(path, e))?;
        if !metadata.is_dir() {
            found.push(path.clone());
            continue;
        }
        let before = found.len();
        search(path, &mut found, &mut HashSet::new())?;
        if found.len() == before {
            return Err(DataError::NoText { path: path.clone() });
        }
    }
    Ok(found)
}

/// `seen` holds the real paths of the folders searched, as links may lead in circles.
fn search(
    folder: &Path,
    found: &mut Vec<PathBuf>,
    seen: &mut HashSet<PathBuf>,
) -> Result<(), DataError> {
    let real = folder.canonicalize().map_err(|e| read_error(folder, e))?;
    if !seen.insert(real) {
        return Ok(());
    }
    let entries = folder.read_dir().map_err(|e| read_error(folder, e))?;
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|e| read_error(folder, e))?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            search(&path, found, seen)?;
        } else if matches!(extensions(&path).0, "txt" | "md" | "jsonl") {
            found.push(path);
        }
    }
    Ok(())
}

/// Kind and compression of a file by its name: `a.jsonl.gz` is (`jsonl`, `gz`).
fn extensions(path: &Path) -> (&str, &str) {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let (stem, last) = name.rsplit_once('.').unwrap_or((name, ""));
    match last {
        "gz" | "zst" => (stem.rsplit_once('.').map_or("", |(_, kind)| kind), last),
        kind => (kind, ""),
    }
}

/// Reads a file's documents. `progress` is told the number of bytes read of the file as it lies on disk.
///
/// # Errors
///
/// [`DataError`] names the file and the place in it; also whatever `each` returns.
pub fn read<E: From<DataError>>(
    path: &Path,
    text_field: &str,
    progress: &dyn Fn(u64),
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let file = File::open(path).map_err(|e| read_error(path, e))?;
    let counted = Counted {
        inner: BufReader::with_capacity(1 << 16, file),
        progress,
    };
    let (kind, compression) = extensions(path);
    let reader: Box<dyn Read> = match compression {
        "gz" => Box::new(flate2::read::MultiGzDecoder::new(counted)),
        "zst" => Box::new(zstd::Decoder::new(counted).map_err(|e| read_error(path, e))?),
        _ => Box::new(counted),
    };
    let mut lines = Lines {
        path,
        reader: BufReader::with_capacity(1 << 16, reader),
        compressed: !compression.is_empty(),
        offset: 0,
    };
    if kind == "jsonl" {
        json_lines(path, &mut lines, text_field, each)
    } else {
        plain_text(path, &mut lines, each)
    }
}

fn plain_text<E: From<DataError>>(
    path: &Path,
    lines: &mut Lines,
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut piece = String::new();
    let mut any = false;
    while lines.append(&mut piece)? {
        any = true;
        if piece.len() >= PIECE {
            each(Piece::Text(&piece))?;
            piece.clear();
        }
    }
    if !any {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
        }
        .into());
    }
    if !piece.is_empty() {
        each(Piece::Text(&piece))?;
    }
    each(Piece::End)
}

fn json_lines<E: From<DataError>>(
    path: &Path,
    lines: &mut Lines,
    text_field: &str,
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let mut line = String::new();
    let mut any = false;
    for number in 1.. {
        line.clear();
        if !lines.append(&mut line)? {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        any = true;
        let wrong = |reason: String| DataError::Json {
            path: path.to_path_buf(),
            line: number,
            reason,
        };
        let json: serde_json::Value =
            serde_json::from_str(&line).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let text = json
            .get(text_field)
            .and_then(|text| text.as_str())
            .ok_or_else(|| {
                let keys = json
                    .as_object()
                    .map(|o| o.keys().cloned().collect::<Vec<_>>().join(", "));
                let keys = keys.unwrap_or_else(|| "no object".into());
                wrong(format!(
                    "no text under `{text_field}` (found: {keys}); set text_field to the right key"
                ))
            })?;
        each(Piece::Text(text))?;
        each(Piece::End)?;
    }
    if any {
        Ok(())
    } else {
        Err(DataError::Empty {
            path: path.to_path_buf(),
        }
        .into())
    }
}

fn read_error(path: &Path, source: io::Error) -> DataError {
    DataError::Read {
        path: path.to_path_buf(),
        source,
    }
}

/// Lines of a text, checked to be UTF-8; a byte order mark at its start is not part of it.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<Box<dyn Read + 'a>>,
    compressed: bool,
    offset: u64,
}

impl Lines<'_> {
    /// Appends the next line with its end to `text`; false at the end of the file.
    fn append(&mut self, text: &mut String) -> Result<bool, DataError> {
        let mut line = Vec::new();
        let read = self
            .reader
            .read_until(b'\n', &mut line)
            .map_err(|source| self.read_error(source, line.len()))?;
        match std::str::from_utf8(&line) {
            Ok(line) if self.offset == 0 => {
                text.push_str(line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line));
            }
            Ok(line) => text.push_str(line),
            Err(error) => {
                return Err(DataError::NotUtf8 {
                    path: self.path.to_path_buf(),
                    offset: self.offset + error.valid_up_to() as u64,
                });
            }
        }
        self.offset += read as u64;
        Ok(read > 0)
    }

    fn read_error(&self, source: io::Error, read: usize) -> DataError {
        let path = self.path.to_path_buf();
        if self.compressed {
            let offset = self.offset + read as u64;
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

/// A reader that reports how much was read.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn documents(path: &Path) -> Result<Vec<String>, DataError> {
        let mut documents = vec![String::new()];
        read(path, "text", &|_| (), &mut |piece| {
            match piece {
                Piece::Text(text) => documents.last_mut().unwrap().push_str(text),
                Piece::End => documents.push(String::new()),
            }
            Ok::<_, DataError>(())
        })?;
        documents.pop();
        Ok(documents)
    }

    fn compress(path: &Path, content: &[u8]) {
        let file = File::create(path).unwrap();
        if path.extension().unwrap() == "gz" {
            let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            out.write_all(content).unwrap();
            out.finish().unwrap();
        } else {
            zstd::stream::copy_encode(content, file, 1).unwrap();
        }
    }

    #[test]
    fn every_kind_of_file_gives_its_documents() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let jsonl = b"{\"text\": \"one\"}\n\n{\"text\": \"two\\nlines\"}\n";
        std::fs::write(file("a.txt"), "plain\ntext").unwrap();
        std::fs::write(file("b.jsonl"), jsonl).unwrap();
        compress(&file("c.jsonl.gz"), jsonl);
        compress(&file("d.txt.zst"), b"packed");
        std::fs::write(file("ignored.bin"), [0xff]).unwrap();
        let all = files(&[folder.path().to_path_buf()]).unwrap();
        let found: Vec<_> = all.iter().map(|f| documents(f).unwrap()).collect();
        let two = vec!["one".to_string(), "two\nlines".to_string()];
        assert_eq!(
            found,
            [
                vec!["plain\ntext".to_string()],
                two.clone(),
                two,
                vec!["packed".into()]
            ]
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("a.txt", "ab\n"), ("a.jsonl", "{\"text\": \"ab\\n\"}\n")] {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("\u{feff}{content}")).unwrap();
            assert_eq!(documents(&path).unwrap(), ["ab\n"]);
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_in_circles_are_followed_once() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("a.txt"), "text").unwrap();
        std::os::unix::fs::symlink(folder.path(), inner.join("up")).unwrap();
        let found = files(&[folder.path().to_path_buf()]).unwrap();
        assert_eq!(found, [inner.join("a.txt")]);
    }

    #[test]
    fn long_text_is_handed_on_in_pieces_that_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        let text = "a line of text é\n".repeat(200_000);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(documents(&path).unwrap(), [text]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let check = |name: &str, content: &[u8], expected: &str| {
            std::fs::write(file(name), content).unwrap();
            let error = documents(&file(name)).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        };
        check("empty.txt", b"", "empty");
        check("bytes.txt", b"ok\nab\xffcd", "byte 5 is not UTF-8");
        check("broken.jsonl", b"{\"text\": \"a\"}\n{\"text\": ", "line 2");
        check(
            "field.jsonl",
            b"{\"content\": \"a\"}\n",
            "no text under `text` (found: content)",
        );
        check(
            "cut.txt.gz",
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1],
            "damaged or cut off after 0 bytes of text",
        );
        let error = files(&[file("nowhere")]).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }
}
