use std::io::Write;

use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// Data that is not part of the repository: the folder named by METASTATE_DATA, or `shared/data` beside the checkout.
fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("METASTATE_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = folder.join(name);
    if path.is_file() {
        return Some(path);
    }
    let _ = writeln!(
        std::io::stderr(),
        "skipped: {name} not found; set METASTATE_DATA to the folder that holds it"
    );
    None
}

/// A vocabulary of all bytes and these tokens, in Python's notation, from id 257.
fn vocabulary(extra: &[(&str, usize)]) -> String {
    let mut text: String = (0..256)
        .map(|b| format!("{} b'\\x{b:02x}' 1\n", b + 1))
        .collect();
    for (i, (literal, length)) in extra.iter().enumerate() {
        text += &format!("{} {literal} {length}\n", 257 + i);
    }
    text
}

fn world(text: &str) -> Result<WorldTokenizer, TokenizerError> {
    WorldTokenizer::from_bytes(text.as_bytes(), Path::new("vocab.txt"))
}

/// Ids of the published tokenizer: `docs/src/checkpoints.md`, "Tokenizers".
#[test]
fn golden_ids_of_the_published_vocabulary() {
    let Some(path) = data("vocab/rwkv_vocab_v20230424.txt") else {
        return;
    };
    let tokenizer = load(path.to_str().unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 65530);
    let golden: [(&str, &[u32]); 5] = [
        (
            "Today is a beautiful day. 今天是美好的一天。",
            &[
                33520, 4600, 332, 59219, 21509, 47, 33, 10381, 11639, 13091, 15597, 11685, 14734,
                10250, 11639, 10080,
            ],
        ),
        (
            "The Eiffel tower is in the city of",
            &[6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706],
        ),
        (
            "\n\nUser: hi\n\nAssistant:",
            &[261, 24281, 59, 4571, 261, 5585, 41693, 59],
        ),
        (
            "😀🧑‍🚀",
            &[3319, 153, 129, 3319, 168, 146, 9810, 3319, 155, 129],
        ),
        ("    x = 1\r\n", &[19250, 121, 296, 284, 263]),
    ];
    for (text, ids) in golden {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text}");
        assert_eq!(tokenizer.decode(ids).unwrap(), text);
    }
    assert_eq!(tokenizer.decode(&[0]).unwrap(), "");
    assert!(tokenizer.decode(&[65530]).is_err());
}

#[test]
fn python_literals() {
    let extra = [
        (r"'\x80'", 2),
        (r"b'\x80\xff'", 2),
        (r#""it's""#, 4),
        (r"'\\ \'\n\t\r'", 6),
        (r"'\u4eca\U0001F600'", 7),
        ("' '", 1),
    ];
    let tokenizer = world(&vocabulary(&extra[..5])).unwrap();
    let bytes = |id| tokenizer.decode_bytes(&[id]).unwrap();
    assert_eq!(bytes(257), [0xc2, 0x80]);
    assert_eq!(bytes(258), [0x80, 0xff]);
    assert_eq!(bytes(259), b"it's");
    assert_eq!(bytes(260), b"\\ '\n\t\r");
    assert_eq!(bytes(261), "今😀".as_bytes());
    let error = world(&vocabulary(&extra)).err().unwrap().to_string();
    assert!(
        error.contains("the same token under the ids 33 and 262"),
        "{error}"
    );
}

#[test]
fn longest_match_agrees_with_a_search_through_all_tokens() {
    let extra: Vec<(String, usize)> = ["ab", "abc", "abcd", "bcde", "cc", "今", "今天", "天a"]
        .iter()
        .map(|t| (format!("'{t}'"), t.len()))
        .collect();
    let extra: Vec<(&str, usize)> = extra.iter().map(|(t, n)| (t.as_str(), *n)).collect();
    let tokenizer = world(&vocabulary(&extra)).unwrap();
    let tokens: Vec<Vec<u8>> = (1..tokenizer.vocab_size() as u32)
        .map(|id| tokenizer.decode_bytes(&[id]).unwrap())
        .collect();
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..200 {
        let alphabet = ['a', 'b', 'c', 'd', 'e', '今', '天', '\u{80}'];
        let text: String = (0..40)
            .map(|_| alphabet[rng.random_range(0..alphabet.len())])
            .collect();
        let mut rest = text.as_bytes();
        let mut expected = Vec::new();
        while !rest.is_empty() {
            let best = tokens
                .iter()
                .filter(|t| rest.starts_with(t))
                .max_by_key(|t| t.len())
                .unwrap();
            expected.push(tokens.iter().position(|t| t == best).unwrap() as u32 + 1);
            rest = &rest[best.len()..];
        }
        assert_eq!(tokenizer.encode(&text).unwrap(), expected, "{text}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
    }
}

#[test]
fn a_wrong_vocabulary_is_named_with_its_line() {
    let base = vocabulary(&[]);
    for (line, expected) in [
        ("257 'ab'", "line 257"),
        ("x 'ab' 2", "line 257"),
        ("257 'ab' 3", "found a token of 2 bytes, expected 3"),
        ("257 'ab 2", "Python string"),
        ("257 '\\q' 1", "Python string"),
        ("1 'ab' 2", "id 1 again"),
        ("0 'ab' 2", "id 0"),
    ] {
        let error = world(&format!("{base}{line}\n")).err().unwrap().to_string();
        assert!(
            error.contains(expected) && error.contains("vocab.txt"),
            "{line}: {error}"
        );
    }
    let error = world("1 'a' 1\n").err().unwrap().to_string();
    assert!(error.contains("all 256"), "{error}");
    assert!(world(&base.replace('\n', "\r\n")).is_ok());
    let error = load("no/such/file").err().unwrap().to_string();
    assert!(error.contains("no/such/file"), "{error}");
}

#[test]
fn hugging_face_byte_level_tokens_give_back_every_byte() {
    let Some(path) = data("vocab/20B_tokenizer.json") else {
        return;
    };
    let tokenizer = load(path.to_str().unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50277);
    assert_eq!(tokenizer.end_of_text(), 0);
    for text in [
        "Hello world",
        "  spaces   and\n\n\ttabs",
        "今天是 😀🧑‍🚀 naïve",
        "x",
    ] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(tokenizer.as_ref(), &ids), text);
    }
    assert!(tokenizer.decode_bytes(&[60000]).is_err());
}

fn streamed(tokenizer: &dyn Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    text += &decoder.finish();
    text
}

#[test]
fn streaming_never_splits_a_character() {
    let text = "a今😀é";
    let ids = ByteTokenizer.encode(text).unwrap();
    let mut decoder = StreamDecoder::new(&ByteTokenizer);
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "今", "", "", "", "😀", "", "é"]);
    assert_eq!(decoder.finish(), "");
    // Invalid bytes do not hold anything back, a cut-off character shows at the end.
    assert_eq!(
        streamed(&ByteTokenizer, &[0xff, 0x61, 0xe4, 0x61, 0xe4, 0xbb]),
        "\u{fffd}a\u{fffd}a\u{fffd}"
    );
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..20)
            .map(|_| rng.random::<u8>() | 0x80 >> rng.random_range(0..2))
            .collect();
        let ids: Vec<u32> = bytes.iter().map(|&b| u32::from(b)).collect();
        assert_eq!(
            streamed(&ByteTokenizer, &ids),
            String::from_utf8_lossy(&bytes)
        );
    }
}
