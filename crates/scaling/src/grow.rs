//! Files and running states made larger by a plan.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn::tensor::{DType, Device, FloatDType, Shape, Tensor, TensorData};
use burn_store::{bridge, burn_pack};
use rwkv7_core::{
    Rwkv7, State,
    checkpoint::{self, Checkpoint, Format},
    init::random::named_seed,
    layers::{ChannelMixer, TimeMixState},
    state::LayerState,
};

use crate::{
    Growable, Heads, Plan, ScalingError, Step,
    apply::{Values, apply, identity, lift, paired, small, with_new_rows},
    plan::heads,
    rules::{Rule, grow_matrices, pad_channels},
};

/// The state of a model whose channel mixers are `S`.
pub type StateOf<S> =
    State<<<S as rwkv7_core::config::ChannelMixerConfig>::Layer as ChannelMixer>::State>;

/// Writes the larger model, tensor by tensor; the file is complete or not there. `seed` decides the random values. Tensors
/// keep their dtype unless another is asked for; what is new gets that of the embedding. `progress` hears how many tensors are
/// done, of how many; each counts twice, for its checksum and for the file.
///
/// # Errors
///
/// [`ScalingError::Checkpoint`] if the source is not the plan's, is damaged, or the larger model cannot be written.
pub fn grow<S: Growable>(
    source: &Checkpoint,
    plan: &Plan<S>,
    path: &Path,
    format: Format,
    dtype: Option<DType>,
    seed: u64,
    progress: impl Fn(usize, usize) + Send + Sync + 'static,
) -> Result<(), ScalingError> {
    let tensors = tensors(source, plan, dtype, seed, progress)?;
    Ok(checkpoint::save_tensors(
        path, &plan.to, tensors, format, None,
    )?)
}

/// [`grow`] for a model in memory; the larger one is on `device`, with f32 parameters.
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

/// The larger model's tensors, made when they are read.
fn tensors<S: Growable>(
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
            Rule::Paired => EMBEDDING.map(find).to_vec(),
            _ => Vec::new(),
        };
        let (progress, done) = (progress.clone(), done.clone());
        let make = move || {
            progress(done.fetch_add(1, Ordering::Relaxed), 2 * plan.steps.len());
            // The same place in a model of another size has other values.
            let place = format!("{} {} {}", plan.to.n_layer, plan.to.n_embd, step.name);
            let (whole, seed) = (seed, named_seed(seed, &place));
            let initial = || match checkpoint::initial_tensor(&plan.to, &step.name, seed) {
                Some(data) => data.iter::<f64>().collect(),
                None => unreachable!("{} is a tensor of the larger model", step.name),
            };
            let read = |tensor: &burn_pack::Tensor| -> Result<Vec<f64>, _> {
                Ok::<_, burn_pack::Error>(bridge::to_data(tensor)?.iter::<f64>().collect())
            };
            let values: Vec<f64> = match (&step.rule, &source) {
                (Rule::Lift, _) => lift(step.to[0], step.to[1], plan.scale(), step.heads),
                (Rule::Small, _) => small(&step.to, seed),
                (Rule::Identity, _) => identity(step.to[0]),
                (Rule::Paired, _) => {
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
                    let place = EMBEDDING.iter().position(|name| *name == step.name);
                    let mut made = made.into_iter();
                    place.and_then(|place| made.nth(place)).unwrap_or_default()
                }
                (Rule::Fresh, _) | (_, None) => initial(),
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

impl<S: Growable> Plan<S> {
    /// How heads' states grow: naive methods copy nothing.
    fn state_heads(&self) -> Heads {
        let heads = heads(&self.from, &self.to);
        Heads {
            outside_norms: heads.outside_norms || self.method.is_naive(),
            ..heads
        }
    }

    /// The larger model's state that goes on where a state of the smaller one is: generation in progress gets the same logits.
    pub fn grow_state(&self, state: StateOf<S>) -> StateOf<S> {
        let dims = self.to.dims();
        let batch = state.batch_size();
        let device = state.layers[0].att.wkv.device();
        let zero = |layer: usize| {
            self.to
                .init_block(layer, &device, 0)
                .zero_state(batch, &device)
        };
        let layers = self
            .blocks
            .iter()
            .enumerate()
            .map(|(layer, source)| match source {
                Some(source) => {
                    let old = state.layers[*source].clone();
                    let heads = self.state_heads();
                    LayerState {
                        att: TimeMixState {
                            shift: pad_channels(old.att.shift, heads, &dims),
                            wkv: grow_matrices(old.att.wkv, heads, &dims),
                        },
                        ffn: self.from.ffn.grow_state(old.ffn, heads, &dims),
                    }
                }
                None => zero(layer),
            });
        State {
            layers: layers.collect(),
        }
    }
}

/// `x` with zeros at the end of an axis, up to `length`.
pub(crate) fn pad<const D: usize>(x: Tensor<D>, axis: usize, length: usize) -> Tensor<D> {
    let mut dims = x.dims();
    dims[axis] = length - dims[axis];
    if dims[axis] == 0 {
        return x;
    }
    let zeros = Tensor::zeros(dims, (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], axis)
}
