//! Tokenizers of `tokenizer.json` files that the tests write.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::*;

/// A `tokenizer.json` with this model and these tokens, the first of which is special, and other keys.
fn file(model: Value, keys: Value) -> Vec<u8> {
    let end = json!({
        "id": 0, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    });
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "model": model
    });
    for (key, value) in keys.as_object().unwrap() {
        file[key] = value.clone();
    }
    serde_json::to_vec(&file).unwrap()
}

fn loaded(json: &[u8]) -> Result<HuggingFaceTokenizer, TokenizerError> {
    HuggingFaceTokenizer::from_bytes(json, Path::new("tokenizer.json"))
}

fn vocabulary(tokens: &[&str]) -> Value {
    tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.to_string(), id))
        .collect::<Value>()
}

fn bpe(tokens: &[&str], merges: &[&str]) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary(tokens), "merges": merges
    })
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// A byte-level tokenizer of three letters and the space.
fn letters(keys: Value) -> Vec<u8> {
    let mut all = json!({"pre_tokenizer": byte_level(), "decoder": byte_level()});
    for (key, value) in keys.as_object().unwrap() {
        all[key] = value.clone();
    }
    file(
        bpe(&["</s>", "a", "b", "c", "Ġ", "ab", "Ã", "©"], &["a b"]),
        all,
    )
}

#[test]
fn what_changes_the_tokens_of_a_text_is_switched_off() {
    let text = "ab c ".repeat(100);
    let plain = loaded(&letters(json!({}))).unwrap().encode(&text).unwrap();
    assert_eq!(plain.len(), 400);
    let truncation = |length, stride| json!({"direction": "Left", "max_length": length, "strategy": "LongestFirst", "stride": stride});
    let padding = |strategy: Value| {
        json!({
            "strategy": strategy, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"
        })
    };
    let mut dropout = bpe(&["</s>", "a", "b", "c", "Ġ", "ab", "Ã", "©"], &["a b"]);
    dropout["dropout"] = json!(0.5);
    for keys in [
        json!({"truncation": truncation(64, 0)}),
        json!({"truncation": truncation(1, 1)}),
        json!({"padding": padding(json!("BatchLongest"))}),
        json!({"padding": padding(json!({"Fixed": 8_589_934_592_u64}))}),
        json!({"model": dropout}),
    ] {
        let tokenizer = loaded(&letters(keys.clone())).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), plain, "{keys}");
    }
}

#[test]
fn a_file_that_the_library_panics_on_is_a_message() {
    let words = json!({"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "a"});
    let json = file(
        words,
        json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}),
    );
    let error = loaded(&json).err().unwrap().to_string();
    assert!(
        error.contains("tokenizer.json: the tokenizers library cannot use it"),
        "{error}"
    );
}

#[test]
fn other_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, content: &[u8], parts: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = load(path.to_str().unwrap()).err().unwrap();
        let error = format!(
            "{error} {}",
            std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
        );
        assert!(
            parts.iter().all(|part| error.contains(part)) && error.contains(name),
            "{error}"
        );
    };
    let wanted = "expected the tokenizer.json";
    check(
        "vocab.json",
        br#"{"a": 0, "b": 1}"#,
        &["a vocab.json", wanted],
    );
    check(
        "tokenizer_config.json",
        br#"{"tokenizer_class": "X", "eos_token": "</s>"}"#,
        &["a tokenizer_config.json", wanted],
    );
    check(
        "config.json",
        br#"{"model_type": "rwkv7", "vocab_size": 1}"#,
        &["config.json", wanted],
    );
    check("half.json", b"{\"model\": ", &["no JSON"]);
    check(
        "merges.txt",
        b"#version: 0.2\na b\n",
        &["a merges.txt", wanted],
    );
    check(
        "tokenizer.model",
        b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
        &["SentencePiece"],
    );
    check("empty", b"", &["an empty file"]);
    let many = file(
        json!({"type": "WordLevel", "vocab": {"</s>": 0, "a": 4_000_000_000_u32}, "unk_token": "a"}),
        json!({}),
    );
    check("many.json", &many, &["id 4000000000"]);
    let error = load(folder.path().to_str().unwrap()).err().unwrap();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("a folder"),
        "{error}"
    );
    #[cfg(unix)]
    {
        let error = load("/dev/zero").err().unwrap();
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("a device"),
            "{error}"
        );
    }
}

