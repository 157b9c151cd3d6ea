//! Files that hold tensors and no RWKV-7 model: what they are, and what to do.

use burn_store::burn_pack::Tensor as PackTensor;

/// What the tensors are, if their names are clearly those of something else, and the remedy.
pub fn other_model(tensors: &[PackTensor]) -> Option<(String, &'static str)> {
    let any = |matches: &dyn Fn(&str) -> bool| tensors.iter().any(|t| matches(&t.name));
    let ends = |part: &'static str| move |name: &str| name.ends_with(part);
    let has_table = any(&|name| name == "emb.weight");
    if tensors.is_empty() {
        return Some((
            "a file without tensors".into(),
            "name a file with the weights of a model",
        ));
    }
    if any(&|name| name.contains(".lora_") || name.ends_with(".bone") || name.contains(".pissa")) {
        let found = match has_table {
            true => "a model with a LoRA adapter that is not merged into it",
            false => "a LoRA adapter without its model",
        };
        return Some((
            found.into(),
            "merge the adapter into its base model with the program that trained it, and name the merged file",
        ));
    }
    if !has_table && any(&ends(".att.time_state")) {
        return Some((
            "a tuned initial state without its model".into(),
            "name the file of the model; tuned states are not read",
        ));
    }
    if !has_table && any(&ends(".att.wkv")) {
        return Some((
            "the saved state of a text, not a model".into(),
            "give it to --state-in, and name the file of the model",
        ));
    }
    if let Some(version) = version(&any) {
        return Some((
            format!("a model of RWKV-{version}"),
            "this program runs RWKV-7, whose published files have `x070` in their names",
        ));
    }
    if has_table || any(&|name| name.starts_with("blocks.")) {
        return None;
    }
    let prefix = tensors
        .iter()
        .find_map(|tensor| tensor.name.strip_suffix("emb.weight"));
    if let Some(prefix) = prefix {
        return Some((
            format!("the names of its tensors begin with `{prefix}`"),
            "save them without this prefix, so that one of them is `emb.weight`",
        ));
    }
    let names: Vec<&str> = tensors.iter().take(3).map(|t| t.name.as_str()).collect();
    Some((
        format!("no RWKV-7: it holds tensors such as {}", names.join(", ")),
        "RWKV-7 has tensors such as emb.weight and blocks.0.att.receptance.weight; name the file of such a model",
    ))
}

/// The version of an older RWKV, by names that RWKV-7 does not have.
fn version(any: &dyn Fn(&dyn Fn(&str) -> bool) -> bool) -> Option<&'static str> {
    let has =
        |part: &str| any(&|name: &str| name.starts_with("blocks.0.att.") && name.contains(part));
    if has(".time_maa_") {
        return Some("6");
    }
    if !has(".time_decay") {
        return None;
    }
    match has(".ln_x.") {
        true => Some("5"),
        false => Some("4"),
    }
}
