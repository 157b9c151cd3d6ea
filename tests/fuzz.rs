//! Damaged and hostile files: whatever is in a file, a loader answers with the content or with a short error, soon, and without
//! more memory than the file's length explains.
//!
//! `METASTATE_FUZZ` is the number of files that are tried; `cargo xtask fuzz` tries many. The files are the same in every run with
//! the same number.
#![allow(clippy::unwrap_used)]

mod torch_files;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use burn::tensor::{DType, Device, TensorData};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rwkv7_core::{
    Rwkv7Config, Rwkv7Lm,
    checkpoint::{Checkpoint, Format, load},
};
use safetensors::tensor::TensorView;
use zoo::{AnyConfig, AnyModel, run_folder};

/// Counts the bytes that are in use, and the most that were.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does everything, and counting touches no memory of it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a loader may use for each byte of a file, and for any file.
const BYTES_A_BYTE: usize = 100;
const BYTES_A_FILE: usize = 8 << 20;

/// Characters of the longest error.
const LONGEST_ERROR: usize = 20_000;

/// Time for one file. The tests of other programs may run beside.
const LONGEST: Duration = Duration::from_secs(5);

/// Loads a file, as a command would. The error is what the command would print.
type Load = Box<dyn Fn(&Path) -> Result<(), String>>;

/// A kind of file: a small good one, and its loader.
struct Loader {
    name: &'static str,
    /// Where the file lies in a folder of its own.
    file: &'static str,
    /// Files beside it.
    beside: Vec<(&'static str, Vec<u8>)>,
    good: Vec<u8>,
    load: Load,
}

#[test]
fn damaged_files_never_end_a_program_or_fill_its_memory() {
    let files: usize = match std::env::var("METASTATE_FUZZ") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => 2500,
    };
    let folder = tempfile::tempdir().unwrap();
    let loaders = loaders(folder.path());
    for loader in &loaders {
        let path = loader.place(folder.path());
        fs::write(&path, &loader.good).unwrap();
        // What is made once, such as threads, is not counted.
        (loader.load)(&path).unwrap_or_else(|error| panic!("{}: {error}", loader.name));
    }
    let quiet = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let mut problems = Vec::new();
    for number in 0..files {
        let loader = &loaders[number % loaders.len()];
        let mut rng = StdRng::seed_from_u64(number as u64);
        let content = damaged(&loader.good, &mut rng);
        if let Some(problem) = attempt(loader, &loader.place(folder.path()), &content) {
            problems.push(format!("file {number}, {}: {problem}", loader.name));
        }
    }
    panic::set_hook(quiet);
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

impl Loader {
    /// Makes the folder of the file and the files beside it.
    fn place(&self, folder: &Path) -> PathBuf {
        let folder = folder.join(self.name);
        fs::create_dir_all(&folder).unwrap();
        for (name, content) in &self.beside {
            let path = folder.join(name);
            if !path.exists() {
                fs::write(path, content).unwrap();
            }
        }
        folder.join(self.file)
    }
}

/// Loads a file with this content, and says what is wrong with the answer.
fn attempt(loader: &Loader, path: &Path, content: &[u8]) -> Option<String> {
    fs::write(path, content).unwrap();
    let before = USED.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let started = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (loader.load)(path)));
    let used = MOST.load(Ordering::Relaxed).saturating_sub(before);
    let bound = BYTES_A_FILE + BYTES_A_BYTE * content.len();
    match result {
        Err(cause) => {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| s.to_string()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
        Ok(Err(error)) if error.len() > LONGEST_ERROR => {
            Some(format!("an error of {} characters", error.len()))
        }
        _ if used > bound => Some(format!("{used} bytes for a file of {}", content.len())),
        _ if started.elapsed() > LONGEST => Some(format!("took {:?}", started.elapsed())),
        _ => None,
    }
}

/// The file with one to three changes: bits, numbers, cuts, insertions. Half of them are near an end, where headers lie.
fn damaged(good: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.random_range(1..=3) {
        if bytes.is_empty() {
            return bytes;
        }
        change(&mut bytes, rng);
    }
    bytes
}

const NUMBERS: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

fn change(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    let length = bytes.len();
    let near = length.min(2000);
    let at = match rng.random_range(0..4) {
        0 => rng.random_range(0..near),
        1 => length - 1 - rng.random_range(0..near),
        _ => rng.random_range(0..length),
    };
    let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
    match rng.random_range(0..8) {
        0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => bytes[at] = number as u8,
        3 => {
            let size = [2, 4, 8][rng.random_range(0..3)].min(length - at);
            bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
        }
        4 => {
            // A number in text, such as a shape or the number in a name.
            let Some(from) = (at..length).find(|&i| bytes[i].is_ascii_digit()) else {
                return;
            };
            let digits = bytes[from..].iter().take_while(|b| b.is_ascii_digit());
            let to = from + digits.count();
            let text = match rng.random_range(0..8) {
                0 => "-1".to_string(),
                1 => "18446744073709551616".to_string(),
                2 => "1e300".to_string(),
                _ => number.to_string(),
            };
            bytes.splice(from..to, text.into_bytes());
        }
        5 => bytes.truncate(at),
        6 => {
            let mut new = vec![0; rng.random_range(1..40)];
            rng.fill_bytes(&mut new);
            bytes.splice(at..at, new);
        }
        _ => {
            // A piece twice, or not at all.
            let to = (at + rng.random_range(1..200)).min(length);
            let piece = bytes[at..to].to_vec();
            match rng.random_bool(0.5) {
                true => bytes.splice(at..at, piece),
                false => bytes.splice(at..to, Vec::new()),
            };
        }
    }
}

