//! Names and layouts of the same tensors in different files.
//!
//! Everything in this crate uses the official names (`blocks.0.att.receptance.weight`) and layouts: linear weights
//! `[out, in]`, low-rank factors `[C, rank]` and `[rank, C]`, per-channel vectors `[1, 1, C]`.

use std::collections::BTreeMap;

use burn::tensor::{Shape, TensorData};
use burn_store::{bridge, burn_pack::Tensor as PackTensor};

use super::wrappers::unwrapped;

/// Whose names the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamingScheme {
    /// The official ones, also under the prefixes `model.` and `rwkv7.` (Hugging Face).
    Official,
    /// flash-linear-attention's, in Hugging Face layout.
    Fla,
    /// Burn's: linear weights `[in, out]`, norms with `gamma` and `beta`.
    Burn,
}

/// How a tensor differs between the official layout and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Same,
    /// Rows and columns exchanged.
    Transposed,
    /// `[1, 1, C]` officially, `[C]` there.
    Flat,
}

use Layout::{Flat, Same, Transposed};

/// (official, flash-linear-attention, difference), outside the blocks.
const GLOBAL: &[(&str, &str, Layout)] = &[
    ("emb.weight", "model.embeddings.weight", Same),
    ("ln_out.weight", "model.norm.weight", Same),
    ("ln_out.bias", "model.norm.bias", Same),
    ("head.weight", "lm_head.weight", Same),
];

/// (official, flash-linear-attention, difference), after `blocks.{i}.` and `model.layers.{i}.`.
const PER_BLOCK: &[(&str, &str, Layout)] = &[
    ("ln0.weight", "pre_norm.weight", Same),
    ("ln0.bias", "pre_norm.bias", Same),
    ("ln1.weight", "attn_norm.weight", Same),
    ("ln1.bias", "attn_norm.bias", Same),
    ("ln2.weight", "ffn_norm.weight", Same),
    ("ln2.bias", "ffn_norm.bias", Same),
    ("att.x_r", "attn.x_r", Same),
    ("att.x_w", "attn.x_w", Same),
    ("att.x_k", "attn.x_k", Same),
    ("att.x_v", "attn.x_v", Same),
    ("att.x_a", "attn.x_a", Same),
    ("att.x_g", "attn.x_g", Same),
    ("att.w0", "attn.w_lora.lora.2.bias", Flat),
    ("att.w1", "attn.w_lora.lora.0.weight", Transposed),
    ("att.w2", "attn.w_lora.lora.2.weight", Transposed),
    ("att.a0", "attn.a_lora.lora.2.bias", Flat),
    ("att.a1", "attn.a_lora.lora.0.weight", Transposed),
    ("att.a2", "attn.a_lora.lora.2.weight", Transposed),
    ("att.v0", "attn.v_lora.lora.2.bias", Flat),
    ("att.v1", "attn.v_lora.lora.0.weight", Transposed),
    ("att.v2", "attn.v_lora.lora.2.weight", Transposed),
    ("att.g1", "attn.g_lora.lora.0.weight", Transposed),
    ("att.g2", "attn.g_lora.lora.2.weight", Transposed),
    ("att.k_k", "attn.k_k", Flat),
    ("att.k_a", "attn.k_a", Flat),
    ("att.r_k", "attn.r_k", Same),
    ("att.receptance.weight", "attn.r_proj.weight", Same),
    ("att.key.weight", "attn.k_proj.weight", Same),
    ("att.value.weight", "attn.v_proj.weight", Same),
    ("att.output.weight", "attn.o_proj.weight", Same),
    ("att.ln_x.weight", "attn.g_norm.weight", Same),
    ("att.ln_x.bias", "attn.g_norm.bias", Same),
    ("ffn.x_k", "ffn.x_k", Flat),
    ("ffn.key.weight", "ffn.key.weight", Same),
    ("ffn.value.weight", "ffn.value.weight", Same),
];

/// flash-linear-attention's older files hold the six token-shift mixes in one tensor `[6, C]`, in this order.
const FUSED_SHIFT: &str = "attn.x_x";
const FUSED_ORDER: [&str; 6] = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];

/// Per-channel vectors of the official layout, `[1, 1, C]`; some files hold them flat.
const VECTORS: [&str; 12] = [
    "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g", "att.w0", "att.a0", "att.v0",
    "att.k_k", "att.k_a", "ffn.x_k",
];

