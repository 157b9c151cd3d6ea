//! Checks of growths: some fields cannot change, and no dimension can shrink.

use std::fmt;

use rwkv7_core::Rwkv7Config;

use super::Method;
use crate::{Growable, ScalingError, layer::at_least};

/// Checks that a model of configuration `from` can grow to `to`.
pub(super) fn check<S: Growable>(
    from: &Rwkv7Config<S>,
    to: &Rwkv7Config<S>,
) -> Result<(), ScalingError> {
    for (field, from, to) in [
        ("vocab_size", from.vocab_size, to.vocab_size),
        ("n_layer", from.n_layer, to.n_layer),
        ("n_embd", from.n_embd, to.n_embd),
        ("number of heads", from.n_head(), to.n_head()),
        ("decay_rank", from.decay_rank, to.decay_rank),
        ("in_context_rank", from.in_context_rank, to.in_context_rank),
        ("value_rank", from.value_rank, to.value_rank),
        ("gate_rank", from.gate_rank, to.gate_rank),
    ] {
        at_least(field, from, to)?;
    }
    if to.head_size < from.head_size {
        let reason = "smaller heads are other slices of the same channels; for more heads make the model wider";
        return differs("head_size", &from.head_size, &to.head_size, reason);
    }
    if from.embedding_norm != to.embedding_norm {
        let reason = "the embedding is normalised or it is not; keep it";
        return differs(
            "embedding_norm",
            &from.embedding_norm,
            &to.embedding_norm,
            reason,
        );
    }
    for (field, from, to) in [
        ("layer_norm_eps", from.layer_norm_eps, to.layer_norm_eps),
        ("group_norm_eps", from.group_norm_eps, to.group_norm_eps),
    ] {
        if from != to {
            let reason = "it is part of what the model computes; keep it";
            return differs(field, &from, &to, reason);
        }
    }
    let prefix = from.norm_prefix.unwrap_or(from.head_size);
    if to.norm_prefix != from.norm_prefix && to.norm_prefix != Some(prefix) {
        return differs(
            "norm_prefix",
            &from.norm_prefix,
            &to.norm_prefix,
            "what norms over a head are taken over stays the same: leave it out, or give the old head size",
        );
    }
    from.ffn.check(&to.ffn)
}

/// Checks that the embedding can get channels in pairs.
pub(super) fn check_paired<S>(
    from: &Rwkv7Config<S>,
    to: &Rwkv7Config<S>,
    method: Method,
) -> Result<(), ScalingError> {
    let refused = |reason| Err(ScalingError::Paired { reason });
    if method.is_naive() {
        return refused("they are a way to lose nothing, and this method is not; leave them out");
    }
    if from.embed_width.is_some() {
        return refused("the model has a lift already; grow its lift");
    }
    if !from.embedding_norm {
        return refused("they need the embedding's norm, which this model has folded; use a lift");
    }
    if !(to.n_embd - from.n_embd).is_multiple_of(2) {
        return refused("they need an even number of new channels");
    }
    Ok(())
}

fn differs<T>(
    field: &'static str,
    from: &dyn fmt::Debug,
    to: &dyn fmt::Debug,
    reason: &'static str,
) -> Result<T, ScalingError> {
    Err(ScalingError::Differs {
        field,
        from: format!("{from:?}"),
        to: format!("{to:?}"),
        reason,
    })
}
