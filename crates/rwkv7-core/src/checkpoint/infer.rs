//! A model's dimensions, read off the shapes of its tensors.

use std::{collections::BTreeMap, path::Path};

use burn_store::burn_pack::Tensor as PackTensor;

use crate::{
    Rwkv7Config,
    config::ChannelMixerConfig,
    layers::{ChannelMix, ChannelMixConfig, ChannelMixer},
};

use super::{CheckpointError, ModelMetadata};

/// The architecture of the channel mixers in block 0, if they are others than those of `S`; for unknown ones, how their names
/// begin.
pub fn other_architecture<S: ChannelMixerConfig>(tensors: &[PackTensor]) -> Option<String> {
    let mut others = Vec::new();
    for tensor in tensors {
        let part = tensor.name.strip_prefix("blocks.0.");
        match part.and_then(|part| part.split_once('.')) {
            Some((name, _)) if name == S::Layer::NAME => return None,
            Some(("att" | "ln0" | "ln1" | "ln2" | "lift", _)) | None => {}
            Some((name, _)) => others.push(name),
        }
    }
    let name = others.first()?;
    if *name == ChannelMix::NAME {
        return Some(ChannelMixConfig::ARCHITECTURE.into());
    }
    Some(format!("unknown, with layers `blocks.0.{name}.…`"))
}

/// Fewest tensors of a layer. The real number is 27 for time mixing and its norms, and those of the channel mixer.
const LEAST_TENSORS: usize = 10;

/// The number of layers by the names of the tensors. A name may contain any number, so the tensors must be enough for all layers
/// before anything is made for each of them.
fn number_of_layers(shapes: &BTreeMap<&str, Vec<usize>>) -> Result<usize, String> {
    let layer = |name: &str| {
        let (layer, _) = name.strip_prefix("blocks.")?.split_once('.')?;
        layer.parse::<usize>().ok()
    };
    let numbers = shapes.keys().filter_map(|name| Some((layer(name)?, *name)));
    let Some((last, name)) = numbers.max() else {
        return Ok(0);
    };
    match last.checked_add(1) {
        // A few missing tensors are listed one by one.
        Some(layers) if layers == 1 || layers <= shapes.len() / LEAST_TENSORS => Ok(layers),
        _ => Err(format!(
            "{name}: is of layer {last}, and the file has only {} tensors; each layer has at least {LEAST_TENSORS}",
            shapes.len()
        )),
    }
}

/// The configuration of the model that these official tensors make up. No shape shows the epsilons: they come from the metadata,
/// or are RWKV-7's.
///
/// # Errors
///
/// [`CheckpointError::Tensors`] lists every tensor that is needed for this and is missing or of another rank.
pub fn config<S: ChannelMixerConfig>(
    path: &Path,
    tensors: &[PackTensor],
    metadata: Option<&ModelMetadata>,
) -> Result<Rwkv7Config<S>, CheckpointError> {
    let shapes: BTreeMap<&str, Vec<usize>> = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.shape.iter().copied().collect()))
        .collect();
    let mut problems = Vec::new();
    let mut matrix = |name: &str| match shapes.get(name).map(Vec::as_slice) {
        Some(&[rows, cols]) => (rows, cols),
        Some(other) => {
            problems.push(format!("{name}: expected a matrix, found shape {other:?}"));
            (0, 0)
        }
        None => {
            problems.push(format!("{name}: missing"));
            (0, 0)
        }
    };
    let layers = number_of_layers(&shapes).map_err(|problem| CheckpointError::Tensors {
        path: path.to_path_buf(),
        architecture: S::ARCHITECTURE.into(),
        problems: vec![problem],
    })?;
    let (vocab_size, embed_width) = matrix("emb.weight");
    let lifted = shapes.contains_key("blocks.0.lift.weight");
    let n_embd = if lifted {
        matrix("blocks.0.lift.weight").0
    } else {
        embed_width
    };
    let (_, head_size) = matrix("blocks.0.att.r_k");
    let (_, decay_rank) = matrix("blocks.0.att.w1");
    let (_, in_context_rank) = matrix("blocks.0.att.a1");
    let (_, gate_rank) = matrix("blocks.0.att.g1");
    let fresh = Rwkv7Config::new(vocab_size.max(1), layers, n_embd.max(1));
    // Layer 0 never uses its value residual; a model of one layer has none whose width could be read.
    let value_rank = if layers > 1 {
        matrix("blocks.1.att.v1").1
    } else {
        shapes
            .get("blocks.0.att.v1")
            .and_then(|shape| shape.last().copied())
            .or_else(|| {
                metadata?
                    .config
                    .get("value_rank")?
                    .as_u64()?
                    .try_into()
                    .ok()
            })
            .unwrap_or(fresh.value_rank)
    };
    if !problems.is_empty() {
        return Err(CheckpointError::Tensors {
            path: path.to_path_buf(),
            architecture: S::ARCHITECTURE.into(),
            problems,
        });
    }
    let shape = |name: &str| shapes.get(format!("blocks.0.{name}").as_str()).cloned();
    let declared = metadata.and_then(|metadata| metadata.config.get("ffn"));
    let ffn = S::of_checkpoint(&shape, declared).map_err(|reason| CheckpointError::Undeclared {
        path: path.to_path_buf(),
        reason,
    })?;
    let epsilon = |name: &str, otherwise: f64| {
        let declared = metadata.and_then(|metadata| metadata.config.get(name)?.as_f64());
        declared.unwrap_or(otherwise)
    };
    let norm_prefix = metadata.and_then(|metadata| metadata.config.get("norm_prefix")?.as_u64());
    let config = Rwkv7Config {
        head_size,
        norm_prefix: norm_prefix.map(|prefix| usize::try_from(prefix).unwrap_or(usize::MAX)),
        decay_rank,
        in_context_rank,
        value_rank,
        gate_rank,
        embed_width: lifted.then_some(embed_width),
        embedding_norm: shapes.contains_key("blocks.0.ln0.weight"),
        layer_norm_eps: epsilon("layer_norm_eps", fresh.layer_norm_eps),
        group_norm_eps: epsilon("group_norm_eps", fresh.group_norm_eps),
        ..fresh.with_ffn(ffn)
    };
    config
        .validate()
        .map_err(|source| CheckpointError::Config {
            path: path.to_path_buf(),
            source,
        })?;
    Ok(config)
}
