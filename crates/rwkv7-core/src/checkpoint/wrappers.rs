//! Containers around a model's tensors that add nothing: prefixes of training programs, and checkpoints of a whole training run.

use burn_store::burn_pack::Tensor as PackTensor;

/// Entries of a training program's checkpoint that hold the model; what stands beside them is no part of it.
const MODEL: [&str; 2] = ["state_dict.", "model_state_dict."];

/// Entries that hold no part of the model, whatever the entry with the model is called.
const REST: [&str; 8] = [
    "optimizer.",
    "optimizer_states.",
    "optimizer_state_dict.",
    "optimizer_state.",
    "lr_schedulers.",
    "lr_scheduler.",
    "callbacks.",
    "loops.",
];

/// Prefixes of names: those of the entries, of wrappers for several devices, of DeepSpeed and of `torch.compile`.
const PREFIXES: [&str; 5] = [
    "state_dict.",
    "model_state_dict.",
    "module.",
    "_forward_module.",
    "_orig_mod.",
];

/// The model's tensors without containers.
pub fn strip(mut tensors: Vec<PackTensor>) -> Vec<PackTensor> {
    let begins = |tensor: &PackTensor, list: &[&str]| {
        list.iter().any(|prefix| tensor.name.starts_with(prefix))
    };
    if tensors.iter().any(|tensor| begins(tensor, &MODEL)) {
        tensors.retain(|tensor| begins(tensor, &MODEL));
    }
    tensors.retain(|tensor| !begins(tensor, &REST));
    for tensor in &mut tensors {
        tensor.name = unwrapped(&tensor.name).to_string();
    }
    tensors
}

/// The name without prefixes.
pub fn unwrapped(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}