/// Tokenizers whose decoders look at the neighbours of a token.
fn contextual() -> Vec<(&'static str, Vec<u8>)> {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let words = json!({
        "type": "WordPiece", "unk_token": "un", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocabulary(&["</s>", "do", "un", "##n", "'", "t", "##t", ".", ",", "n't"])
    });
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut llama = vec!["</s>", "▁", "a", "b", "▁a", "é", "▁▁"];
    llama.extend(bytes.iter().map(String::as_str));
    let llama_decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]});
    let fused = json!({"type": "Sequence", "decoders": [
        {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": "X"},
        {"type": "Strip", "content": "b", "start": 0, "stop": 1}
    ]});
    let byte_sequence = json!({"type": "Sequence", "decoders": [byte_level()]});
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc =
        json!({"type": "CTC", "pad_token": "c", "word_delimiter_token": "b", "cleanup": true});
    let level = ["</s>", "a", "b", "Ġ", "Ã", "©", "ð", "Ł", "ĺ", "Ģ"];
    vec![
        (
            "metaspace",
            file(
                bpe(&["</s>", "▁", "a", "b", "▁a", "."], &[]),
                json!({"pre_tokenizer": metaspace, "decoder": metaspace}),
            ),
        ),
        (
            "word pieces",
            file(
                words,
                json!({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}}),
            ),
        ),
        (
            "llama",
            file(bpe(&llama, &[]), json!({"decoder": llama_decoder})),
        ),
        (
            "fused",
            file(
                bpe(&["</s>", "a", "b", "c"], &[]),
                json!({"decoder": fused}),
            ),
        ),
        (
            "bytes in a sequence",
            file(bpe(&level, &[]), json!({"decoder": byte_sequence})),
        ),
        (
            "suffix",
            file(
                bpe(&["</s>", "a</w>", "b", "c</w>"], &[]),
                json!({"decoder": suffix}),
            ),
        ),
        (
            "ctc",
            file(bpe(&["</s>", "a", "b", "c"], &[]), json!({"decoder": ctc})),
        ),
        (
            "words",
            file(
                json!({"type": "WordLevel", "vocab": vocabulary(&["</s>", "a", "b"]), "unk_token": "a"}),
                json!({}),
            ),
        ),
    ]
}

#[test]
fn streamed_text_is_the_text_of_all_ids() {
    let mut rng = StdRng::seed_from_u64(3);
    for (name, json) in contextual() {
        let tokenizer = loaded(&json).unwrap();
        for length in [1, 2, 5, 30, 200] {
            for _ in 0..20 {
                let ids: Vec<u32> = (0..length)
                    .map(|_| rng.random_range(0..tokenizer.vocab_size() as u32))
                    .collect();
                let whole = tokenizer.decode(&ids).unwrap();
                let mut decoder = StreamDecoder::new(&tokenizer);
                let mut text: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
                text += &decoder.finish();
                assert_eq!(text, whole, "{name}: {ids:?}");
            }
        }
    }
}

