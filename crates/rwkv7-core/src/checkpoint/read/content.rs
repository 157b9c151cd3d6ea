//! What a file is, by its first bytes.

use std::path::Path;

/// Largest header of a safetensors file, by the format.
const LARGEST_HEADER: u64 = 100_000_000;

/// Whether this is the beginning of a safetensors file: the length of the header, and the header's opening brace.
pub fn is_safetensors(start: &[u8]) -> bool {
    start.get(8) == Some(&b'{')
        && start
            .first_chunk::<8>()
            .is_some_and(|length| u64::from_le_bytes(*length) <= LARGEST_HEADER)
}

/// Things that people take for models: what the file is, and what to do.
pub fn other(start: &[u8], path: &Path) -> Option<(String, &'static str)> {
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let begins = |marks: &[&[u8]]| marks.iter().any(|mark| start.starts_with(mark));
    if text.starts_with("version https://git-lfs") {
        let size = text
            .split_once("size ")
            .map(|(_, size)| size.chars().take_while(char::is_ascii_digit).collect())
            .filter(|size: &String| !size.is_empty())
            .map(|size| format!(" of {size} bytes"))
            .unwrap_or_default();
        return Some((
            format!("a Git LFS pointer in the place of a file{size}"),
            "fetch the file itself with `git lfs pull`, or download it from the page of its repository",
        ));
    }
    if ["<!doctype", "<html", "<?xml", "<head"]
        .iter()
        .any(|mark| text.starts_with(mark))
    {
        return Some((
            "a web page, not a model".into(),
            "download the file itself: links to files of Hugging Face have `/resolve/` in them, and some need a login",
        ));
    }
    if text.starts_with(['{', '[']) {
        let remedy = match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.ends_with(".index.json") => {
                "it is the list of a model's shards; name the folder that holds the list and the shards"
            }
            _ => "name the file with the weights, or the folder of the model",
        };
        return Some(("a JSON text, not a model".into(), remedy));
    }
    if begins(&[
        b"GGUF", b"ggml", b"ggmf", b"ggjt", b"lmgg", b"fmgg", b"tjgg",
    ]) {
        return Some((
            "a GGUF or ggml file of llama.cpp or rwkv.cpp".into(),
            "fetch the official .pth or a safetensors file of the same model",
        ));
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive".into(), "unpack it"));
    }
    if begins(&[
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ",
        b"BZh",
        b"7z\xbc\xaf",
        b"Rar!",
    ]) {
        return Some(("a compressed file".into(), "unpack it"));
    }
    None
}
