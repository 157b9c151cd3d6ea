//! The same model on two devices: a GPU's logits and gradients are the CPU's, and so is a training run.
#![cfg(all(
    feature = "flex",
    any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "cuda",
        feature = "rocm",
        feature = "metal"
    )
))]
#![allow(clippy::unwrap_used)]

use std::{
    io::{Write, stderr},
    path::Path,
};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use meta_state::{MetaStateConfig, MetaStateLm, Removal, Side};
use rwkv7_core::{
    MatmulPrecision, Rwkv7, Rwkv7Config, Rwkv7Lm, checkpoint, device::SOFTWARE_DRIVER,
    layers::ChannelMixer, loss,
};

/// The GPU that BURN_DEVICE names, or the best one compiled in; none where BURN_DEVICE asks for the CPU. A GPU that is asked for
/// and not there is an error.
fn gpu() -> Option<Device> {
    if std::env::var("BURN_DEVICE").is_ok_and(|name| name == "flex") {
        let _ = writeln!(stderr(), "skipped: BURN_DEVICE=flex asks for the CPU");
        return None;
    }
    let device = Device::default();
    assert_ne!(
        device,
        Device::flex(),
        "no GPU; set BURN_DEVICE, as in BURN_DEVICE=wgpu"
    );
    Some(device)
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

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// A chunk and a bit: a software driver compiles kernels for minutes, so there is little of everything.
const TOKENS: [i32; 18] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3];

/// An official checkpoint.
fn rwkv7(device: &Device) -> Rwkv7Lm {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-b.pth");
    checkpoint::load(&path, device).unwrap().1
}

/// Two heads of 16 with Meta-State layers in which no weight is zero.
fn meta_state(half: MetaStateConfig, device: &Device) -> MetaStateLm {
    struct Shake;
    impl ModuleMapper for Shake {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| {
                let count = x.shape().num_elements() as i64;
                let wave = Tensor::<1, Int>::arange(0..count, &x.device()).float();
                let wave = (wave * 0.7).sin().reshape(x.shape()) * 0.1;
                x + wave
            })
        }
    }
    let base = Rwkv7Config {
        head_size: 16,
        ..Rwkv7Config::new(61, 2, 32)
    };
    let config = base.with_ffn(half);
    config.init(device).map(&mut Shake)
}

/// Logits of the whole sequence and token by token, and the gradient of the embedding.
fn results<M: ChannelMixer>(model: Rwkv7<M>, device: &Device) -> [Vec<f32>; 3] {
    let row = |device: &Device| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(TOKENS.to_vec(), [1, TOKENS.len()]), device)
    };
    let (logits, _) = model.forward(row(device), None);

    let mut state = model.zero_state(1, device);
    let mut stepped = Vec::new();
    for token in &TOKENS[..3] {
        let (logits, next) = model.step(Tensor::from_data([*token], device), state);
        stepped.extend(values(logits));
        state = next;
    }

    let training = device.clone().autodiff();
    let model = model.train();
    let (out, _) = model.forward(row(&training), None);
    let grads = loss::cross_entropy(out, row(&training), None).backward();
    let gradient = model.emb.weight.val().grad(&grads).unwrap();
    [values(logits), stepped, values(gradient)]
}

#[test]
fn the_gpu_agrees_with_the_cpu() {
    let cpu = Device::flex();
    let Some(gpu) = gpu() else { return };
    let practical = MetaStateConfig::practical;
    let value_side = || MetaStateConfig {
        side: Side::Value,
        removal: Removal::TimeMix,
        ..practical()
    };
    for (model, found, expected) in [
        (
            "rwkv7",
            results(rwkv7(&gpu), &gpu),
            results(rwkv7(&cpu), &cpu),
        ),
        (
            "meta-state",
            results(meta_state(practical(), &gpu), &gpu),
            results(meta_state(practical(), &cpu), &cpu),
        ),
        // Which reads the states by `sse` without gradients too.
        (
            "meta-state, the state's value side",
            results(meta_state(value_side(), &gpu), &gpu),
            results(meta_state(value_side(), &cpu), &cpu),
        ),
    ] {
        let parts = ["forward", "step", "gradient"];
        for (part, (found, expected)) in parts.iter().zip(found.iter().zip(&expected)) {
            let d = difference(found, expected);
            assert!(d < 1e-4, "{model}, {part}: {d:e} standard deviations");
        }
    }
}

