//! Files that are complete or not there.

mod crash;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

pub use crash::point;
#[cfg(test)]
pub use crash::points_passed;

/// How the names of unfinished files begin. A process that is killed while it writes leaves one behind.
pub const TEMPORARY: &str = ".incomplete-";

/// Writes a file beside `path`, syncs it and renames it to `path`.
///
/// Whatever interrupts it, `path` holds either what it held before or all of the new content; on an error nothing is
/// left behind. The file keeps the permissions of the file that it replaces; a new one has those that the umask allows.
///
/// # Errors
///
/// Those of the file system and of `content`.
pub fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, |temporary| {
        let mut out = BufWriter::new(File::options().write(true).truncate(true).open(temporary)?);
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
    let folder = folder_of(path);
    let old = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    point();
    let temporary = temporary(folder, old.is_none())?.into_temp_path();
    content(&temporary)?;
    let file = File::open(&temporary)?;
    if let Some(old) = old {
        file.set_permissions(old.permissions())?;
    }
    point();
    file.sync_all()?;
    point();
    temporary.persist(path).map_err(|error| error.error)?;
    point();
    sync_folder(folder)?;
    point();
    Ok(())
}

/// Renames a file or folder within its folder, durably.
///
/// # Errors
///
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    point();
    fs::rename(from, to)?;
    point();
    sync_folder(folder_of(to))?;
    point();
    Ok(())
}

/// Makes a folder and those above it, unless they are there.
///
/// # Errors
///
/// Those of the file system.
pub fn create_folder(path: &Path) -> io::Result<()> {
    point();
    fs::create_dir_all(path)?;
    point();
    Ok(())
}

/// Removes a folder with all that it holds.
///
/// # Errors
///
/// Those of the file system.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    point();
    fs::remove_dir_all(path)?;
    point();
    Ok(())
}

/// Whether this is the name of a file that a killed process left half-written, here or in the crates below.
pub fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with(TEMPORARY) || name.starts_with(".tmp"))
}

/// Removes the files that killed processes left half-written in this folder.
///
/// # Errors
///
/// Those of the file system.
pub fn remove_temporary(folder: &Path) -> io::Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        if is_temporary(&entry.file_name()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// An unfinished file: private to its owner where it will replace another one, or else an ordinary file.
fn temporary(folder: &Path, ordinary: bool) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    if ordinary {
        use std::os::unix::fs::PermissionsExt;
        // The system takes away what the umask forbids.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    #[cfg(not(unix))]
    let _ = ordinary;
    builder.tempfile_in(folder)
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
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// A text that only its owner may read stays so, and a new file is what the umask makes of any new file.
    #[cfg(unix)]
    #[test]
    fn a_file_keeps_its_permissions_and_a_new_one_obeys_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let [ours, plain] = ["ours", "plain"].map(|name| folder.path().join(name));
        File::create(&plain).unwrap();
        write(&ours, |out| out.write_all(b"new")).unwrap();
        assert_eq!(mode(&ours), mode(&plain));
        for private in [0o600, 0o640] {
            fs::set_permissions(&ours, fs::Permissions::from_mode(private)).unwrap();
            write(&ours, |out| out.write_all(b"newer")).unwrap();
            assert_eq!(mode(&ours), private);
        }
    }

    #[test]
    fn files_that_a_killed_process_left_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".incomplete-abc", ".tmpXYZ", "metrics.jsonl", ".hidden"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_temporary(folder.path()).unwrap();
        let left = folder.path().read_dir().unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".hidden", "metrics.jsonl"]);
    }
}
