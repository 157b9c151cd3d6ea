//! Official checkpoints against the PyPI package `rwkv`, and everything that can be done to a checkpoint file.
#![allow(clippy::unwrap_used)]

mod torch_files;
mod untrusted;
mod workdir;

use std::io::Write;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rwkv7_core::{
    Rwkv7Config, Rwkv7Lm,
    checkpoint::{self, Checkpoint, CheckpointError, Format},
};
use safetensors::SafeTensors;

const MODELS: [&str; 3] = ["tiny-a", "tiny-b", "tiny-c"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn row(tokens: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(tokens.to_vec(), [1, tokens.len()]), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// Largest difference in units of the expected values' standard deviation.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / n;
    let std = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    let largest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(largest.is_finite());
    largest / std
}

struct Golden {
    tokens: Vec<i32>,
    logits: Vec<f32>,
    state: BTreeMap<String, Vec<f32>>,
}

fn read_golden(name: &str) -> Golden {
    let bytes = std::fs::read(golden(&format!("{name}.golden.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect()
    };
    let tokens = file.tensor("tokens").unwrap().data().to_vec();
    let state = file.names().into_iter().filter_map(|n| {
        n.strip_prefix("state.")
            .map(|rest| (rest.to_string(), floats(n)))
    });
    Golden {
        tokens: tokens
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b) as i32)
            .collect(),
        logits: floats("logits"),
        state: state.collect(),
    }
}

fn load(name: &str, device: &Device) -> (Rwkv7Config, Rwkv7Lm) {
    checkpoint::load(&golden(&format!("{name}.pth")), device).unwrap()
}

#[test]
fn logits_and_states_are_those_of_the_official_package() {
    let device = Device::default();
    for name in MODELS {
        let (config, model) = load(name, &device);
        let golden = read_golden(name);
        let close = |what: &str, found: &[f32], expected: &[f32]| {
            let d = difference(found, expected);
            assert!(d < 1e-4, "{name}, {what}: {d:e} standard deviations");
        };
        let (logits, state) = model.forward(row(&golden.tokens, &device), None);
        close("forward", &values(logits), &golden.logits);
        for (tensor, data) in state.named() {
            let found: Vec<f32> = data.try_to_vec().unwrap();
            let expected = &golden.state[tensor.strip_prefix("blocks.").unwrap()];
            close(&tensor, &found, expected);
        }

        let mut state = model.zero_state(1, &device);
        let mut stepped = Vec::new();
        for &token in &golden.tokens {
            let (logits, next) = model.step(Tensor::from_data([token], &device), state);
            stepped.extend(values(logits));
            state = next;
        }
        close("step", &stepped, &golden.logits);

        for at in 1..golden.tokens.len() {
            let (first, state) = model.forward(row(&golden.tokens[..at], &device), None);
            let (second, _) = model.forward(row(&golden.tokens[at..], &device), Some(state));
            close(
                &format!("split at {at}"),
                &[values(first), values(second)].concat(),
                &golden.logits,
            );
        }
        assert_eq!(golden.logits.len(), golden.tokens.len() * config.vocab_size);
    }
}

fn bits(checkpoint: &Checkpoint) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let unused = |name: &String| {
        !["v0", "v1", "v2"]
            .iter()
            .any(|v| *name == format!("blocks.0.att.{v}"))
    };
    let all = checkpoint
        .read_all()
        .unwrap()
        .into_iter()
        .filter(|(name, _)| unused(name));
    all.map(|(name, data)| {
        (
            name,
            (
                data.dtype(),
                data.shape().to_vec(),
                data.as_bytes().to_vec(),
            ),
        )
    })
    .collect()
}

