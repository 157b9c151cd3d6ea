//! Documents from files: plain text, `.jsonl`, folders of these, and `.gz` or `.zst` of them.

mod lines;

use std::{
    collections::HashSet,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{DataError, read_error};
use lines::Lines;

/// Text is handed on in pieces of about this size, split at line ends: memory stays constant, and only a token that would span
/// such a split is lost. A longer line is split between two characters.
const PIECE: usize = 1 << 20;

/// The longest line of a `.jsonl` file, which is read as a whole.
const JSON_LINE: usize = 32 << 20;

/// Endings of files that hold text in a structure of their own, or packed: to train on their bytes is a mistake.
const STRUCTURED: [&str; 29] = [
    "json",
    "csv",
    "tsv",
    "parquet",
    "arrow",
    "feather",
    "avro",
    "orc",
    "xls",
    "xlsx",
    "ods",
    "odt",
    "doc",
    "docx",
    "pdf",
    "epub",
    "db",
    "sqlite",
    "npy",
    "npz",
    "pt",
    "pth",
    "safetensors",
    "zip",
    "tar",
    "tgz",
    "bz2",
    "xz",
    "7z",
];

/// A part of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text of the current document.
    Text(&'a str),
    /// The document is complete.
    End,
}

/// The files with text at `paths`: files and pipes as they are, folders searched through in the order of names. The log says how
/// many files of a folder are read and left out.
///
/// # Errors
///
/// [`DataError::Read`] for a file that is not there, [`DataError::NotText`] for one that is no text by its name,
/// [`DataError::NoText`] for a folder without text.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        let metadata = path.metadata().map_err(|e| read_error(path, e))?;
        if !metadata.is_dir() {
            check_name(path)?;
            found.push(path.clone());
            continue;
        }
        let before = found.len();
        let mut left_out = Vec::new();
        search(path, &mut found, &mut left_out, &mut HashSet::new())?;
        let read = found.len() - before;
        if read == 0 {
            return Err(DataError::NoText { path: path.clone() });
        }
        if let Some(first) = left_out.first() {
            log::info!(
                "{}: read {read} of {} files; left out, for example, {}",
                path.display(),
                read + left_out.len(),
                first.display()
            );
        }
    }
    Ok(found)
}

/// `seen` holds the real paths of the folders searched, as links may lead in circles.
fn search(
    folder: &Path,
    found: &mut Vec<PathBuf>,
    left_out: &mut Vec<PathBuf>,
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
            search(&path, found, left_out, seen)?;
        } else if path.is_file()
            && matches!(Kind::of(&path).format.as_str(), "txt" | "md" | "jsonl")
        {
            found.push(path);
        } else {
            left_out.push(path);
        }
    }
    Ok(())
}

/// What a file's name says of its content.
pub(super) struct Kind {
    /// `jsonl` for JSON lines, else the ending in small letters, without that of the compression.
    pub format: String,
    /// `gz`, `zst` or nothing.
    pub compression: String,
}

impl Kind {
    /// `a.JSONL.gz` is (`jsonl`, `gz`).
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_lowercase();
        let (stem, last) = name.rsplit_once('.').unwrap_or((name.as_str(), ""));
        let (format, compression) = match last {
            "gz" | "zst" => (stem.rsplit_once('.').map_or("", |(_, format)| format), last),
            format => (format, ""),
        };
        let format = if format == "ndjson" { "jsonl" } else { format };
        Self {
            format: format.into(),
            compression: compression.into(),
        }
    }
}

fn check_name(path: &Path) -> Result<(), DataError> {
    let format = Kind::of(path).format;
    if !STRUCTURED.contains(&format.as_str()) {
        return Ok(());
    }
    Err(DataError::NotText {
        path: path.to_path_buf(),
        reason: format!(
            "a .{format} file is no plain text; write its texts to .txt files, or to a .jsonl file with one object a line"
        ),
    })
}

