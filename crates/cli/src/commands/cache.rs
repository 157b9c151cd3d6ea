//! `metastate cache`: the folder of tokenized texts.

use std::{io, path::PathBuf, time::Duration};

use recipes::data::cache::Cache;
use serde_json::json;

use crate::{Outcome, cli};

use super::report;

/// A folder that cannot be listed or emptied.
#[derive(Debug, thiserror::Error)]
#[error("{}: the folder of tokenized texts cannot be read or emptied", folder.display())]
struct CacheError {
    folder: PathBuf,
    source: io::Error,
}

/// Lists the token files, or removes them.
pub fn run(args: cli::Cache) -> Outcome {
    let cache = Cache::of_user();
    let folder = cache.folder().display().to_string();
    let failed = |source| CacheError {
        folder: cache.folder().to_path_buf(),
        source,
    };
    let entries = cache.entries().map_err(failed)?;
    if args.clear {
        let freed = cache.clear().map_err(failed)?;
        let object = json!({"folder": folder, "removed": entries.len(), "bytes": freed});
        report(args.json, object, || {
            format!(
                "{folder}: token files removed: {}, {}",
                entries.len(),
                megabytes(freed)
            )
        });
        return Ok(());
    }
    let (total, limit) = (entries.iter().map(|e| e.bytes).sum::<u64>(), Cache::limit());
    let age = |used: std::time::SystemTime| used.elapsed().unwrap_or_default();
    let files = entries.iter().map(|entry| {
        let name = entry.path.file_name().unwrap_or_default();
        json!({
            "name": name.to_string_lossy(), "bytes": entry.bytes, "seconds_since_use": age(entry.used).as_secs(),
        })
    });
    let files: Vec<_> = files.collect();
    let object = json!({"folder": folder, "bytes": total, "limit_bytes": limit, "files": files});
    report(args.json, object, || {
        let mut lines = vec![format!(
            "{folder}: token files: {}, {} of at most {}",
            entries.len(),
            megabytes(total),
            megabytes(limit)
        )];
        lines.extend(entries.iter().rev().map(|entry| {
            let name = entry.path.file_name().unwrap_or_default();
            let (size, used) = (megabytes(entry.bytes), ago(age(entry.used)));
            format!("{}  {size:>12}  used {used}", name.to_string_lossy())
        }));
        lines.join("\n")
    });
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn ago(age: Duration) -> String {
    let minutes = age.as_secs() / 60;
    match (minutes, minutes / 60, minutes / 60 / 24) {
        (0, ..) => "less than a minute ago".into(),
        (minutes, 0, _) => format!("{minutes} min ago"),
        (_, hours, 0) => format!("{hours} h ago"),
        (.., days) => format!("{days} d ago"),
    }
}