#[test]
fn conversions_keep_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let original = Checkpoint::open(&golden(&format!("{name}.pth"))).unwrap();
        let expected = bits(&original);
        // Every format to every other, in one chain that visits all pairs.
        let chain = [
            Format::Official,
            Format::Fla,
            Format::Burn,
            Format::Official,
            Format::Burn,
            Format::Fla,
            Format::Official,
        ];
        let mut current = original;
        for (i, format) in chain.into_iter().enumerate() {
            let path = folder.path().join(format!("{name}-{i}"));
            let config: Rwkv7Config = current.config().unwrap();
            current.save(&config, &path, format, None).unwrap();
            current = Checkpoint::open(&path).unwrap();
            let what = format!("{name}, step {i}: {}", current.format());
            assert!(bits(&current) == expected, "{what}");
            let again: Rwkv7Config = current.config().unwrap();
            assert_eq!(again, config, "{what}");
        }
    }
}

#[test]
fn published_variations_of_the_layout_are_read() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let golden_values = read_golden("tiny-b");
    let tensors = Checkpoint::open(&golden("tiny-b.pth"))
        .unwrap()
        .read_all()
        .unwrap();
    let write = |name: &str, tensors: &BTreeMap<String, TensorData>| -> PathBuf {
        let path = folder.path().join(name);
        let views = tensors.iter().map(|(name, data)| {
            let dtype = safetensors::Dtype::F32;
            (
                name,
                safetensors::tensor::TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
                    .unwrap(),
            )
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    };
    let check = |what: &str, path: &Path| {
        let (_, model) = checkpoint::load(path, &device).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (logits, _) = model.forward(row(&golden_values.tokens, &device), None);
        let d = difference(&values(logits), &golden_values.logits);
        assert!(d < 1e-4, "{what}: {d:e} standard deviations");
    };

    for prefix in ["_forward_module.", "rwkv7."] {
        let renamed = tensors.iter().map(|(name, data)| {
            let head = prefix == "rwkv7." && name == "head.weight";
            (
                if head {
                    name.clone()
                } else {
                    format!("{prefix}{name}")
                },
                data.clone(),
            )
        });
        check(prefix, &write("prefixed.safetensors", &renamed.collect()));
    }

    let mut without = tensors.clone();
    without.retain(|name, _| !name.starts_with("blocks.0.att.v") || name.ends_with("weight"));
    check(
        "no value residual in layer 0",
        &write("no-v.safetensors", &without),
    );

    // ln0 folded into the embedding.
    let (config, model) = load("tiny-b", &device);
    let ln0 = model.blocks[0].ln0.as_ref().unwrap();
    let table = ln0
        .forward(model.emb.weight.val().unsqueeze::<3>())
        .into_data();
    let table = TensorData::new(
        table.try_to_vec::<f32>().unwrap(),
        [config.vocab_size, config.n_embd],
    );
    let mut folded = tensors.clone();
    folded.retain(|name, _| !name.contains("ln0"));
    folded.insert("emb.weight".into(), table);
    check("folded ln0", &write("folded.safetensors", &folded));

    // flash-linear-attention's older file: six mixes in one tensor.
    Checkpoint::open(&golden("tiny-b.pth"))
        .unwrap()
        .save(&config, &folder.path().join("fla"), Format::Fla, None)
        .unwrap();
    let bytes = std::fs::read(folder.path().join("fla/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut fused: BTreeMap<String, TensorData> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (
                name,
                TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), DType::F32),
            )
        })
        .collect();
    for layer in 0..config.n_layer {
        let parts = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];
        let all: Vec<u8> = parts
            .iter()
            .flat_map(|part| {
                fused
                    .remove(&format!("model.layers.{layer}.attn.{part}"))
                    .unwrap()
                    .as_bytes()
                    .to_vec()
            })
            .collect();
        let data = TensorData::from_bytes_vec(all, [6, config.n_embd], DType::F32);
        fused.insert(format!("model.layers.{layer}.attn.x_x"), data);
    }
    check("fused shift", &write("fused.safetensors", &fused));
}

