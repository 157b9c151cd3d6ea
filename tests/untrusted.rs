//! Files that nobody should trust: each is read rightly or refused with a word about it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use burn::tensor::{Device, TensorData};
use rwkv7_core::{
    Rwkv7Config,
    checkpoint::{self, Checkpoint, Format},
};
use safetensors::{Dtype, tensor::TensorView};

use crate::{
    golden,
    torch_files::{self, View},
    workdir::Workdir,
};

type Tensors = BTreeMap<String, TensorData>;

fn tensors() -> Tensors {
    let checkpoint = Checkpoint::open(&golden("tiny-b.pth")).unwrap();
    checkpoint.read_all().unwrap()
}

fn ones(shape: &[usize]) -> TensorData {
    TensorData::new(vec![1.0_f32; shape.iter().product()], shape.to_vec())
}

fn named(shapes: &[(&str, &[usize])]) -> Tensors {
    let named = shapes
        .iter()
        .map(|(name, shape)| (name.to_string(), ones(shape)));
    named.collect()
}

fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    let renamed = tensors.iter().map(|(old, data)| (name(old), data.clone()));
    renamed.collect()
}

/// A safetensors file as another program writes it.
fn safetensors_of(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, data)| {
        let shape = data.shape().to_vec();
        (
            name,
            TensorView::new(Dtype::F32, shape, data.as_bytes()).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

#[cfg(unix)]
#[test]
fn an_index_leads_to_safetensors_files_of_its_folder_alone() {
    let dir = Workdir::new();
    dir.write("outside.safetensors", safetensors_of(&tensors()));
    fs::create_dir(dir.path("m")).unwrap();
    dir.write("m/inside.safetensors", safetensors_of(&tensors()));
    dir.write(
        "m/inside.pth",
        torch_files::File::separate(&tensors()).archive(),
    );
    fs::create_dir(dir.path("m/folder.safetensors")).unwrap();
    let pipe = dir.path("m/pipe.safetensors");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let index = |name: &str| {
        let json = serde_json::json!({ "weight_map": { "emb.weight": name } });
        dir.write("m/model.safetensors.index.json", json.to_string());
    };
    let absolute = dir.path("outside.safetensors");
    for name in [
        "",
        ".",
        "..",
        "./inside.safetensors",
        "../outside.safetensors",
        absolute.to_str().unwrap(),
        "/proc/self/environ",
        "inside.pth",
        "model.safetensors.index.json",
    ] {
        index(name);
        let parts = ["model.safetensors.index.json", "the same folder"];
        dir.fails(&["inspect", "m"], &parts);
    }
    index("folder.safetensors");
    dir.fails(&["inspect", "m"], &["folder.safetensors", "a folder"]);
    index("pipe.safetensors");
    dir.fails(&["inspect", "m"], &["pipe.safetensors", "a named pipe"]);
    dir.fails(&["convert", "m", "x.safetensors"], &["a named pipe"]);
    index("inside.safetensors");
    dir.ok(&["inspect", "m"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_no_models() {
    let dir = Workdir::new();
    for name in ["pipe", "pipe.bpk", "pipe.pth", "config.json"] {
        let made = Command::new("mkfifo").arg(dir.path(name)).status();
        assert!(made.unwrap().success());
    }
    for name in ["pipe", "pipe.bpk", "pipe.pth"] {
        dir.fails(&["inspect", name], &[name, "a named pipe"]);
    }
    dir.fails(&["inspect", "/dev/zero"], &["/dev/zero", "a device"]);
    // Nor is a model put in the place of a pipe.
    for format in ["blinkdl", "burn"] {
        let convert = ["convert", "reverse-rwkv7", "pipe", "--format", format];
        dir.fails(&convert, &["pipe", "a named pipe"]);
    }
    // The pipe `config.json` is beside it.
    dir.write("a.safetensors", safetensors_of(&tensors()));
    dir.ok(&["inspect", "a.safetensors"]);
}

/// Whatever file a user names, a device is not read for ever.
#[cfg(unix)]
#[test]
fn devices_are_no_recipes_tokenizers_or_texts() {
    let dir = Workdir::new();
    let zero = "/dev/zero";
    let train = ["train", "--no-tui", "--recipe"];
    dir.fails(&[&train[..], &[zero]].concat(), &[zero, "a device"]);
    let text = [&train[..], &["text", "--data", zero]].concat();
    dir.fails(&text, &[zero]);
    let tokenizer = [
        &train[..],
        &["text", "--data", "a.txt", "--tokenizer", zero],
    ]
    .concat();
    dir.write("a.txt", "a text ".repeat(200));
    dir.fails(&tokenizer, &[zero, "a device"]);
    let grow = ["grow", "reverse-rwkv7", "x.safetensors", "--to"];
    dir.fails(&[&grow[..], &[zero]].concat(), &[zero]);
    let text = [&grow[..], &[r#"{"n_layer":3}"#, "--text", zero]].concat();
    dir.fails(&text, &[zero, "a device"]);
}

#[test]
fn the_number_of_layers_is_bounded_by_the_tensors() {
    let dir = Workdir::new();
    for number in [
        "200",
        "100000",
        "40000000",
        "9223372036854775807",
        "18446744073709551615",
    ] {
        let mut tensors = tensors();
        let name = format!("blocks.{number}.ln1.weight");
        tensors.insert(name.clone(), ones(&[32]));
        dir.write("a.safetensors", safetensors_of(&tensors));
        let archive = torch_files::File::separate(&tensors).archive();
        dir.write("a.pth", archive);
        for file in ["a.safetensors", "a.pth"] {
            let started = Instant::now();
            dir.fails(&["inspect", file], &[file, &name]);
            assert!(started.elapsed() < Duration::from_secs(5), "{number}");
        }
    }
    // One tensor alone.
    dir.write(
        "a.safetensors",
        safetensors_of(&named(&[("blocks.40000000.ln1.weight", &[32])])),
    );
    dir.fails(&["inspect", "a.safetensors"], &["40000000", "1 tensors"]);
}

#[test]
fn long_lists_of_problems_are_cut() {
    let mut tensors = tensors();
    let long = "x".repeat(100_000);
    for i in 0..500 {
        tensors.insert(format!("blocks.0.more.{i}\x1b[2J{long}"), ones(&[1]));
    }
    let dir = Workdir::new();
    dir.write("a.safetensors", safetensors_of(&tensors));
    let output = dir.run(&["inspect", "a.safetensors"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("and 480 more"), "{errors}");
    assert!(errors.len() < 20_000, "{} bytes", errors.len());
    assert!(!errors.contains('\x1b'));
}

#[test]
fn shapes_without_values_and_repeated_values_are_refused() {
    let dir = Workdir::new();
    let mut empty = tensors();
    empty.insert("blocks.0.att.w1".into(), ones(&[0, 1 << 40]));
    dir.write("a.safetensors", safetensors_of(&empty));
    dir.fails(
        &["inspect", "a.safetensors"],
        &["blocks.0.att.w1", "no values"],
    );

    // One value that stands for a table of gigabytes.
    let mut file = torch_files::File::separate(&tensors());
    let storage = file.storages.len();
    file.storages.push(vec![1.0]);
    file.views.retain(|view| view.name != "emb.weight");
    file.views.push(View {
        name: "emb.weight".into(),
        storage,
        offset: 0,
        shape: vec![1 << 24, 32],
        stride: vec![0, 0],
    });
    dir.write("a.pth", file.archive());
    dir.fails(&["inspect", "a.pth"], &["a.pth", "would fill the memory"]);
}

#[test]
fn every_bit_of_an_archive_is_checked_when_tensors_are_views() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    let file = torch_files::File::together(&tensors());
    for (what, content) in [("archive", file.archive()), ("legacy", file.legacy())] {
        fs::write(&path, &content).unwrap();
        let found = Checkpoint::open(&path).unwrap().read_all().unwrap();
        assert!(found == tensors(), "{what}");
    }
    let good = file.archive();
    let storage = &file.storages[0];
    let first: Vec<u8> = storage
        .iter()
        .take(8)
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let start = good.windows(first.len()).position(|w| w == first).unwrap();
    for i in 0..200 {
        let mut bytes = good.clone();
        let at = start + (i * 997) % (4 * storage.len());
        bytes[at] ^= 1 << (i % 8);
        fs::write(&path, &bytes).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let error = checkpoint.read_all().unwrap_err().to_string();
        assert!(error.contains("archive/data/0"), "{error}");
        assert!(checkpoint::load(&path, &Device::default()).is_err());
    }
}

#[test]
fn the_header_of_a_written_file_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let original = Checkpoint::open(&golden("tiny-b.pth")).unwrap();
    let config: Rwkv7Config = original.config().unwrap();
    let config = config.with_layer_norm_eps(2e-5).with_group_norm_eps(3e-4);
    original
        .save(&config, &path, Format::Official, None)
        .unwrap();
    let good = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    for at in (0..header).step_by(11) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 7);
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&path)
            && let Ok(found) = checkpoint.config::<rwkv7_core::layers::ChannelMixConfig>()
        {
            assert_eq!(found, config, "byte {at}");
            if let Ok(found) = checkpoint.read_all() {
                assert!(found == original.read_all().unwrap(), "byte {at}");
            }
        }
    }
}

#[test]
fn what_is_written_twice_is_the_same_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("tiny-b.pth")).unwrap();
    let config: Rwkv7Config = original.config().unwrap();
    for (format, file) in [
        (Format::Official, ""),
        (Format::Burn, ""),
        (Format::Fla, "model.safetensors"),
        (Format::Fla, "config.json"),
    ] {
        let write = |name: &str| {
            let path = folder.path().join(format!("{name}-{format:?}"));
            original.save(&config, &path, format, None).unwrap();
            let path = if file.is_empty() {
                path
            } else {
                path.join(file)
            };
            fs::read(path).unwrap()
        };
        assert!(write("a") == write("b"), "{format:?} {file}");
    }
}

#[test]
fn values_that_are_not_finite_or_become_so_are_never_written() {
    let dir = Workdir::new();
    let with = |value: f32| {
        let mut tensors = tensors();
        let mut head: Vec<f32> = tensors["head.weight"].iter().collect();
        head[3] = value;
        let shape = tensors["head.weight"].shape().clone();
        tensors.insert("head.weight".into(), TensorData::new(head, shape));
        dir.write("a.safetensors", safetensors_of(&tensors));
    };
    for format in ["blinkdl", "hf", "burn"] {
        let convert = ["convert", "a.safetensors", "out", "--format", format];
        for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            with(value);
            let parts = ["a.safetensors", "head.weight: 1 of", text];
            dir.fails(&convert, &parts);
            assert!(!dir.path("out").exists(), "{format}");
        }
        with(70000.0);
        let narrow = [&convert[..], &["--dtype", "f16"]].concat();
        dir.fails(&narrow, &["head.weight: 1 of", "70000 at 3", "f16"]);
        assert!(!dir.path("out").exists(), "{format}");
    }
    let wide = [
        "convert",
        "a.safetensors",
        "out.safetensors",
        "--dtype",
        "bf16",
    ];
    dir.ok(&wide);
    let arch = [
        "convert",
        "a.safetensors",
        "b.safetensors",
        "--arch",
        "meta-state",
    ];
    dir.fails(&[&arch[..], &["--dtype", "f16"]].concat(), &["70000"]);

    // Finite weights whose products are not.
    let large = renamed(&tensors(), str::to_string);
    let large = large.into_iter().map(|(name, data)| {
        let large = name.contains("ffn.key") || name.contains("ffn.value");
        let scale = if large { 1e30 } else { 1.0 };
        let values: Vec<f32> = data.iter::<f32>().map(|x| x * scale).collect();
        (name, TensorData::new(values, data.shape().clone()))
    });
    dir.write("a.safetensors", safetensors_of(&large.collect()));
    let logits = [
        "logits",
        "--model",
        "a.safetensors",
        "--tokens",
        "1,2",
        "--device",
        "flex",
    ];
    dir.fails(&logits, &["a.safetensors", "not finite"]);
    dir.fails(&[&logits[..], &["--json"]].concat(), &["not finite"]);
}