/// Every kind of file that a model, its state or its configuration is read from.
fn loaders(folder: &Path) -> Vec<Loader> {
    let device = Device::default();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-b.pth");
    let official = Checkpoint::open(&golden).unwrap();
    let config: Rwkv7Config = official.config().unwrap();
    let tensors = official.read_all().unwrap();
    let written = |format: Format, file: &str| {
        let path = folder.join("made");
        official.save(&config, &path, format, None).unwrap();
        let bytes = fs::read(path.join(file)).or_else(|_| fs::read(&path));
        match path.is_dir() {
            true => fs::remove_dir_all(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        bytes.unwrap()
    };
    let fla = (
        "model.safetensors",
        written(Format::Fla, "model.safetensors"),
    );
    let config_json = written(Format::Fla, "config.json");
    let plain = plain_safetensors(&tensors);
    let (_, model) = load(&golden, &device).unwrap();
    let at = |name, file, good, load: Load| Loader {
        name,
        file,
        beside: Vec::new(),
        good,
        load,
    };
    let meta_state = zoo::Source::find("reverse-meta-state".as_ref()).unwrap();
    let meta_state = meta_state.open().unwrap().read_all().unwrap();
    let description = zoo::config("reverse-meta-state").unwrap();
    let description = serde_json::to_vec_pretty(&description).unwrap();
    vec![
        at("archive", "a.pth", fs::read(&golden).unwrap(), model_file()),
        at(
            "views",
            "a.pth",
            torch_files::File::together(&tensors).archive(),
            model_file(),
        ),
        at(
            "legacy",
            "a.pth",
            torch_files::File::separate(&tensors).legacy(),
            model_file(),
        ),
        at(
            "with-checksums",
            "a.safetensors",
            written(Format::Official, ""),
            model_file(),
        ),
        at("plain", "a.safetensors", plain.clone(), model_file()),
        at("record", "a.bpk", written(Format::Burn, ""), model_file()),
        at(
            "state",
            "a.state",
            state(folder, &config, &model),
            state_file(config, model),
        ),
        Loader {
            beside: vec![("a.safetensors", plain)],
            ..at(
                "index",
                "model.safetensors.index.json",
                br#"{"metadata": {}, "weight_map": {"emb.weight": "a.safetensors", "head.weight": "a.safetensors"}}"#
                    .to_vec(),
                folder_of(model_file()),
            )
        },
        Loader {
            beside: vec![fla],
            ..at("config", "config.json", config_json, folder_of(model_file()))
        },
        Loader {
            beside: vec![("model.safetensors", plain_safetensors(&meta_state))],
            ..at(
                "meta-state-config",
                "config.json",
                description,
                folder_of(model_file()),
            )
        },
        at(
            "configuration",
            "a.json",
            serde_json::to_vec(zoo::config("150m-meta-state-paper").as_ref().unwrap()).unwrap(),
            Box::new(configuration),
        ),
    ]
}

/// Tensors without checksums and metadata, as other programs write them.
fn plain_safetensors(tensors: &BTreeMap<String, TensorData>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, data)| {
        let dtype = match data.dtype() {
            DType::BF16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
            _ => safetensors::Dtype::F32,
        };
        let shape = data.shape().to_vec();
        (
            name,
            TensorView::new(dtype, shape, data.as_bytes()).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

fn state(folder: &Path, config: &Rwkv7Config, model: &Rwkv7Lm) -> Vec<u8> {
    let path = folder.join("made");
    let state = model.zero_state(1, &Device::default());
    state.save(&path, config, Some(7)).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &error.to_string();
        cause = error.source();
    }
    text
}

fn model_file() -> Load {
    let device = Device::default();
    Box::new(move |path| {
        let checkpoint = run_folder::open(path).map_err(text)?;
        let config = AnyConfig::of(&checkpoint).map_err(text)?;
        AnyModel::load(checkpoint, &device).map_err(text)?;
        assert!(config.num_params() > 0);
        Ok(())
    })
}

/// The loader of a file, for the folder that the file is in.
fn folder_of(load: Load) -> Load {
    Box::new(move |path| load(path.parent().unwrap()))
}

fn state_file(config: Rwkv7Config, model: Rwkv7Lm) -> Load {
    Box::new(move |path| {
        let zero = model.zero_state(1, &Device::default());
        zero.load(path, &config).map(drop).map_err(text)
    })
}

/// A configuration as a recipe or a command line gives it.
fn configuration(path: &Path) -> Result<(), String> {
    let json = fs::read(path).unwrap();
    let config: AnyConfig = serde_json::from_slice(&json).map_err(text)?;
    let _ = (config.num_params(), config.num_state_values());
    config.validate().map_err(text)
}