/// Recognises a file's names.
pub fn scheme(names: impl IntoIterator<Item = impl AsRef<str>>) -> NamingScheme {
    let fla = names.into_iter().any(|name| {
        let name = name.as_ref();
        name.contains(".r_proj.") || name.contains("_lora.lora.")
    });
    if fla {
        NamingScheme::Fla
    } else {
        NamingScheme::Official
    }
}

/// Gives tensors their official names and layouts; names that mean nothing to us stay as they are.
pub fn to_official(tensors: Vec<PackTensor>, scheme: NamingScheme) -> Vec<PackTensor> {
    tensors
        .into_iter()
        .flat_map(|tensor| match scheme {
            NamingScheme::Official => vec![official_prefix(tensor)],
            NamingScheme::Fla => from_fla(tensor),
            NamingScheme::Burn => vec![from_burn(tensor)],
        })
        .map(vector_shape)
        .collect()
}

/// Gives official tensors flash-linear-attention's names and layouts. Layer 0's value residual, which nobody uses, is
/// left out, as in the published files.
pub fn to_fla(tensors: Vec<PackTensor>) -> Vec<PackTensor> {
    tensors
        .into_iter()
        .filter(|tensor| !is_unused(&tensor.name))
        .map(|tensor| {
            let Some((prefix, entry)) = find(&tensor.name, |entry| entry.0, "blocks.") else {
                return tensor;
            };
            let name = match prefix {
                None => entry.1.to_string(),
                Some(layer) => format!("model.layers.{layer}.{}", entry.1),
            };
            relayout(tensor, name, entry.2)
        })
        .collect()
}

/// Gives official tensors the paths and layouts of the parameters of [`Rwkv7`](crate::Rwkv7), so that Burn loads them; `mixer` is
/// the checkpoint's name for the channel mixer. Layer 0's value residual, which the module does not have, is left out.
pub fn to_burn(tensors: Vec<PackTensor>, mixer: &str) -> Vec<PackTensor> {
    tensors
        .into_iter()
        .filter(|tensor| !is_unused(&tensor.name))
        .map(|tensor| {
            let mut name = rename_mixer(&tensor.name, mixer, "ffn");
            if is_norm(&name) {
                name = name.replace(".weight", ".gamma").replace(".bias", ".beta");
            }
            let layout = linear_layout(&tensor);
            relayout(tensor, name, layout)
        })
        .collect()
}

/// The tensor's name with another name for the channel mixer in it: `blocks.0.{from}.…` becomes `blocks.0.{to}.…`. The module
/// calls every channel mixer `ffn`; checkpoints call it by [`ChannelMixer::NAME`](crate::layers::ChannelMixer::NAME).
pub fn rename_mixer(name: &str, from: &str, to: &str) -> String {
    match name.splitn(4, '.').collect::<Vec<_>>().as_slice() {
        ["blocks", layer, part, rest] if *part == from => format!("blocks.{layer}.{to}.{rest}"),
        _ => name.to_string(),
    }
}

/// Whether this is one of the value-residual factors of layer 0, which no computation reads.
pub fn is_unused(name: &str) -> bool {
    matches!(
        name,
        "blocks.0.att.v0" | "blocks.0.att.v1" | "blocks.0.att.v2"
    )
}

fn official_prefix(mut tensor: PackTensor) -> PackTensor {
    let mut name = tensor.name.as_str();
    while let Some(rest) = ["model.", "rwkv7."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
    {
        name = unwrapped(rest);
    }
    tensor.name = name.to_string();
    tensor
}

fn from_fla(tensor: PackTensor) -> Vec<PackTensor> {
    if let Some(layer) = tensor
        .name
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.strip_suffix(FUSED_SHIFT))
        .and_then(|rest| rest.strip_suffix('.'))
    {
        return split_fused(&tensor, layer);
    }
    let Some((layer, entry)) = find(&tensor.name, |entry| entry.1, "model.layers.") else {
        return vec![tensor];
    };
    let name = match layer {
        None => entry.0.to_string(),
        Some(layer) => format!("blocks.{layer}.{}", entry.0),
    };
    vec![relayout(tensor, name, entry.2)]
}

/// The record may be of a module that holds the model in its field `model`.
fn from_burn(mut tensor: PackTensor) -> PackTensor {
    if let Some(name) = tensor.name.strip_prefix("model.") {
        tensor.name = name.to_string();
    }
    let name = match tensor.name.rsplit_once('.') {
        Some((path, "gamma")) => format!("{path}.weight"),
        Some((path, "beta")) => format!("{path}.bias"),
        _ => tensor.name.clone(),
    };
    let layout = linear_layout(&tensor);
    relayout(tensor, name, layout)
}