#[test]
fn containers_around_a_model_are_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    let plain = tensors();
    for prefix in [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_forward_module.",
        "model.",
        "model._orig_mod.",
        "state_dict.",
        "state_dict.model.",
        "model_state_dict.module.",
    ] {
        let mut wrapped = renamed(&plain, |name| format!("{prefix}{name}"));
        wrapped.insert("optimizer_states.0.state.0.exp_avg".into(), ones(&[2]));
        fs::write(&path, torch_files::File::separate(&wrapped).archive()).unwrap();
        let found = Checkpoint::open(&path).unwrap().read_all().unwrap();
        assert!(found == plain, "{prefix}");
    }
}

#[test]
fn an_embedding_that_is_the_head_too_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("tiny-b.pth")).unwrap();
    let config: Rwkv7Config = original.config().unwrap();
    let out = folder.path().join("hf");
    original.save(&config, &out, Format::Fla, None).unwrap();
    let mut tied = renamed(&original.read_all().unwrap(), str::to_string);
    tied.remove("head.weight");
    fs::write(out.join("model.safetensors"), safetensors_of(&tied)).unwrap();
    let error = checkpoint::load(&out, &Device::default()).err().unwrap();
    assert!(
        error.to_string().contains("head.weight: missing"),
        "{error}"
    );
    let text = fs::read_to_string(out.join("config.json")).unwrap();
    let text = text.replace(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    fs::write(out.join("config.json"), text).unwrap();
    let (_, model) = checkpoint::load(&out, &Device::default()).unwrap();
    let head: Vec<f32> = model
        .head
        .weight
        .val()
        .transpose()
        .into_data()
        .iter()
        .collect();
    let table: Vec<f32> = model.emb.weight.val().into_data().iter().collect();
    assert_eq!(head, table);
}

