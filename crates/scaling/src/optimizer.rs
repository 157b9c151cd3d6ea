//! Adam's moments that grow with the parameters.

use std::collections::{BTreeMap, HashMap};

use burn::{
    optim::OptimizerRecord,
    tensor::{Bytes, TensorData},
};
use burn_store::{
    bridge,
    burn_pack::{Reader, Scalar, Tensor as PackTensor, Writer},
};
use rwkv7_core::{
    Rwkv7,
    checkpoint::{Parameter, parameters},
};

use crate::{
    Growable, Plan, ScalingError, Step,
    apply::{Values, apply},
};

/// The names of the means of the gradients' powers in Burn's Adam and AdamW, and the powers.
const MOMENTS: [(&str, i32); 2] = [("momentum.moment_1", 1), ("momentum.moment_2", 2)];

/// The state of Adam or AdamW for the larger model. Moments of old entries are scaled as their gradients are, and those of new
/// entries are zero. Parameters of new blocks have no moments and start from step 0. `state` belongs to the parameters of `from`;
/// the result belongs to those of `to`.
///
/// # Errors
///
/// [`ScalingError::Optimizer`] if the state is of another model or another optimizer.
///
/// ```
/// use burn::{optim::GradientsParams, tensor::{Device, Int, Tensor}};
/// use metastate_scaling::{Embedding, Method, Plan, grow_model, grow_optimizer};
/// use rwkv7_core::{Rwkv7Config, loss, optimizer::OptimizerConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::default().autodiff();
/// let from = Rwkv7Config { head_size: 16, ..Rwkv7Config::new(256, 1, 32) };
/// let small = from.init(&device);
/// let mut optimizer = OptimizerConfig::default().init();
/// let tokens = || Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
/// let loss = loss::cross_entropy(small.forward(tokens(), None).0, tokens(), None);
/// let gradients = GradientsParams::from_grads(loss.backward(), &small);
/// let small = optimizer.step(1e-3, small, gradients);
///
/// let to = Rwkv7Config { n_embd: 48, ..from.clone() };
/// let plan = Plan::new(&from, &to, Method::Lossless, Embedding::Lift)?.exact()?;
/// let large = grow_model(&small, &plan, &device, 0)?;
/// let state = grow_optimizer(&plan, &small, &large, optimizer.to_record())?;
/// // Training goes on with the larger model.
/// let optimizer = OptimizerConfig::default().init().load_record(state);
/// # let _ = optimizer;
/// # Ok(()) }
/// ```
pub fn grow_optimizer<S: Growable>(
    plan: &Plan<S>,
    from: &Rwkv7<S::Layer>,
    to: &Rwkv7<S::Layer>,
    state: OptimizerRecord,
) -> Result<OptimizerRecord, ScalingError> {
    let state = State::read(state)?;
    let known = |list: Vec<Parameter>| -> BTreeMap<String, Parameter> {
        let named = list.into_iter().map(|p| (p.name.clone(), p));
        named.collect()
    };
    let (old, new) = (known(parameters(from)), known(parameters(to)));
    if let Some(id) = state
        .ids()
        .find(|id| !old.values().any(|p| p.id.val() == *id))
    {
        return Err(wrong(format!(
            "it has a parameter {id} that the model does not have"
        )));
    }
    let mut grown = State::default();
    for step in &plan.steps {
        let source = step.source.as_ref().and_then(|name| old.get(name));
        let (Some(source), Some(target)) = (source, new.get(&step.name)) else {
            continue;
        };
        grow_parameter(&state, &mut grown, step, source, target)?;
    }
    grown.write()
}

