//! Text files as token ids: made once, and found again by the content of the text and of the tokenizer.

use std::{
    io,
    path::{Path, PathBuf},
};

use rwkv7_core::tokenizer::{Tokenizer, TokenizerError};
use twox_hash::XxHash3_128;

use crate::atomic;

use super::{
    DataError,
    cache::Cache,
    inputs::{self, Input, Progress},
    source::{self, Kind, Piece},
    tokens::{TokenFile, Writer},
};

/// Changes when the same text and tokenizer give other token files.
const VERSION: &[u8] = b"2";

/// Text files and the tokenizer for them.
pub struct Corpus<'a> {
    /// Files, folders and pipes.
    pub paths: &'a [PathBuf],
    /// The key of the text in `.jsonl` files.
    pub text_field: &'a str,
    /// Makes the ids.
    pub tokenizer: &'a dyn Tokenizer,
}

impl Corpus<'_> {
    /// The corpus as ids: from the cache in the folder `cache` if it is there and whole, else tokenized now. A log line every few
    /// seconds says how far it is.
    ///
    /// # Errors
    ///
    /// [`DataError`] names the file and the place in it. Nothing is left behind.
    pub fn tokenize(&self, cache: &Path) -> Result<TokenFile, DataError> {
        let cache = Cache::new(cache);
        let paths = source::files(self.paths)?;
        let inputs = inputs::read(paths, &cache)?;
        let fingerprint = self.fingerprint(&inputs);
        let path = cache.file(&self.key(&fingerprint));
        let open = || {
            let file = TokenFile::open(&path, &fingerprint, self.tokenizer.vocab_size())?;
            cache.used(&path);
            Ok(file)
        };
        if path.is_file() {
            match open() {
                Err(DataError::Damaged { reason, .. }) => {
                    log::warn!("{}: {reason}; tokenizing again", path.display());
                }
                // Another process has just made room.
                Err(DataError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                other => return other,
            }
        }
        self.make(&inputs, &cache, &path)?;
        open()
    }

    /// What tells the text from every other one: the content of the files, and what their names say of it.
    fn fingerprint(&self, inputs: &[Input]) -> String {
        let mut hash = XxHash3_128::new();
        let mut add = |part: &[u8]| {
            hash.write(&(part.len() as u64).to_le_bytes());
            hash.write(part);
        };
        for input in inputs {
            let Kind {
                format,
                compression,
            } = Kind::of(&input.path);
            let lines = format == "jsonl";
            add(if lines {
                self.text_field.as_bytes()
            } else {
                &[]
            });
            add(if lines { b"jsonl" } else { b"plain" });
            add(compression.as_bytes());
            add(&input.bytes.to_le_bytes());
            add(&input.hash.to_le_bytes());
        }
        format!("{:032x}", hash.finish_128())
    }

    /// The name of the token file of this text and this tokenizer.
    fn key(&self, fingerprint: &str) -> String {
        let mut hash = XxHash3_128::new();
        for part in [
            VERSION,
            fingerprint.as_bytes(),
            self.tokenizer.fingerprint().as_bytes(),
        ] {
            hash.write(part);
        }
        format!("{:032x}", hash.finish_128())
    }

    /// Tokenizes the text into the file `path`.
    fn make(&self, inputs: &[Input], cache: &Cache, path: &Path) -> Result<(), DataError> {
        let failed = |source| DataError::Write {
            path: path.to_path_buf(),
            source,
        };
        std::fs::create_dir_all(cache.folder()).map_err(failed)?;
        // An error of the data passes through the writer's: `Result` of a `Result`.
        let mut problem = None;
        // The lock of the file is held until the file has its name.
        let mut locked = None;
        let written = atomic::replace(path, |temporary| {
            let mut out = Writer::create(temporary, self.tokenizer.vocab_size())?;
            match self.write(inputs, &mut out) {
                Ok(()) => {
                    locked = Some(out.finish()?);
                    Ok(())
                }
                Err(WriteError::Io(error)) => Err(error),
                Err(WriteError::Data(error)) => {
                    problem = Some(error);
                    Err(io::Error::other("unusable data"))
                }
            }
        });
        drop(locked);
        match (problem, written) {
            (Some(error), _) => Err(error),
            (None, written) => written.map_err(failed),
        }
    }

    fn write(&self, inputs: &[Input], out: &mut Writer) -> Result<(), WriteError> {
        let progress = Progress::new("tokenizing", inputs.iter().map(|input| input.bytes).sum());
        let vocab_size = self.tokenizer.vocab_size();
        let end = self.tokenizer.end_of_text();
        for input in inputs {
            let mut content = input.content(&progress)?;
            source::read(&input.path, &mut content, self.text_field, &mut |piece| {
                let Piece::Text(text) = piece else {
                    return out.push(&[end], &[], 0).map_err(WriteError::Io);
                };
                let tokenizer_error = |source| DataError::Tokenizer {
                    path: input.path.clone(),
                    source,
                };
                let (ids, ends) = self
                    .tokenizer
                    .encode_with_ends(text)
                    .map_err(tokenizer_error)?;
                if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    let error = TokenizerError::UnknownId { id, vocab_size };
                    return Err(tokenizer_error(error).into());
                }
                out.push(&ids, &ends, text.len()).map_err(WriteError::Io)
            })?;
            content.check(input)?;
        }
        match (out.text_bytes(), inputs.first()) {
            (0, Some(input)) => Err(DataError::Empty {
                path: input.path.clone(),
            }
            .into()),
            _ => Ok(()),
        }
    }
}

