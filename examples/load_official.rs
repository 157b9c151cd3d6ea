//! An official checkpoint in a Burn module, by this project's reader and by Burn's own store.

use std::{error::Error, path::PathBuf};

use burn::tensor::{Device, Int, Tensor};
use burn_store::{ModuleSnapshot, PytorchStore};
use rwkv7_core::{checkpoint, ops};

/// Loads the `.pth` file that the command line names, or a tiny one of the tests.
pub fn main() -> Result<(), Box<dyn Error>> {
    let path = match std::env::args_os().nth(1) {
        Some(path) if path.to_string_lossy().ends_with(".pth") => PathBuf::from(path),
        _ => PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/golden/tiny-a.pth"
        )),
    };
    let device = Device::default();

    // The reader takes the configuration from the shapes of the tensors and checks every name and shape.
    let (config, model) = checkpoint::load(&path, &device)?;
    println!("{config:?}: {} parameters", config.num_params());

    let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
    let (logits, state) = model.forward(tokens.clone(), None);
    let [_, time, vocab_size] = logits.dims();
    println!(
        "{time} tokens, {vocab_size} logits each, {} values of state",
        state.num_values()
    );
    assert_eq!(vocab_size, config.vocab_size);

    // Fields have the official names, so Burn's own store reads the file as well.
    let mut model = config.init(&device);
    model.load_from(&mut PytorchStore::from_file(&path))?;
    let (again, _state) = model.forward(tokens, None);
    let difference = (logits - ops::widen(again))
        .abs()
        .max()
        .into_scalar::<f32>();
    println!("largest difference between both: {difference}");
    assert!(difference < 0.05);
    Ok(())
}
