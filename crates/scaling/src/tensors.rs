//! The larger model's tensors, made by a plan when they are read.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use burn::tensor::{DType, Device, FloatDType, Shape, TensorData};
use burn_store::{bridge, burn_pack};
use rwkv7_core::{
    Rwkv7,
    checkpoint::{self, Checkpoint, CheckpointError},
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
/// [`ScalingError::Checkpoint`] if the model is not the plan's, [`ScalingError::NotFinite`] if a value is no finite number.
pub fn grow_model<S: Growable>(
    model: &Rwkv7<S::Layer>,
    plan: &Plan<S>,
    device: &Device,
    seed: u64,
) -> Result<Rwkv7<S::Layer>, ScalingError> {
    let source = Checkpoint::of_model(&plan.from, model);
    let large = with_tensors(
        &source,
        plan,
        None,
        seed,
        |_, _| {},
        |tensors| {
            Checkpoint::of_tensors(&plan.to, tensors).into_model(&plan.to, device, FloatDType::F32)
        },
    )?;
    Ok(large.with_matmul_precision(model.precision()))
}

/// Gives the larger model's tensors to `take`, which reads them. `progress` hears how many tensors are done, of how many; each
/// tensor counts twice, for its checksum and for the file.
pub(crate) fn with_tensors<S: Growable, T>(
    source: &Checkpoint,
    plan: &Plan<S>,
    dtype: Option<DType>,
    seed: u64,
    progress: impl Fn(usize, usize) + Send + Sync + 'static,
    take: impl FnOnce(Vec<burn_pack::Tensor>) -> Result<T, CheckpointError>,
) -> Result<T, ScalingError> {
    let (progress, done) = (Arc::new(progress), Arc::new(AtomicUsize::new(0)));
    // A tensor that is read cannot give a reason of this crate when it fails.
    let problem = Arc::new(Mutex::new(None));
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
        let (progress, done, problem) = (progress.clone(), done.clone(), problem.clone());
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
            let exact = values.iter().all(|value| value.is_finite());
            let data = TensorData::new(values, step.to.clone()).convert_dtype(dtype);
            let count = data.iter::<f64>().filter(|x| !x.is_finite()).count();
            if count > 0 {
                let error = ScalingError::NotFinite {
                    tensor: step.name.clone(),
                    count,
                    of: data.num_elements(),
                    dtype: dtype.name(),
                    reason: match exact {
                        true => {
                            "they are too large for it; take a dtype of a larger range, such as f32"
                        }
                        false => {
                            "the model has such values; its training diverged, or its file is damaged"
                        }
                    },
                };
                let failed = burn_pack::Error::ValidationError(error.to_string());
                *problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return Err(failed);
            }
            Ok(data.into_bytes())
        };
        burn_pack::Tensor::deferred(name, dtype, shape, None, length, make)
    };
    let tensors: Vec<_> = plan.steps.iter().map(tensor).collect();
    let taken = take(tensors);
    let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
    match problem.take() {
        Some(problem) => Err(problem),
        None => Ok(taken?),
    }
}

/// The embedding and its norm.
const EMBEDDING: [&str; 3] = ["emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"];
