//! The larger model's tensors, made by a plan when they are read.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use burn::tensor::{DType, Device, FloatDType, Shape, TensorData};
use burn_store::{bridge, burn_pack};
use rwkv7_core::{
    Rwkv7,
    checkpoint::{self, Checkpoint},
    init::random::named_seed,
};

use crate::{
    Growable, Plan, ScalingError, Step,
    apply::{Values, apply, identity, lift, paired, small, with_new_rows},
    layer::TensorRule,
};

/// The larger model of a model in memory, on `device` and with f32 parameters. `seed` decides the random values.
///
/// # Errors
///
/// [`ScalingError::Checkpoint`] if the model is not the plan's or has values that are not finite.
pub fn grow_model<S: Growable>(
    model: &Rwkv7<S::Layer>,
    plan: &Plan<S>,
    device: &Device,
    seed: u64,
) -> Result<Rwkv7<S::Layer>, ScalingError> {
    let source = Checkpoint::of_model(&plan.from, model);
    let tensors = tensors(&source, plan, None, seed, |_, _| {})?;
    let large = Checkpoint::of_tensors(&plan.to, tensors);
    let large = large.into_model(&plan.to, device, FloatDType::F32)?;
    Ok(large.with_matmul_precision(model.precision()))
}

/// The larger model's tensors. `progress` hears how many tensors are done, of how many; each tensor counts twice, for its checksum
/// and for the file.
pub(crate) fn tensors<S: Growable>(
    source: &Checkpoint,
    plan: &Plan<S>,
    dtype: Option<DType>,
    seed: u64,
    progress: impl Fn(usize, usize) + Send + Sync + 'static,
) -> Result<Vec<burn_pack::Tensor>, ScalingError> {
    let (progress, done) = (Arc::new(progress), Arc::new(AtomicUsize::new(0)));
    let old = source.tensors(&plan.from)?;
    let find = |name: &str| old.iter().find(|tensor| tensor.name == name).cloned();
    let default = find("emb.weight").map_or(DType::F32, |tensor| tensor.dtype);
    let tensor = |step: &Step| {
        let source = step.source.as_deref().and_then(find);
        // Rounded once, to the dtype that is written.
        let own = source.as_ref().map_or(default, |tensor| tensor.dtype);
        let dtype = dtype.unwrap_or(own);
        let shape = Shape::from(step.to.clone());
        let length = shape.num_elements() * dtype.size();
        let (plan, step) = (plan.clone(), step.clone());
        let name = step.name.clone();
        let embedding = match step.rule {
            TensorRule::Paired => EMBEDDING.map(find).to_vec(),
            _ => Vec::new(),
        };
        let (progress, done) = (progress.clone(), done.clone());
        let make = move || {
            progress(done.fetch_add(1, Ordering::Relaxed), 2 * plan.steps.len());
            // The same tensor of a model of another size has other random values.
            let label = format!("{} {} {}", plan.to.n_layer, plan.to.n_embd, step.name);
            let (whole, seed) = (seed, named_seed(seed, &label));
            let initial = || match checkpoint::initial_tensor(&plan.to, &step.name, seed) {
                Some(data) => data.iter::<f64>().collect(),
                None => unreachable!("{} is a tensor of the larger model", step.name),
            };
            let read = |tensor: &burn_pack::Tensor| -> Result<Vec<f64>, _> {
                Ok::<_, burn_pack::Error>(bridge::to_data(tensor)?.iter::<f64>().collect())
            };
            let values: Vec<f64> = match (&step.rule, &source) {
                (TensorRule::Lift, _) => lift(step.to[0], step.to[1], plan.scale(), step.heads),
                (TensorRule::Small, _) => small(&step.to, seed),
                (TensorRule::Identity, _) => identity(step.to[0]),
                (TensorRule::Paired, _) => {
                    let parts = embedding
                        .iter()
                        .flatten()
                        .map(read)
                        .collect::<Result<Vec<_>, _>>()?;
                    let [table, weight, bias] = parts.as_slice() else {
                        unreachable!("an embedding with a norm has three tensors");
                    };
                    // The same in all three tensors.
                    let seed = named_seed(whole, "tokens");
                    let table = with_new_rows(table, weight.len(), plan.to.vocab_size, seed);
                    let (width, epsilon) = (plan.to.n_embd, plan.to.layer_norm_eps);
                    let made = paired(&table, weight, bias, width, epsilon, step.heads);
                    let mut made = EMBEDDING.iter().zip(made);
                    let own = made.find(|(name, _)| **name == step.name);
                    own.map(|(_, values)| values).unwrap_or_default()
                }
                (TensorRule::Fresh, _) | (_, None) => initial(),
                (rule, Some(source)) => {
                    let old = Values {
                        data: read(source)?,
                        shape: step.from.clone(),
                    };
                    apply(rule, &old, &step.to, step.heads, seed, initial)
                }
            };
            let data = TensorData::new(values, step.to.clone()).convert_dtype(dtype);
            Ok(data.into_bytes())
        };
        burn_pack::Tensor::deferred(name, dtype, shape, None, length, make)
    };
    Ok(plan.steps.iter().map(tensor).collect())
}

/// The embedding and its norm.
const EMBEDDING: [&str; 3] = ["emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"];
