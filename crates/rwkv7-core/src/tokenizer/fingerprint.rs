//! The identity of a tokenizer.

use twox_hash::XxHash3_128;

/// The hash of a kind of tokenizer and of the bytes of a file, as 32 hexadecimal digits.
pub(super) fn fingerprint(kind: &str, file: &[u8]) -> String {
    let mut hash = XxHash3_128::new();
    hash.write(kind.as_bytes());
    hash.write(&[0]);
    hash.write(file);
    format!("{:032x}", hash.finish_128())
}