fn grow_parameter(
    state: &State,
    grown: &mut State,
    step: &Step,
    source: &Parameter,
    target: &Parameter,
) -> Result<(), ScalingError> {
    let [before, after] = [source, target].map(|parameter| parameter.id.val());
    for (field, order) in MOMENTS {
        let Some(data) = state.tensors.get(&format!("{before}.{field}")) else {
            continue;
        };
        let Some(rule) = step.rule.of_moment(order) else {
            return Ok(());
        };
        if data.shape().iter().ne(&source.shape) {
            let (name, expected, found) = (&source.name, &source.shape, data.shape());
            return Err(wrong(format!(
                "{field} of {name} has shape {found:?}, expected {expected:?}"
            )));
        }
        let old = Values {
            data: official(
                data.iter::<f64>().collect(),
                &source.shape,
                source.transposed,
            ),
            shape: step.from.clone(),
        };
        let values = apply(&rule, &old, &step.to, step.heads, 0, Vec::new);
        // From the official layout back to the module's.
        let values = official(values, &step.to, target.transposed);
        let data = TensorData::new(values, target.shape.clone()).convert_dtype(data.dtype());
        grown.tensors.insert(format!("{after}.{field}"), data);
    }
    let prefix = format!("{before}.");
    for (name, scalar) in &state.scalars {
        if let Some(field) = name.strip_prefix(&prefix) {
            grown.scalars.insert(format!("{after}.{field}"), *scalar);
        }
    }
    if let Some(path) = state.paths.get(&before.to_string()) {
        // The model may be a part of a larger module.
        let around = path.strip_suffix(&source.path).unwrap_or_default();
        let path = format!("{around}{}", target.path);
        grown.paths.insert(after.to_string(), path);
    }
    Ok(())
}

/// A row-major matrix of this shape transposed, if it is to be.
fn official(values: Vec<f64>, shape: &[usize], transposed: bool) -> Vec<f64> {
    match *shape {
        [rows, columns] if transposed => (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect(),
        _ => values,
    }
}

/// An optimizer's record taken apart.
#[derive(Default)]
struct State {
    tensors: BTreeMap<String, TensorData>,
    scalars: BTreeMap<String, Scalar>,
    paths: HashMap<String, String>,
}

impl State {
    fn read(record: OptimizerRecord) -> Result<Self, ScalingError> {
        let failed = |error: &dyn std::fmt::Display| wrong(error.to_string());
        let bytes = record.into_bytes().map_err(|e| failed(&e))?;
        let reader = Reader::from_bytes(bytes).map_err(|e| failed(&e))?;
        let scalars = reader.scalars().clone();
        let paths = reader.metadata().clone();
        let mut tensors = BTreeMap::new();
        for tensor in reader.into_tensors().map_err(|e| failed(&e))? {
            let data = bridge::to_data(&tensor).map_err(|e| failed(&e))?;
            tensors.insert(tensor.name, data);
        }
        if let Some(name) = tensors
            .keys()
            .find(|name| !MOMENTS.iter().any(|(field, _)| name.ends_with(field)))
        {
            return Err(wrong(format!("`{name}` is no moment of Adam")));
        }
        Ok(Self {
            tensors,
            scalars: scalars.into_iter().collect(),
            paths: paths.into_iter().collect(),
        })
    }

    /// The parameters with moments.
    fn ids(&self) -> impl Iterator<Item = u64> {
        let id = |name: &String| name.split('.').next()?.parse().ok();
        self.tensors.keys().filter_map(id)
    }

    fn write(self) -> Result<OptimizerRecord, ScalingError> {
        let tensors = self.tensors.into_iter().map(|(name, data)| {
            let id = name.split('.').next().and_then(|id| id.parse().ok());
            let (bytes, shape, dtype) = data.into_parts();
            PackTensor::new(name, dtype, shape, id, bytes)
        });
        let mut writer = Writer::new(tensors.collect());
        for (name, scalar) in &self.scalars {
            writer = writer.with_scalar(name, *scalar);
        }
        for (name, path) in &self.paths {
            writer = writer.with_metadata(name, path);
        }
        let failed = |error: &dyn std::fmt::Display| wrong(error.to_string());
        let bytes: Bytes = writer.into_bytes().map_err(|e| failed(&e))?;
        OptimizerRecord::from_bytes(bytes).map_err(|e| failed(&e))
    }
}

fn wrong(reason: String) -> ScalingError {
    ScalingError::Optimizer { reason }
}