/// Reads the documents in `content`; `path` says by its name what the content is.
///
/// # Errors
///
/// [`DataError`] names the file and the place in it; also whatever `each` returns.
pub fn read<E: From<DataError>>(
    path: &Path,
    content: impl Read,
    text_field: &str,
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<(), E> {
    let Kind {
        format,
        compression,
    } = Kind::of(path);
    let content = BufReader::with_capacity(1 << 16, content);
    let reader: Box<dyn Read + '_> = match compression.as_str() {
        "gz" => Box::new(flate2::bufread::MultiGzDecoder::new(content)),
        "zst" => {
            let decoder = zstd::Decoder::with_buffer(content);
            Box::new(decoder.map_err(|e| read_error(path, e))?)
        }
        _ => Box::new(content),
    };
    let mut lines = Lines::new(path, reader, !compression.is_empty());
    let any = match format.as_str() {
        "jsonl" => json_lines(&mut lines, text_field, each)?,
        _ => plain_text(&mut lines, each)?,
    };
    match any {
        true => Ok(()),
        false => Err(DataError::Empty {
            path: path.to_path_buf(),
        }
        .into()),
    }
}

/// The whole file is one document. Returns whether there was any text.
fn plain_text<E: From<DataError>>(
    lines: &mut Lines,
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<bool, E> {
    let mut piece = String::new();
    let mut any = false;
    while let Some(text) = lines.next(PIECE)? {
        any = true;
        piece.push_str(text);
        if piece.len() >= PIECE {
            each(Piece::Text(&piece))?;
            piece.clear();
        }
    }
    if !any {
        return Ok(false);
    }
    if !piece.is_empty() {
        each(Piece::Text(&piece))?;
    }
    each(Piece::End)?;
    Ok(true)
}

/// Every line is a document. Returns whether there was one.
fn json_lines<E: From<DataError>>(
    lines: &mut Lines,
    text_field: &str,
    each: &mut dyn FnMut(Piece) -> Result<(), E>,
) -> Result<bool, E> {
    let path = lines.path.to_path_buf();
    let mut any = false;
    for number in 1.. {
        let wrong = |reason: String| DataError::Json {
            path: path.clone(),
            line: number,
            reason,
        };
        // With room for a character that is cut at the end.
        let Some(line) = lines.next(JSON_LINE + 4)? else {
            break;
        };
        if line.len() > JSON_LINE {
            return Err(wrong(format!(
                "longer than {} MiB; split the document, or convert the file to one object a line",
                JSON_LINE >> 20
            ))
            .into());
        }
        if line.trim().is_empty() {
            continue;
        }
        any = true;
        let text = json_text(line, text_field).map_err(wrong)?;
        if text.contains('\0') {
            return Err(wrong(format!(
                "the text under `{text_field}` holds a NUL character, which is no text; remove it"
            ))
            .into());
        }
        for piece in pieces(&text) {
            each(Piece::Text(piece))?;
        }
        each(Piece::End)?;
    }
    Ok(any)
}

/// The text under `text_field` in a JSON object.
fn json_text(line: &str, text_field: &str) -> Result<String, String> {
    use serde_json::Value;
    let json: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let Value::Object(mut object) = json else {
        return Err(format!(
            "{}, expected an object with a text under `{text_field}`",
            kind(&json)
        ));
    };
    match object.remove(text_field) {
        Some(Value::String(text)) => Ok(text),
        Some(value) => Err(format!(
            "`{text_field}` holds {}, expected a text; remove the line, or name another key by text_field",
            kind(&value)
        )),
        None => {
            let keys: Vec<String> = object.into_iter().map(|(key, _)| key).collect();
            Err(format!(
                "no text under `{text_field}` (found: {}); name the key of the text by text_field",
                keys.join(", ").chars().take(200).collect::<String>()
            ))
        }
    }
}

/// A text in parts of about [`PIECE`] bytes that end with a line, or between two characters where a line is longer.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = match text.len() {
            0 => return None,
            length if length <= PIECE => length,
            _ => {
                let end = text.floor_char_boundary(PIECE);
                text[..end].rfind('\n').map_or(end, |at| at + 1)
            }
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    fn documents(path: &Path) -> Result<Vec<String>, DataError> {
        let mut documents = vec![String::new()];
        read(path, File::open(path).unwrap(), "text", &mut |piece| {
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
        std::fs::write(file("a.TXT"), "plain\ntext").unwrap();
        std::fs::write(file("b.ndjson"), jsonl).unwrap();
        compress(&file("c.JSONL.gz"), jsonl);
        compress(&file("d.txt.zst"), b"packed");
        std::fs::write(file("ignored.bin"), [0xff]).unwrap();
        std::fs::write(file("ignored.csv"), "id,text\n").unwrap();
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

    /// The largest piece, and all of them together.
    fn joined(path: &Path) -> (usize, String) {
        let (mut largest, mut text) = (0, String::new());
        read(path, File::open(path).unwrap(), "text", &mut |piece| {
            if let Piece::Text(piece) = piece {
                largest = largest.max(piece.len());
                text.push_str(piece);
            }
            Ok::<_, DataError>(())
        })
        .unwrap();
        (largest, text)
    }

    /// Memory depends on the pieces: lines, documents and packed files of any length give small ones.
    #[test]
    fn long_text_is_handed_on_in_pieces_that_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        // One byte before them lets characters of two bytes lie across the ends of pieces.
        for text in [
            "a line of text é\n".repeat(200_000),
            format!("a{}", "é".repeat(2_000_000)),
        ] {
            std::fs::write(&path, &text).unwrap();
            let (largest, found) = joined(&path);
            assert!(found == text && largest < 2 * PIECE, "{largest}");
            let json = folder.path().join("long.jsonl");
            std::fs::write(&json, serde_json::json!({ "text": text }).to_string()).unwrap();
            let (largest, found) = joined(&json);
            assert!(found == text && largest <= PIECE, "{largest}");
            let packed = folder.path().join("long.txt.zst");
            compress(&packed, text.as_bytes());
            assert!(joined(&packed) == joined(&path));
        }
    }

    #[test]
    fn a_line_of_json_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(
            &path,
            format!("{{\"text\": \"a\"}}\n{}", "x".repeat(JSON_LINE + 1)),
        )
        .unwrap();
        let error = documents(&path).unwrap_err().to_string();
        assert!(error.contains("line 2: longer than 32 MiB"), "{error}");
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
            "null.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": null}\n",
            "line 2: `text` holds null, expected a text",
        );
        check(
            "number.jsonl",
            b"{\"text\": 3}\n",
            "line 1: `text` holds a number",
        );
        check(
            "list.jsonl",
            b"{\"text\": [\"a\"]}\n",
            "line 1: `text` holds a list",
        );
        check("line.jsonl", b"[1]\n", "line 1: a list, expected an object");
        check(
            "nul.jsonl",
            b"{\"text\": \"a\\u0000\"}\n",
            "line 1: the text under `text` holds a NUL",
        );
        check("nul.txt", b"ok\na\0b", "byte 4 is NUL");
        check("utf16.txt", b"\xff\xfea\0", "the text is UTF-16");
        check(
            "end.txt",
            "é".as_bytes().split_at(1).0,
            "byte 0 is not UTF-8",
        );
        check(
            "cut.txt.gz",
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1],
            "damaged or cut off after 0 bytes of text",
        );
        let error = files(&[file("nowhere")]).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
        for name in ["a.json", "a.CSV", "a.json.gz", "a.parquet"] {
            std::fs::write(file(name), "text").unwrap();
            let error = files(&[file(name)]).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("is no plain text"),
                "{error}"
            );
        }
    }
}