/// Loss of every step of a short run, reading the journal.
fn losses(device: &str) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "model.n_layer=1",
        "model.n_embd=32",
        "model.head_size=16",
        "batch_size=4",
        "steps=4",
        "steps_per_epoch=2",
        "validation_batches=1",
        "max_digits=5",
        "learning_rate.warmup_steps=1",
    ];
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_metastate"))
        .args(["train", "--no-tui", "--device", device, "--out", "run"])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(folder.path().join("run/model.safetensors").is_file());
    let journal = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let lines = journal.lines();
    let steps = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    steps.filter_map(|step| step["loss"].as_f64()).collect()
}

#[test]
fn a_training_run_on_the_gpu_is_the_cpus() {
    if gpu().is_none() {
        return;
    }
    let (found, expected) = (losses(&backend()), losses("flex"));
    assert!(
        found.len() >= 4 && found.len() == expected.len(),
        "{found:?}"
    );
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-3, "{found:?} and {expected:?}");
    }
}

/// The comparison again in a process where fusion may not fuse anything.
#[test]
fn the_gpu_agrees_with_the_cpu_without_fusion() {
    if gpu().is_none() {
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_gpu_agrees_with_the_cpu"])
        .env("BURN_FUSION_MAX_EXPLORATIONS", "0")
        .status()
        .unwrap();
    assert!(status.success());
}

/// A device without bf16 says so before anything runs on it.
#[test]
fn products_in_bf16_are_close_or_refused() {
    let Some(device) = gpu() else { return };
    if let Err(error) = MatmulPrecision::Bf16.check(&device) {
        assert!(
            error.to_string().contains("has no bf16 products"),
            "{error}"
        );
        return;
    }
    let run = |precision| results(rwkv7(&device).with_matmul_precision(precision), &device);
    for (found, expected) in run(MatmulPrecision::Bf16)
        .iter()
        .zip(run(MatmulPrecision::F32))
    {
        let d = difference(found, &expected);
        assert!(d < 0.1, "{d}");
    }
}

/// What the program prints: standard output and standard error.
fn metastate(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> (String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_metastate"))
        .args(args)
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// The backend of these tests, as `--device` names it: that of BURN_DEVICE, or else the one that Burn takes.
fn backend() -> String {
    let compiled = [
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
        ("rocm", cfg!(feature = "rocm")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    let asked = std::env::var("BURN_DEVICE").ok();
    asked.unwrap_or_else(|| {
        let best = compiled.iter().find(|(_, is_compiled)| *is_compiled);
        best.unwrap().0.into()
    })
}

#[test]
fn every_adapter_is_listed_with_what_it_supports() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (found, error) = metastate(folder.path(), &["devices", "--json"], &[]);
    let found: serde_json::Value = serde_json::from_str(&found).expect(&error);
    let device = |name: &str| {
        let mut devices = found["devices"].as_array().unwrap().iter();
        devices.find(|device| device["device"] == name).unwrap()
    };
    let gpu = &device(&format!("{}:0", backend()))["supports"];
    assert_eq!(gpu["recurrence"], "custom operation", "{found}");
    assert!(gpu["largest_tensor"].as_u64().unwrap() > 1 << 20);
    assert_eq!(device("flex")["supports"]["runtime"], "flex");
    assert_eq!(found["kernels"]["kept"], true, "{found}");
}

/// A user's own configuration of CubeCL decides.
#[test]
fn kernels_are_kept_unless_a_file_says_no() {
    let kernels = |file: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let (found, error) = metastate(folder.path(), &["devices", "--describe", "flex"], &[]);
        let found: serde_json::Value = serde_json::from_str(&found).expect(&error);
        found["kernels"].clone()
    };
    let kept = kernels("cubecl.toml", "[autotune]\nlevel = \"minimal\"\n");
    assert_eq!(kept["kept"], true);
    assert!(kept["file"].as_str().unwrap().ends_with("default.db"));
    for (file, text) in [
        ("cubecl.toml", "[compilation]\ncache = false\n"),
        ("burn.toml", "[cubecl.compilation]\ncache = false\n"),
    ] {
        let refused = kernels(file, text);
        assert_eq!(refused["kept"], false, "{file}");
        assert!(refused["reason"].as_str().unwrap().contains("cubecl.toml"));
    }
    let elsewhere = kernels(
        "cubecl.toml",
        "[environment]\nname = \"other\"\npath = \"local\"\n",
    );
    let file = elsewhere["file"].as_str().unwrap();
    assert!(
        file.ends_with("other.db") && !file.contains("cache"),
        "{file}"
    );
}

#[test]
fn a_device_that_is_not_there_says_which_are() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}:99", backend());
    let (_, error) = metastate(folder.path(), &["train", "--device", &name], &[]);
    let first = format!("there is {}:0 (", backend());
    assert!(
        error.contains("no such adapter") && error.contains(&first),
        "{error}"
    );
}

/// A software driver computes on the processor too, and far slower.
#[test]
fn without_a_gpu_the_processor_computes() {
    let folder = tempfile::tempdir().unwrap();
    let (found, error) = metastate(folder.path(), &["devices", "--json"], &[]);
    let found: serde_json::Value = serde_json::from_str(&found).expect(&error);
    let mut devices = found["devices"].as_array().unwrap().iter();
    let is_gpu = |device: &serde_json::Value| {
        let kind = device["supports"]["kind"].as_str();
        kind.is_some_and(|kind| kind != "processor" && kind != SOFTWARE_DRIVER)
    };
    if let Some(gpu) = devices.find(|device| is_gpu(device)) {
        let _ = writeln!(stderr(), "skipped: there is a GPU, {gpu}");
        return;
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_metastate"))
        .args(["logits", "--model", "reverse-rwkv7", "--tokens", "1"])
        .env_remove("BURN_DEVICE")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("there is no GPU"), "{error}");
}

/// The message of a driver, never that of the channel to its thread.
#[cfg(feature = "wgpu")]
#[test]
fn a_missing_driver_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = [("CUBECL_WGPU_DEFAULT_DEVICE", "DiscreteGpu(7)")];
    let (_, error) = metastate(folder.path(), &["train", "--device", "wgpu"], &hidden);
    assert!(error.contains("device `wgpu` cannot be used"), "{error}");
    assert!(error.contains("metastate devices"), "{error}");
    assert!(
        !error.contains("RecvError") && !error.contains("panicked"),
        "{error}"
    );
}

#[test]
fn a_tensor_over_the_limit_of_the_device_is_an_error() {
    use rwkv7_core::device::{DeviceFailure, Support, watch};

    let Some(device) = gpu() else { return };
    let Some(largest) = Support::of(&device).largest_tensor else {
        let _ = writeln!(stderr(), "skipped: the device names no largest tensor");
        return;
    };
    let values = largest as usize / 4 + 4096;
    let failure = watch(|| {
        Tensor::<1>::zeros([values], &device)
            .narrow(0, 0, 2)
            .into_data()
    });
    assert!(
        matches!(
            failure,
            Err(DeviceFailure::TensorTooLarge { .. } | DeviceFailure::OutOfMemory { .. })
        ),
        "{failure:?}"
    );
    // The device goes on.
    assert_eq!(
        Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>(),
        2.0
    );
}
