//! Burn and burn-store load files of ours and official ones, without the reader of this module.

use std::path::{Path, PathBuf};

use burn::{
    module::Module,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use burn_store::{
    FloatCastAdapter, ModuleAdapter, ModuleSnapshot, ModuleStore, PyTorchToBurnAdapter,
    PytorchStore, SafetensorsStore,
};

use super::{Checkpoint, Format, load, save};
use crate::{Rwkv7Config, Rwkv7Lm};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// The checkpoint of each model of the official package, its configuration, and the logits of our own reader's model.
fn models() -> impl Iterator<Item = (PathBuf, Rwkv7Config, TensorData)> {
    ["tiny-a.pth", "tiny-b.pth", "tiny-c.pth"]
        .map(golden)
        .into_iter()
        .map(|path| {
            let (config, model) = load(&path, &Device::default()).unwrap();
            let logits = logits(&model);
            (path, config, logits)
        })
}

fn logits(model: &Rwkv7Lm) -> TensorData {
    let tokens = Tensor::<2, Int>::from_data([[3, 1, 4, 1, 5, 9, 2, 6]], &Device::default());
    model.forward(tokens, None).0.into_data_dtype(DType::F32)
}

#[test]
fn burn_loads_records_that_were_converted_or_saved() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::default();
    for (path, config, expected) in models() {
        // The file holds a value residual for layer 0, which the module does not have.
        let checkpoint = Checkpoint::open(&path).unwrap();
        let converted = folder.path().join("converted.bpk");
        checkpoint
            .save(&config, &converted, Format::Burn, Some(DType::F32))
            .unwrap();
        let model = config.init(&device).load_file(&converted);
        assert_eq!(logits(&model), expected, "{}", path.display());

        let saved = folder.path().join("saved.bpk");
        save(&saved, &config, &model, Format::Burn, None).unwrap();
        let again = config.init(&device).load_file(&saved);
        assert_eq!(logits(&again), expected, "{}", path.display());

        // And the other way round.
        let burns = folder.path().join("burns.bpk");
        again.save_file(&burns).unwrap();
        let (found, model) = load(&burns, &device).unwrap();
        assert_eq!(found, config);
        assert_eq!(logits(&model), expected, "{}", path.display());
    }
}

#[test]
fn burn_store_loads_official_files() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::default();
    for (path, config, expected) in models() {
        let mut store = PytorchStore::from_file(&path);
        let mut model = config.init(&device);
        model.load_from(&mut store).unwrap();
        if model.head.weight.val().dtype() == DType::F32 {
            assert_eq!(logits(&model), expected, "{}", path.display());
        }

        // As f32 whatever the dtype of the file is.
        let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
        let tensors = store.get_all_tensors().unwrap().values().cloned().collect();
        let mut model = config.init(&device);
        let result = model.apply(tensors, None, Some(Box::new(adapter.clone())), true);
        assert!(result.missing.is_empty() && result.errors.is_empty());
        assert_eq!(logits(&model), expected, "{}", path.display());

        let safetensors = folder.path().join("official.safetensors");
        Checkpoint::open(&path)
            .unwrap()
            .save(&config, &safetensors, Format::Official, None)
            .unwrap();
        let mut store = SafetensorsStore::from_file(&safetensors).with_from_adapter(adapter);
        let mut model = config.init(&device);
        model.load_from(&mut store).unwrap();
        assert_eq!(logits(&model), expected, "{}", path.display());
    }
}
