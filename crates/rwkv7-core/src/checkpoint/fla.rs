//! The `config.json` of flash-linear-attention (its `models/rwkv7/configuration_rwkv7.py`).

use std::path::Path;

use burn::tensor::DType;
use burn_store::burn_pack::Tensor as PackTensor;
use serde_json::Value;

use crate::{Rwkv7Config, config::ChannelMixerConfig, layers::ChannelMixConfig};

use super::{CheckpointError, ModelMetadata, metadata::config_beside};

/// The content of `config.json` beside these tensors.
pub(super) fn config<S: ChannelMixerConfig>(
    config: &Rwkv7Config<S>,
    tensors: &[PackTensor],
) -> serde_json::Value {
    let width = config.n_embd;
    let ffn = tensors
        .iter()
        .find(|t| t.name.ends_with("layers.0.ffn.key.weight"))
        .and_then(|t| t.shape.iter().next().copied())
        .unwrap_or(4 * width);
    serde_json::json!({
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "attn": null,
        "attn_mode": "chunk",
        "hidden_size": width,
        "hidden_ratio": ffn as f64 / width as f64,
        "intermediate_size": ffn,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "num_heads": config.n_head(),
        "decay_low_rank_dim": config.decay_rank,
        "gate_low_rank_dim": config.gate_rank,
        "a_low_rank_dim": config.in_context_rank,
        "v_low_rank_dim": config.value_rank,
        "hidden_act": "sqrelu",
        "norm_first": config.embedding_norm,
        "norm_bias": true,
        "norm_eps": config.layer_norm_eps,
        GROUP_NORM_EPS: config.group_norm_eps,
        "value_dim": vec![width; config.n_layer],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "fuse_norm": true,
        "fuse_cross_entropy": true,
        "initializer_range": 0.006,
        "torch_dtype": tensors.first().map_or("float32", |t| match t.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        }),
        "use_cache": true,
    })
}

/// The epsilons in the `config.json` beside flash-linear-attention's tensors. The epsilon of its group norm follows from the head
/// size, unless [`GROUP_NORM_EPS`] gives another. Tensors that come from no file have none.
pub(super) fn metadata(path: Option<&Path>) -> Result<Option<ModelMetadata>, CheckpointError> {
    let Some(json) = path.map_or(Ok(None), config_beside)? else {
        return Ok(None);
    };
    let number = |key: &str| json.get(key).and_then(Value::as_f64);
    let Some((layer, head)) = number("norm_eps").zip(number("head_dim")) else {
        return Ok(None);
    };
    let group = number(GROUP_NORM_EPS).unwrap_or(layer * head);
    let config = [("layer_norm_eps", layer), (GROUP_NORM_EPS, group)];
    Ok(Some(ModelMetadata {
        architecture: ChannelMixConfig::ARCHITECTURE.into(),
        config: config
            .map(|(key, value)| (key.into(), value.into()))
            .into_iter()
            .collect(),
    }))
}

/// A key that flash-linear-attention's own `config.json` does not have.
const GROUP_NORM_EPS: &str = "group_norm_eps";

/// Whether the `config.json` beside the tensors says that the embedding is the head too.
pub(super) fn is_tied(path: Option<&Path>) -> Result<bool, CheckpointError> {
    let json = path.map_or(Ok(None), config_beside)?;
    let tied = json
        .as_ref()
        .and_then(|json| json.get("tie_word_embeddings"));
    Ok(tied.and_then(Value::as_bool) == Some(true))
}
