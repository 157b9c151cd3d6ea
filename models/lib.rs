#![doc = include_str!("README.md")]

/// A trained model: the files of one folder.
#[derive(Debug)]
pub struct Trained {
    /// Name of the folder and of the model.
    pub name: &'static str,
    /// `config.json`, the configuration.
    pub config: &'static str,
    /// `recipe.json`, which trains such a model again.
    pub recipe: &'static str,
    /// `model.safetensors`, the weights.
    pub weights: &'static [u8],
}

macro_rules! trained {
    ($name:literal) => {
        Trained {
            name: $name,
            config: include_str!(concat!($name, "/config.json")),
            recipe: include_str!(concat!($name, "/recipe.json")),
            weights: include_bytes!(concat!($name, "/model.safetensors")),
        }
    };
}

/// Every model that has weights.
pub const TRAINED: &[Trained] = &[trained!("reverse-rwkv7"), trained!("reverse-meta-state")];

/// `sizes.json`: the dimensions of models without weights, under `paper` the sizes of the Meta-State paper, of each of which
/// there are three models, and under `published` the released models of RWKV-7.
pub const SIZES: &str = include_str!("sizes.json");
