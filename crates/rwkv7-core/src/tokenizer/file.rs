//! Reading a tokenizer's file, and telling what a file is that is none.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
};

use serde::de::IgnoredAny;

use crate::files;

/// Bytes of the largest tokenizer file that is read. The largest published files have a quarter of this.
pub const LARGEST_FILE: u64 = 128 << 20;

/// The content of a regular file of at most 128 MiB.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path.is_dir() {
        let reason = "it is a folder; name the file in it, such as tokenizer.json";
        return Err(io::Error::other(reason));
    }
    files::read(path, LARGEST_FILE)
}

/// Keys by which other JSON files of a model's folder are known, and what such a file is.
const OTHERS: [(&str, &str); 7] = [
    ("weight_map", "the index of a model's weights"),
    ("architectures", "a model's config.json"),
    ("model_type", "a model's config.json"),
    (
        "tokenizer_class",
        "a tokenizer_config.json, which holds settings and no vocabulary",
    ),
    (
        "added_tokens_decoder",
        "a tokenizer_config.json, which holds settings and no vocabulary",
    ),
    (
        "eos_token",
        "a special_tokens_map.json, which holds no vocabulary",
    ),
    ("eos_token_id", "a generation_config.json"),
];

/// What is wrong with a JSON file that is no `tokenizer.json`, if that shows in its keys.
pub(super) fn not_a_tokenizer(json: &[u8]) -> Option<String> {
    const WANTED: &str = "expected the tokenizer.json that belongs to it";
    let keys: BTreeMap<String, IgnoredAny> = match serde_json::from_slice(json) {
        Ok(keys) => keys,
        Err(error) => return Some(format!("no JSON: {error}")),
    };
    if keys.contains_key("model") && !keys.contains_key("model_type") {
        return None;
    }
    let known = OTHERS.iter().find(|(key, _)| keys.contains_key(*key));
    Some(match known {
        Some((_, what)) => format!("this is {what}; {WANTED}"),
        None if serde_json::from_slice::<HashMap<String, u64>>(json).is_ok() => format!(
            "this is a vocab.json, which holds the ids of tokens and not how text is cut into them; {WANTED}"
        ),
        None => format!("this is no tokenizer.json, as it has no key `model`; {WANTED}"),
    })
}

/// What a file without JSON is that is no World vocabulary, if that shows in its first bytes.
pub(super) fn not_a_vocabulary(content: &[u8]) -> Option<&'static str> {
    let starts = |prefix: &[u8]| content.starts_with(prefix);
    if content.is_empty() {
        Some("an empty file")
    } else if starts(b"#version") {
        Some(
            "a merges.txt, which is half of a tokenizer; expected the tokenizer.json that belongs to it",
        )
    } else if starts(b"version https://git-lfs") {
        Some("a pointer of Git LFS to the file; get the file itself by `git lfs pull`")
    } else if starts(b"<!DOCTYPE") || starts(b"<!doctype") || starts(b"<html") {
        Some("a web page; get the file itself")
    } else if starts(b"\n\x0e\n\x05<unk>")
        || starts(b"\n\x07\n\x05<unk>")
        || content.iter().take(4096).any(|&b| b == 0)
    {
        Some(
            "a binary file, perhaps a tokenizer.model of SentencePiece; expected a tokenizer.json or an RWKV World vocabulary",
        )
    } else {
        None
    }
}
