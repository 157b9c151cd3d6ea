//! Files that are complete or not there.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// How the names of unfinished files begin. A process that is killed while it writes leaves one behind.
pub const TEMPORARY: &str = ".incomplete-";

/// Writes a file beside `path`, syncs it and renames it to `path`.
///
/// Whatever interrupts it, `path` holds either what it held before or all of the new content; on an error nothing is
/// left behind.
///
/// # Errors
///
/// Those of the file system and of `content`.
pub fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, |temporary| {
        let mut out = BufWriter::new(File::create(temporary)?);
        content(&mut out)?;
        out.flush()
    })
}

/// [`write()`] for content that something else writes to a file of a given path.
///
/// # Errors
///
/// Those of the file system and of `content`.
pub fn replace(path: &Path, content: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(folder)?
        .into_temp_path();
    content(&temporary)?;
    let file = File::open(&temporary)?;
    make_readable(&file)?;
    file.sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Temporary files are private to their owner; the finished one is an ordinary file.
#[cfg(unix)]
fn make_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Makes the rename itself durable.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_error_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::other("no room"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