/// Linear weights are transposed in Burn; the embedding, the other matrix called `weight`, is not.
fn linear_layout(tensor: &PackTensor) -> Layout {
    let linear = tensor.name.ends_with(".weight")
        && tensor.shape.num_dims() == 2
        && tensor.name != "emb.weight";
    if linear { Transposed } else { Same }
}

fn is_norm(name: &str) -> bool {
    let mut parts = name.rsplit('.').skip(1);
    parts.next().is_some_and(|part| part.starts_with("ln"))
}

type Entry = (&'static str, &'static str, Layout);

/// The table's entry for a name, and the layer it belongs to.
fn find<'a>(
    name: &'a str,
    side: impl Fn(&Entry) -> &'static str,
    blocks: &str,
) -> Option<(Option<&'a str>, &'static Entry)> {
    if let Some((layer, rest)) = name.strip_prefix(blocks).and_then(|n| n.split_once('.')) {
        let entry = PER_BLOCK.iter().find(|entry| side(entry) == rest)?;
        return Some((Some(layer), entry));
    }
    let entry = GLOBAL.iter().find(|entry| side(entry) == name)?;
    Some((None, entry))
}

/// The tensor under another name, with its data rearranged when they are read.
fn relayout(mut tensor: PackTensor, name: String, layout: Layout) -> PackTensor {
    let dims: Vec<usize> = tensor.shape.iter().copied().collect();
    match (layout, dims.as_slice()) {
        (Transposed, &[rows, cols]) => {
            let (dtype, shape) = (tensor.dtype, Shape::from([cols, rows]));
            bridge::map_data(tensor, name, dtype, shape, move |data| {
                transposed(data, rows, cols)
            })
        }
        (Flat, &[1, 1, width]) => reshaped(tensor, name, vec![width]),
        (Flat, &[width]) => reshaped(tensor, name, vec![1, 1, width]),
        _ => {
            tensor.name = name;
            tensor
        }
    }
}

fn reshaped(tensor: PackTensor, name: String, dims: Vec<usize>) -> PackTensor {
    let (dtype, shape) = (tensor.dtype, Shape::from(dims.clone()));
    bridge::map_data(tensor, name, dtype, shape, move |data| {
        let dtype = data.dtype();
        TensorData::from_bytes(data.into_bytes(), dims.clone(), dtype)
    })
}

/// Vectors that a file holds flat get their official shape `[1, 1, C]`.
fn vector_shape(tensor: PackTensor) -> PackTensor {
    let is_vector = tensor
        .name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(_, rest)| VECTORS.contains(&rest));
    if is_vector && tensor.shape.num_dims() == 1 {
        let width = tensor.shape.num_elements();
        let name = tensor.name.clone();
        reshaped(tensor, name, vec![1, 1, width])
    } else {
        tensor
    }
}

/// Exchanges rows and columns whatever the element type: bits are moved, never read.
fn transposed(data: TensorData, rows: usize, cols: usize) -> TensorData {
    let dtype = data.dtype();
    let size = dtype.size();
    let bytes = data.into_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    TensorData::from_bytes_vec(out, [cols, rows], dtype)
}

fn split_fused(tensor: &PackTensor, layer: &str) -> Vec<PackTensor> {
    let width = tensor.shape.num_elements() / FUSED_ORDER.len();
    let dtype = tensor.dtype;
    FUSED_ORDER
        .iter()
        .enumerate()
        .map(|(i, mix)| {
            let name = format!("blocks.{layer}.att.{mix}");
            let shape = Shape::from([1, 1, width]);
            bridge::map_data(tensor.clone(), name, dtype, shape, move |data| {
                let bytes = data.into_bytes();
                let size = width * dtype.size();
                let part = bytes[i * size..(i + 1) * size].to_vec();
                TensorData::from_bytes_vec(part, [1, 1, width], dtype)
            })
        })
        .collect()
}

/// The embedding as the head, for files without a head.
pub fn tied_head(tensors: &[PackTensor]) -> Option<PackTensor> {
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    match find("head.weight") {
        Some(_) => None,
        None => {
            let mut head = find("emb.weight")?.clone();
            head.name = "head.weight".into();
            Some(head)
        }
    }
}

/// Names that occur twice.
pub fn duplicates(tensors: &[PackTensor]) -> Vec<String> {
    let mut counts = BTreeMap::new();
    for tensor in tensors {
        *counts.entry(tensor.name.as_str()).or_insert(0) += 1;
    }
    counts
        .into_iter()
        .filter(|&(_, count)| count > 1)
        .map(|(name, count)| format!("{name}: there {count} times under different names"))
        .collect()
}
