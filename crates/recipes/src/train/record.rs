//! The content of a checkpoint's files, compared with what the run puts there before Burn reads them: Burn ends the program where
//! a record is not the module's.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::Device;
use burn_store::burn_pack::{Error, Reader, Tensor};
use rwkv7_core::{
    Rwkv7, Rwkv7Config, checkpoint::parameters, config::ChannelMixerConfig, layers::ChannelMixer,
};

use super::schedule;

/// The moments of AdamW among a parameter's state.
const MOMENTS: [&str; 2] = ["momentum.moment_1", "momentum.moment_2"];

/// Shape of every tensor of a model in training, by its name in the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes(BTreeMap<String, Vec<usize>>);

/// Shape of every parameter by its id, of which the optimizer's record speaks.
pub type Ids = BTreeMap<u64, Vec<usize>>;

impl Shapes {
    /// Those of this model, whose values are not made.
    pub fn of<M: ChannelMixer>(model: &Rwkv7<M>) -> Self {
        let named = parameters(model).into_iter();
        // `model` is the field of the step that is saved.
        Self(
            named
                .map(|p| (format!("model.{}", p.path), p.shape))
                .collect(),
        )
    }

    /// Those of a model of this configuration.
    pub fn of_config<S: ChannelMixerConfig>(config: &Rwkv7Config<S>) -> Self {
        Self::of(&config.init(&Device::default()))
    }

    /// Those in the record in `path`; the reason, if it is none.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shape = |tensor: Tensor| {
            (
                tensor.name,
                tensor.shape.iter().copied().collect::<Vec<usize>>(),
            )
        };
        Ok(Self(tensors(path)?.into_iter().map(shape).collect()))
    }

    /// A checksum of all names and shapes.
    pub fn digest(&self) -> String {
        let mut hash = crc32fast::Hasher::new();
        for (name, shape) in &self.0 {
            hash.update(format!("{name} {shape:?}\n").as_bytes());
        }
        format!("{:08x}", hash.finalize())
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// The ids and shapes of the tensors in the record in `path`, which has exactly those expected; the reason, if it has not.
pub fn check_model(path: &Path, expected: &Shapes) -> Result<Ids, String> {
    let mut ids = Ids::new();
    let mut missing = expected.0.clone();
    for tensor in tensors(path)? {
        let shape: Vec<usize> = tensor.shape.iter().copied().collect();
        match missing.remove(&tensor.name) {
            None => {
                return Err(format!(
                    "it has a tensor `{}`, and the model has not",
                    tensor.name
                ));
            }
            Some(expected) if expected != shape => {
                return Err(format!(
                    "tensor `{}` has shape {shape:?}, expected {expected:?}",
                    tensor.name
                ));
            }
            Some(_) => {}
        }
        let id = tensor
            .param_id
            .ok_or_else(|| format!("tensor `{}` has no id", tensor.name))?;
        if ids.insert(id, shape).is_some() {
            return Err(format!(
                "tensor `{}` has the id of another one",
                tensor.name
            ));
        }
    }
    match missing.keys().next() {
        Some(name) => Err(format!("tensor `{name}` is missing")),
        None => Ok(ids),
    }
}

/// Whether the record in `path` is the state of AdamW for these parameters; the reason, if not. `step`, where the run is still of
/// its first size: the steps that the optimizer took.
pub fn check_optimizer(path: &Path, ids: &Ids, step: Option<usize>) -> Result<(), String> {
    let reader = open(path)?;
    let mut largest = 0;
    for (name, value) in reader.scalars() {
        let Some((id, field)) = name.split_once('.') else {
            return Err(format!("`{name}` belongs to no parameter"));
        };
        let shape = id.parse().ok().and_then(|id: u64| ids.get(&id));
        let Some(shape) = shape else {
            return Err(format!(
                "`{name}` is of a parameter that the model does not have"
            ));
        };
        let count = usize::try_from(*value).ok();
        match field {
            "__rank" if count != Some(shape.len()) => {
                return Err(format!("`{name}` is {value:?}, expected {}", shape.len()));
            }
            "momentum.time" => largest = largest.max(count.unwrap_or(0)),
            _ => {}
        }
    }
    if let Some(step) = step.filter(|step| *step != largest) {
        return Err(format!(
            "it is the state after {largest} steps, expected {step}"
        ));
    }
    for tensor in reader.into_tensors().map_err(reason)? {
        let name = &tensor.name;
        let id = tensor
            .param_id
            .ok_or_else(|| format!("`{name}` has no id"))?;
        let shape = ids
            .get(&id)
            .ok_or_else(|| format!("`{name}` is of a parameter that the model does not have"))?;
        if !MOMENTS
            .iter()
            .any(|moment| *name == format!("{id}.{moment}"))
        {
            return Err(format!("`{name}` is no moment of AdamW"));
        }
        if tensor.shape.iter().ne(shape) {
            return Err(format!(
                "`{name}` has shape {:?}, expected {shape:?}",
                tensor.shape.iter().collect::<Vec<_>>()
            ));
        }
    }
    Ok(())
}

/// Whether the record in `path` is the schedule after `step` steps; the reason, if not.
pub fn check_schedule(path: &Path, step: usize) -> Result<(), String> {
    let reader = open(path)?;
    let steps = reader.scalars().iter();
    let steps = steps.filter(|(name, _)| name.rsplit('.').next() == Some(schedule::STEP));
    let mut found = 0;
    for (_, value) in steps {
        found += 1;
        if usize::try_from(*value).ok() != Some(step) {
            return Err(format!(
                "it is the schedule at step {value:?}, expected {step}"
            ));
        }
    }
    match found {
        0 => Err("it has no step".into()),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<Reader, String> {
    Reader::from_file_exact(path).map_err(reason)
}

fn tensors(path: &Path) -> Result<Vec<Tensor>, String> {
    open(path)?.into_tensors().map_err(reason)
}

fn reason(error: Error) -> String {
    error.to_string()
}