enum WriteError {
    Io(io::Error),
    Data(DataError),
}

impl From<DataError> for WriteError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;

    use rwkv7_core::tokenizer::{ByteTokenizer, WorldTokenizer};

    use super::*;

    fn corpus(paths: &[PathBuf]) -> Corpus<'_> {
        Corpus {
            paths,
            text_field: "text",
            tokenizer: &ByteTokenizer,
        }
    }

    fn ids(file: &TokenFile) -> Vec<u32> {
        file.ids(0..file.len()).unwrap()
    }

    #[test]
    fn documents_end_with_the_end_of_text_and_the_file_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.jsonl");
        std::fs::write(
            &source,
            "{\"text\": \"ab\"}\n{\"text\": \"\"}\n{\"text\": \"c\"}\n",
        )
        .unwrap();
        let cache = folder.path().join("cache");
        let paths = [source.clone()];
        let file = corpus(&paths).tokenize(&cache).unwrap();
        let expected = [97, 98, 0, 0, 99, 0];
        assert_eq!(ids(&file), expected);
        assert_eq!(file.text_bytes(0..6, &ByteTokenizer).unwrap(), 3);

        // The same file is used again, also under another name.
        let entry = || cache.read_dir().unwrap().next().unwrap().unwrap().path();
        let content = std::fs::read(entry()).unwrap();
        std::fs::rename(&source, folder.path().join("b.ndjson")).unwrap();
        let again = corpus(&[folder.path().join("b.ndjson")])
            .tokenize(&cache)
            .unwrap();
        assert_eq!(again.fingerprint(), file.fingerprint());
        assert_eq!(cache.read_dir().unwrap().count(), 1);

        // A damaged file is noticed and made again.
        for at in [4, 8, 12, 16, 24, 32, content.len() - 1] {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            std::fs::write(entry(), &damaged).unwrap();
            let file = corpus(&[folder.path().join("b.ndjson")])
                .tokenize(&cache)
                .unwrap();
            assert_eq!(ids(&file), expected, "byte {at}");
            assert_eq!(std::fs::read(entry()).unwrap(), content, "byte {at}");
        }
    }

    /// Neither size nor time nor name tell one text or tokenizer from another.
    #[test]
    fn another_text_or_tokenizer_of_the_same_name_size_and_time_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let path = folder.path().join("a.txt");
        let tokens = |text: &str, tokenizer: &dyn Tokenizer| {
            std::fs::write(&path, text).unwrap();
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
            let paths = [path.clone()];
            let corpus = Corpus {
                tokenizer,
                ..corpus(&paths)
            };
            let file = corpus.tokenize(&cache).unwrap();
            (ids(&file), file.fingerprint().to_string())
        };
        let (first, fingerprint) = tokens("ab", &ByteTokenizer);
        let (second, other) = tokens("ba", &ByteTokenizer);
        assert_eq!([first, second], [[97, 98, 0], [98, 97, 0]]);
        assert_ne!(fingerprint, other);
        // Two vocabularies, of which one has a and b exchanged.
        let vocabulary = |exchanged: bool| {
            let id = |byte: usize| match byte {
                97 if exchanged => 99,
                98 if exchanged => 98,
                byte => byte + 1,
            };
            let text: String = (0..256)
                .map(|b| format!("{} b'\\x{b:02x}' 1\n", id(b)))
                .collect();
            WorldTokenizer::from_bytes(text.as_bytes(), Path::new("v.txt")).unwrap()
        };
        assert_eq!(
            tokens("ab", &vocabulary(false)),
            (vec![98, 99, 0], fingerprint.clone())
        );
        assert_eq!(
            tokens("ab", &vocabulary(true)),
            (vec![99, 98, 0], fingerprint)
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_read_once_and_a_device_is_refused() {
        use std::{io::Write, os::fd::AsRawFd};
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"abc").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let file = corpus(&[path]).tokenize(&cache).unwrap();
        assert_eq!(ids(&file), [97, 98, 99, 0]);
        assert_eq!(cache.read_dir().unwrap().count(), 1);
        let error = corpus(&["/dev/zero".into()])
            .tokenize(&cache)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/dev/zero: it is a device"), "{error}");
    }

    #[test]
    fn unusable_text_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.jsonl");
        let cache = folder.path().join("cache");
        let refused = |content: &[u8]| {
            std::fs::write(&source, content).unwrap();
            let error = corpus(std::slice::from_ref(&source))
                .tokenize(&cache)
                .err()
                .unwrap();
            assert_eq!(cache.read_dir().unwrap().count(), 0);
            error
        };
        let error = refused(b"{\"text\": \"a\"}\n\xff");
        assert!(
            matches!(error, DataError::NotUtf8 { offset: 14, .. }),
            "{error}"
        );
        let error = refused(b"{\"text\": \"\"}\n{\"text\": \"\"}\n");
        assert!(matches!(error, DataError::Empty { .. }), "{error}");
    }
}