#[test]
fn half_precision_parameters_stay_close() {
    let device = Device::default();
    let checkpoint = Checkpoint::open(&golden("tiny-c.pth")).unwrap();
    let config: Rwkv7Config = checkpoint.config().unwrap();
    if !device.supports_dtype(DType::BF16) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {device:?} has no bf16 arithmetic"
        );
        return;
    }
    let model = checkpoint
        .into_model(&config, &device, FloatDType::BF16)
        .unwrap();
    let golden = read_golden("tiny-c");
    let (logits, _) = model.forward(row(&golden.tokens, &device), None);
    let logits = logits
        .into_data_dtype(DType::F32)
        .try_to_vec::<f32>()
        .unwrap();
    assert!(difference(&logits, &golden.logits) < 0.2);
}

/// Reads everything there is in a file.
fn read(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, CheckpointError> {
    let tensors = Checkpoint::open(path)?.read_all()?;
    Ok(tensors
        .into_iter()
        .map(|(name, data)| (name, data.as_bytes().to_vec()))
        .collect())
}

#[test]
fn damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let safe = folder.path().join("tiny-b.safetensors");
    let original = golden("tiny-b.pth");
    let checkpoint = Checkpoint::open(&original).unwrap();
    let config: Rwkv7Config = checkpoint.config().unwrap();
    checkpoint
        .save(&config, &safe, Format::Official, None)
        .unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    for path in [original, safe] {
        let bytes = std::fs::read(&path).unwrap();
        let expected = read(&path).unwrap();
        let damaged = folder
            .path()
            .join("damaged")
            .with_extension(path.extension().unwrap());
        for _ in 0..150 {
            let length = rng.random_range(0..bytes.len());
            std::fs::write(&damaged, &bytes[..length]).unwrap();
            let error = read(&damaged).expect_err("a truncated file").to_string();
            assert!(error.contains("damaged."), "{error}");
        }
        let mut noticed = 0;
        for _ in 0..400 {
            let mut flipped = bytes.clone();
            let at = rng.random_range(0..bytes.len());
            flipped[at] ^= 1 << rng.random_range(0..8);
            std::fs::write(&damaged, &flipped).unwrap();
            // A bit of padding, or of a field that nobody reads, may change nothing.
            match read(&damaged) {
                Ok(found) => assert!(found == expected, "byte {at} changed the tensors unnoticed"),
                Err(_) => noticed += 1,
            }
        }
        assert!(
            noticed > 250,
            "{}: {noticed} of 400 flips noticed",
            path.display()
        );
    }
}

#[test]
fn a_pickle_that_asks_for_code_is_refused() {
    // `os.system("touch …")` in a pickle of protocol 2, and the same inside an archive as torch writes it.
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("executed");
    let command = format!("touch {}", mark.display());
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    let path = folder.path().join("evil.pth");
    std::fs::write(&path, &pickle).unwrap();
    let error = read(&path).expect_err("not a checkpoint").to_string();
    assert!(error.contains("evil.pth"), "{error}");
    assert!(!mark.exists());
}

