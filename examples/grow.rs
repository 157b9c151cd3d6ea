//! A trained model of the zoo becomes wider and deeper and computes the same.

use std::error::Error;

use burn::tensor::Device;
use metastate_scaling::{Embedding, Growth, Method, Plan};
use metastate_zoo::Source;
use rwkv7_core::{Rwkv7Config, checkpoint};

/// Grows `reverse-rwkv7` into a file and compares the logits of both models.
pub fn main() -> Result<(), Box<dyn Error>> {
    let small = Source::find("reverse-rwkv7".as_ref())?.open()?;
    let from: Rwkv7Config = small.config()?;
    let to = Rwkv7Config {
        n_layer: from.n_layer + 1,
        n_embd: from.n_embd + from.head_size,
        ..from.clone()
    };

    // The plan says how every tensor of the larger model is made. An exact plan loses nothing.
    let plan = Plan::new(&from, &to, Method::Lossless, Embedding::Lift)?.exact()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("large.safetensors");
    let difference = Growth::new(&plan)
        .verify(&Device::default())
        .run(small, &path)?;
    println!(
        "{} parameters became {}; largest difference of a logit: {difference:?}",
        from.num_params(),
        plan.to.num_params()
    );

    // The larger model is an ordinary checkpoint.
    let (config, _model) = checkpoint::load(&path, &Device::default())?;
    assert_eq!(config.n_layer, from.n_layer + 1);
    Ok(())
}
