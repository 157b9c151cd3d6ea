//! Files and running states made larger by a plan.

use std::path::Path;

use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_store::{bridge, burn_pack};
use rwkv7_core::{
    State,
    checkpoint::{self, Checkpoint, Format},
    layers::{SecondHalf, TimeMixState},
    state::LayerState,
};

use crate::{
    Growable, Plan, ScalingError, Step,
    apply::{Values, apply, lift, named_seed},
    rules::Rule,
};

/// The state of a model whose second halves are `S`.
pub type StateOf<S> =
    State<<<S as rwkv7_core::config::SecondHalfConfig>::Layer as SecondHalf>::State>;

/// Writes the larger model, tensor by tensor; the file is complete or not there. `seed` decides the random values. Tensors
/// keep their dtype unless another is asked for; what is new gets that of the embedding.
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
) -> Result<(), ScalingError> {
    let tensors = tensors(source, plan, dtype, seed)?;
    Ok(checkpoint::save_tensors(
        path, &plan.to, tensors, format, None,
    )?)
}

/// The larger model's tensors, made when they are read.
fn tensors<S: Growable>(
    source: &Checkpoint,
    plan: &Plan<S>,
    dtype: Option<DType>,
    seed: u64,
) -> Result<Vec<burn_pack::Tensor>, ScalingError> {
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
        let (config, scale, step) = (plan.to.clone(), plan.scale(), step.clone());
        let name = step.name.clone();
        let make = move || {
            let seed = named_seed(seed, &step.name);
            let initial = || match checkpoint::initial_tensor(&config, &step.name, seed) {
                Some(data) => data.iter::<f64>().collect(),
                None => unreachable!("{} is a tensor of the larger model", step.name),
            };
            let values: Vec<f64> = match (&step.rule, &source) {
                (Rule::Lift, _) => lift(step.to[0], step.to[1], scale),
                (Rule::Fresh, _) | (_, None) => initial(),
                (rule, Some(source)) => {
                    let old = Values {
                        data: bridge::to_data(source)?.iter::<f64>().collect(),
                        shape: step.from.clone(),
                    };
                    apply(rule, &old, &step.to, seed, initial)
                }
            };
            let data = TensorData::new(values, step.to.clone()).convert_dtype(dtype);
            Ok(data.into_bytes())
        };
        burn_pack::Tensor::deferred(name, dtype, shape, None, length, make)
    };
    Ok(plan.steps.iter().map(tensor).collect())
}

impl<S: Growable> Plan<S> {
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
                    LayerState {
                        att: TimeMixState {
                            shift: pad(old.att.shift, 1, dims.n_embd),
                            wkv: pad(old.att.wkv, 1, dims.n_head()),
                        },
                        second: self.from.second_half.grow_state(old.second, &dims),
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