#[test]
fn files_say_what_they_are() {
    let dir = Workdir::new();
    let refused = |file: &str, content: Vec<u8>, parts: &[&str]| {
        dir.write(file, content);
        dir.fails(&["inspect", file], &[&[file], parts].concat());
    };
    let weights = |shapes: &[(&str, &[usize])]| safetensors_of(&named(shapes));
    let table: (&str, &[usize]) = ("emb.weight", &[8, 8]);
    for (version, names) in [
        ("RWKV-4", &["att.time_decay", "att.time_first"][..]),
        (
            "RWKV-5",
            &["att.time_decay", "att.time_faaaa", "att.ln_x.weight"],
        ),
        (
            "RWKV-6",
            &["att.time_decay", "att.time_maa_x", "att.ln_x.weight"],
        ),
    ] {
        let names: Vec<String> = names.iter().map(|n| format!("blocks.0.{n}")).collect();
        let mut shapes: Vec<(&str, &[usize])> = vec![table];
        shapes.extend(names.iter().map(|name| (name.as_str(), &[8][..])));
        refused("a.safetensors", weights(&shapes), &[version, "x070"]);
    }
    let lora: (&str, &[usize]) = ("blocks.0.att.key.lora_A", &[2, 8]);
    refused("a.safetensors", weights(&[lora]), &["LoRA", "merge"]);
    refused("a.safetensors", weights(&[table, lora]), &["not merged"]);
    let tuned: (&str, &[usize]) = ("blocks.0.att.time_state", &[1, 8, 8]);
    refused("a.safetensors", weights(&[tuned]), &["tuned initial state"]);
    let state: (&str, &[usize]) = ("blocks.0.att.wkv", &[1, 1, 8, 8]);
    refused("a.safetensors", weights(&[state]), &["--state-in"]);
    let other: (&str, &[usize]) = ("wrapped.emb.weight", &[8, 8]);
    refused(
        "a.safetensors",
        weights(&[other]),
        &["begin with `wrapped.`"],
    );
    let llama: (&str, &[usize]) = ("layers.0.q.weight", &[8, 8]);
    refused(
        "a.safetensors",
        weights(&[llama]),
        &["layers.0.q.weight", "emb.weight"],
    );

    let of_type = |dtype: Dtype, bytes: &[u8]| {
        let view = TensorView::new(dtype, vec![4], bytes).unwrap();
        safetensors::serialize([("emb.weight", view)], None).unwrap()
    };
    for (dtype, bytes) in [(Dtype::F8_E4M3, 4), (Dtype::I64, 32), (Dtype::BOOL, 4)] {
        let content = of_type(dtype, &vec![0; bytes]);
        let parts = ["emb.weight", &dtype.to_string(), "bf16"];
        refused("a.safetensors", content, &parts);
    }

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 382230444\n";
    let page = "<!DOCTYPE html><html><head><title>login</title></head></html>";
    for file in ["a.pth", "a.safetensors", "a.bpk", "a"] {
        let parts = ["Git LFS pointer", "382230444", "git lfs pull"];
        refused(file, pointer.into(), &parts);
        refused(file, page.into(), &["a web page"]);
        refused(file, b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), &["GGUF"]);
        refused(file, b"\x1f\x8b\x08\0\0\0\0\0\0\0".to_vec(), &["unpack"]);
    }
    refused(
        "config.json",
        b"{\"a\": 1}".to_vec(),
        &["a JSON text", "folder"],
    );
    let index = "model.safetensors.index.json";
    refused(
        index,
        b"{\"weight_map\": {}}".to_vec(),
        &["name the folder"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_utf_8() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let dir = Workdir::new();
    let name = OsStr::from_bytes(b"m\xff.safetensors");
    let out = OsStr::from_bytes(b"out\xff.safetensors");
    fs::write(dir.0.path().join(name), safetensors_of(&tensors())).unwrap();
    let run = |arguments: &[&OsStr]| {
        let output = dir.command(&[]).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let found = run(&["inspect".as_ref(), name, "--json".as_ref()]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["path"], "m\u{fffd}.safetensors");
    run(&["inspect".as_ref(), name]);
    run(&["convert".as_ref(), name, out]);
    assert!(dir.0.path().join(out).is_file());
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_the_replaced_file_or_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Workdir::new();
    dir.write("a.safetensors", safetensors_of(&tensors()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let program = env!("CARGO_BIN_EXE_metastate");
    let convert = |umask: &str, out: &str, format: &str| {
        let script =
            format!("umask {umask}; exec \"$0\" convert a.safetensors {out} --format {format}");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script, program])
            .current_dir(dir.0.path());
        assert!(shell.output().unwrap().status.success());
    };
    for (out, format, file) in [
        ("b.safetensors", "blinkdl", "b.safetensors"),
        ("b.bpk", "burn", "b.bpk"),
        ("hf", "hf", "hf/model.safetensors"),
        ("hf", "hf", "hf/config.json"),
    ] {
        let file = dir.path(file);
        for (umask, new) in [("077", 0o600), ("027", 0o640), ("022", 0o644)] {
            let _ = fs::remove_file(&file);
            convert(umask, out, format);
            assert_eq!(mode(&file), new, "{}", file.display());
        }
        for old in [0o600, 0o440, 0o664] {
            fs::set_permissions(&file, fs::Permissions::from_mode(old)).unwrap();
            convert("022", out, format);
            assert_eq!(mode(&file), old, "{}", file.display());
        }
    }
}

/// Models that no memory holds are refused by their numbers.
#[test]
fn configurations_beyond_any_memory_are_refused() {
    let dir = Workdir::new();
    dir.write("a.safetensors", safetensors_of(&tensors()));
    for field in [
        "n_layer",
        "vocab_size",
        "n_embd",
        "gate_rank",
        "value_rank",
        "ffn_size",
    ] {
        for value in ["18446744073709551615", "1099511627776"] {
            let to = format!("{{\"{field}\": {value}}}");
            let grow = ["grow", "a.safetensors", "b.safetensors", "--to", &to];
            dir.fails(&grow, &[field, value]);
        }
    }
}