#[test]
fn every_wrong_tensor_is_listed() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.safetensors");
    let mut tensors = Checkpoint::open(&golden("tiny-b.pth"))
        .unwrap()
        .read_all()
        .unwrap();
    tensors.remove("blocks.1.att.k_k");
    tensors.remove("ln_out.bias");
    tensors.insert(
        "blocks.2.att.time_state".into(),
        TensorData::new(vec![0.0_f32; 2], [2]),
    );
    tensors.insert(
        "blocks.3.ffn.x_k".into(),
        TensorData::new(vec![0.0_f32; 31], [1, 1, 31]),
    );
    let mut nan: Vec<f32> = tensors["head.weight"].clone().try_to_vec().unwrap();
    let save = |tensors: &BTreeMap<String, TensorData>| {
        let views = tensors.iter().map(|(name, data)| {
            let dtype = safetensors::Dtype::F32;
            (
                name,
                safetensors::tensor::TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
                    .unwrap(),
            )
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    save(&tensors);
    let error = checkpoint::load(&path, &device).err().unwrap().to_string();
    for part in [
        "wrong.safetensors",
        "blocks.1.att.k_k: missing, expected shape [1, 1, 32]",
        "ln_out.bias: missing",
        "blocks.2.att.time_state: unknown",
        "blocks.3.ffn.x_k: expected shape [1, 1, 32], found [1, 1, 31]",
    ] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }

    let mut tensors = Checkpoint::open(&golden("tiny-b.pth"))
        .unwrap()
        .read_all()
        .unwrap();
    nan[5] = f32::NAN;
    nan[6] = f32::INFINITY;
    let shape = tensors["head.weight"].shape().clone();
    tensors.insert("head.weight".into(), TensorData::new(nan, shape));
    save(&tensors);
    let error = checkpoint::load(&path, &device).err().unwrap().to_string();
    assert!(error.contains("head.weight: 2 of"), "{error}");
}

#[test]
fn states_are_saved_and_fit_only_their_model() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let (config, model) = load("tiny-b", &device);
    let golden = read_golden("tiny-b");
    let (first, second) = golden.tokens.split_at(20);
    let (_, state) = model.forward(row(first, &device), None);
    assert_eq!(state.num_values(), config.num_state_values());
    state.save(&path, &config, Some(7)).unwrap();
    let zero = model.zero_state(1, &device);
    let (loaded, unread) = zero.load(&path, &config).unwrap();
    assert_eq!(unread, Some(7));
    let (logits, _) = model.forward(row(second, &device), Some(loaded));
    assert!(difference(&values(logits), &golden.logits[20 * config.vocab_size..]) < 1e-4);

    let (other_config, other) = load("tiny-a", &device);
    let other = other.zero_state(1, &device);
    let refused = |path: &Path, parts: &[&str]| {
        let error = other.load(path, &other_config).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    };
    refused(&path, &["`n_embd` is 32, this model's is 64"]);

    // Files that do not say of which model they are have to fit by name and shape.
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let silent = folder.path().join("silent.safetensors");
    let save = |names: &str| {
        let tensors = tensors.iter().filter(|(name, _)| name.contains(names));
        safetensors::serialize_to_file(tensors, None, &silent).unwrap();
    };
    save("");
    assert_eq!(zero.load(&silent, &config).unwrap().1, None);
    refused(&silent, &["blocks.0.att.shift", "[1, 32]", "[1, 64]"]);
    save("att.shift");
    let error = zero.load(&silent, &config).unwrap_err().to_string();
    let layers = format!("holds {} layers of att.shift", config.n_layer);
    for part in ["no tensor `blocks.0.att.wkv`", &layers] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

/// A file of the size of the 0.1B model loads in seconds: it is read once and its initial values are never made.
#[test]
fn a_large_checkpoint_loads_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let config = Rwkv7Config {
        vocab_size: 20_000,
        ..Rwkv7Config::new(8, 12, 512)
    };
    let device = Device::default();
    let mut rng = StdRng::seed_from_u64(1);
    let zeros: BTreeMap<String, TensorData> = checkpoint::expected_tensors(&config)
        .into_iter()
        .map(|(name, shape)| {
            let values: Vec<half::bf16> = (0..shape.iter().product())
                .map(|_| half::bf16::from_f32(rng.random()))
                .collect();
            (name, TensorData::new(values, shape))
        })
        .collect();
    let views = zeros.iter().map(|(name, data)| {
        let dtype = safetensors::Dtype::BF16;
        (
            name,
            safetensors::tensor::TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
                .unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let started = Instant::now();
    let (found, model) = checkpoint::load(&path, &device).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(found, config);
    assert!(model.head.weight.is_initialized());
    assert!(seconds < 20.0, "{seconds} s");
}
