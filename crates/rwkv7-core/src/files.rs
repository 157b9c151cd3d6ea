//! Reading files whose names come from outside: only regular files, and never more of them than expected.
//!
//! A pipe can block for ever, and a device such as `/dev/zero` has no end. A name that a user, a folder or another file gives may
//! lead to either, so models, tokenizers and their configurations are opened here.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
};

/// Opens a regular file, or a link to one.
///
/// ```
/// use rwkv7_core::files;
///
/// let error = files::open(std::env::temp_dir().as_path()).unwrap_err();
/// assert!(error.to_string().contains("a folder"));
/// ```
///
/// # Errors
///
/// Those of the file system, and [`io::ErrorKind::InvalidInput`] for a folder, a pipe, a socket or a device.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe may block, so its kind is looked at before.
    check(&path.metadata()?)?;
    let file = File::open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
///
/// As [`open`], and [`io::ErrorKind::FileTooLarge`] for a larger file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let expected = file.metadata()?.len();
    if expected > limit {
        return Err(too_large(expected, limit));
    }
    // Files of the system, such as those in /proc, say that they are empty, so what is read counts too.
    let mut content = Vec::with_capacity(expected as usize);
    file.take(limit.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(too_large(content.len() as u64, limit));
    }
    Ok(content)
}

/// [`read()`] of a text.
///
/// # Errors
///
/// As [`read()`], and [`io::ErrorKind::InvalidData`] for a file that is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let reason = format!("it is no UTF-8 text: byte {at} belongs to no character");
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })
}

/// Checks that a file may be written to `path`: nothing is there, or a regular file. Replacing a device or a pipe would remove it.
///
/// # Errors
///
/// Those of the file system, and [`io::ErrorKind::InvalidInput`] for a folder, a pipe, a socket or a device.
pub fn check_output(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(metadata) => check(&metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn check(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let reason = format!("it is {}; name a regular file", kind(metadata));
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

#[cfg(unix)]
fn kind(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

#[cfg(not(unix))]
fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        "a folder"
    } else {
        "no regular file"
    }
}

fn too_large(found: u64, limit: u64) -> io::Error {
    let reason = format!("it has {found} bytes or more, expected at most {limit}");
    io::Error::new(io::ErrorKind::FileTooLarge, reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_the_expected_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, u64::MAX).unwrap(), b"12345");
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let error = read(folder.path(), 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        std::fs::write(&path, b"a\xff").unwrap();
        let error = read_text(&path, 5).unwrap_err().to_string();
        assert!(error.contains("byte 1"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = open(&pipe).unwrap_err().to_string();
        assert!(error.contains("a named pipe"), "{error}");
        let error = check_output(&pipe).unwrap_err().to_string();
        assert!(error.contains("a named pipe"), "{error}");
        check_output(&folder.path().join("new")).unwrap();
        let error = read("/dev/zero".as_ref(), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("a device"), "{error}");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = open(&socket).unwrap_err().to_string();
        assert!(error.contains("a socket"), "{error}");
    }

    /// Its length is said to be 0.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_of_the_system_are_limited_too() {
        let path = "/proc/self/maps".as_ref();
        assert!(!read(path, 1 << 24).unwrap().is_empty());
        let error = read(path, 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