/// Whatever a file says, the result is a tokenizer or a message, and no text is lost on the way.
#[test]
fn changed_files_give_a_tokenizer_or_a_message() {
    let mut rng = StdRng::seed_from_u64(4);
    let files = contextual();
    let (mut usable, text) = (0, "ab a b's, é 文 😀\n</s> b");
    for _ in 0..2000 {
        let mut json = files[rng.random_range(0..files.len())].1.clone();
        for _ in 0..rng.random_range(1..3) {
            let at = rng.random_range(0..json.len());
            match rng.random_range(0..4) {
                0 => json[at] ^= 1 << rng.random_range(0..8),
                1 => drop(json.remove(at)),
                2 => json.insert(at, b"0123456789-e{}[]\",:"[rng.random_range(0..19)]),
                _ => json.truncate(at.max(1)),
            }
        }
        let Ok(tokenizer) = loaded(&json) else {
            continue;
        };
        usable += 1;
        if let Ok((ids, ends)) = tokenizer.encode_with_ends(text) {
            assert!(
                ids.len() == ends.len()
                    && ends.is_sorted()
                    && ends.iter().all(|end| *end <= text.len())
            );
            if let Ok(whole) = tokenizer.decode(&ids) {
                let mut decoder = StreamDecoder::new(&tokenizer);
                let streamed: Result<String, _> = ids.iter().map(|&id| decoder.push(id)).collect();
                assert_eq!(
                    streamed.map(|text| text + &decoder.finish()).ok(),
                    Some(whole)
                );
            }
        }
    }
    assert!(usable > 20, "{usable}");
}

/// The text comes while it is generated, not at the end.
#[test]
fn a_stream_holds_back_a_few_tokens_only() {
    for (name, json) in contextual() {
        let tokenizer = loaded(&json).unwrap();
        let mut decoder = StreamDecoder::new(&tokenizer);
        let text: String = (0..300).map(|i| decoder.push(1 + i % 2).unwrap()).collect();
        let held = decoder.finish().len();
        assert!(
            text.len() > 100 && held < 20,
            "{name}: {} and {held}",
            text.len()
        );
    }
}

#[test]
fn a_text_that_goes_on_keeps_the_space_at_its_start() {
    let (_, json) = contextual().swap_remove(0);
    let tokenizer = loaded(&json).unwrap();
    let (context, rest) = ([4, 3, 3], [4, 3]);
    assert_eq!(tokenizer.decode(&rest).unwrap(), "ab");
    let mut decoder = StreamDecoder::after(&tokenizer, &context);
    let mut text: String = rest.iter().map(|&id| decoder.push(id).unwrap()).collect();
    text += &decoder.finish();
    assert_eq!(text, " ab");
}

#[test]
fn the_ends_of_tokens_add_up_to_the_text() {
    let composed = letters(json!({"normalizer": {"type": "NFC"}}));
    let spaced = letters(
        json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}}),
    );
    let metaspace = contextual().swap_remove(0).1;
    for (json, text) in [
        // A special token in the text stands for the bytes that spell it.
        (letters(json!({})), "ab</s>é"),
        (letters(json!({})), ""),
        // é as e and an accent has three bytes and becomes one of two.
        (composed, "ae\u{301}b"),
        (spaced, "a b"),
        (metaspace, "a  b"),
    ] {
        let tokenizer = loaded(&json).unwrap();
        let (ids, ends) = tokenizer.encode_with_ends(text).unwrap();
        assert_eq!(ids, tokenizer.encode(text).unwrap(), "{text}");
        assert_eq!(ids.len(), ends.len());
        assert!(
            ends.is_sorted() && ends.last().is_none_or(|end| *end == text.len()),
            "{text}: {ids:?} {ends:?}"
        );
    }
}

#[test]
fn fingerprints_tell_files_apart() {
    let prints = [
        loaded(&letters(json!({}))).unwrap().fingerprint(),
        loaded(&letters(json!({"normalizer": {"type": "NFC"}})))
            .unwrap()
            .fingerprint(),
        ByteTokenizer.fingerprint(),
    ];
    assert!(prints.iter().all(|print| print.len() == 32));
    assert!(prints[0] != prints[1] && prints[0] != prints[2]);
    assert_eq!(
        loaded(&letters(json!({}))).unwrap().fingerprint(),
        prints[0]
    );
}
