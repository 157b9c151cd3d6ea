//! The header of the safetensors files that are written here: its text, and its checksum.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::json;

use super::read::HEADER;

/// The checksum of the names, types and shapes of all tensors and of all metadata but the checksum's own entry. The order in which
/// they stand in the file does not count, so a program that copies tensors and metadata keeps the checksum right.
pub fn checksum<'a>(
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
) -> String {
    let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
    let tensors: BTreeMap<_, _> = tensors
        .into_iter()
        .map(|(name, dtype, shape)| (name, format!("{dtype} {shape:?}")))
        .collect();
    let mut hasher = crc32fast::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for (key, value) in metadata {
        if key != HEADER {
            part(key);
            part(value);
        }
    }
    for (name, content) in tensors {
        part(name);
        part(&content);
    }
    format!("{:08x}", hasher.finalize())
}

/// Name, type, shape and length in bytes of a tensor.
pub struct Entry<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub length: usize,
}

/// The header of a file with these tensors in this order and these metadata: its length and its text, as the file begins with them.
/// The same tensors and metadata give the same bytes.
pub fn write(entries: &[Entry], mut metadata: BTreeMap<&str, String>) -> Vec<u8> {
    let tensors = entries
        .iter()
        .map(|entry| (entry.name, entry.dtype, entry.shape.as_slice()));
    let own = checksum(metadata.iter().map(|(k, v)| (*k, v.as_str())), tensors);
    metadata.insert(HEADER, own);
    let mut fields = vec![format!("\"__metadata__\":{}", json!(metadata))];
    let mut offset = 0;
    for entry in entries {
        let (name, end) = (json!(entry.name), offset + entry.length);
        fields.push(format!(
            "{name}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            entry.dtype,
            json!(entry.shape)
        ));
        offset = end;
    }
    let mut text = format!("{{{}}}", fields.join(",")).into_bytes();
    // Tensors begin at a multiple of 8 bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}
