//! The running state of a model: all that the model remembers of the tokens it has read. Its size is constant.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Tensor, TensorData};

use crate::{
    layers::{ChannelMixState, TimeMixState},
    messages::{brief, listed},
};

/// Tensors by name.
pub type TensorMap = BTreeMap<String, TensorData>;

/// State of a model whose channel mixers have states `S`.
///
/// [`Rwkv7::forward`](crate::Rwkv7::forward) takes and gives it; `save` and `load` (feature `checkpoint`) keep it in a file.
#[derive(Clone, Debug)]
pub struct State<S = ChannelMixState> {
    /// One state for each block, from the first to the last.
    pub layers: Vec<LayerState<S>>,
}

/// State of one block.
#[derive(Clone, Debug)]
pub struct LayerState<S = ChannelMixState> {
    /// State of time mixing.
    pub att: TimeMixState,
    /// State of the channel mixer.
    pub ffn: S,
}

/// A state that can be saved, loaded and cut off from the autodiff graph.
pub trait StateTensors: Clone + std::fmt::Debug + Send {
    /// Names every tensor.
    fn write(&self, out: &mut TensorWriter);

    /// A state of the same shapes and devices as `self`, with the values of a file.
    ///
    /// # Errors
    ///
    /// [`StateError`] if a tensor is missing or has another shape.
    fn read(&self, from: &mut TensorReader) -> Result<Self, StateError>;

    /// The same values, through which no gradient flows.
    fn detach(self) -> Self;
}

/// The state of a layer that looks at one token only.
impl StateTensors for () {
    fn write(&self, _out: &mut TensorWriter) {}

    fn read(&self, _from: &mut TensorReader) -> Result<Self, StateError> {
        Ok(())
    }

    fn detach(self) {}
}

/// A state file does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[cfg(feature = "checkpoint")]
    #[error(transparent)]
    File(#[from] crate::checkpoint::CheckpointError),
    /// A tensor of the model's state is not in the file.
    #[error(
        "{file}: the state has no tensor `{name}`, which this model needs; it holds {}",
        brief(held)
    )]
    Missing {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The tensors that the file holds.
        held: String,
    },
    /// The state of another model.
    #[error("{file}: the state of another model:\n  {}", listed(differences))]
    OtherModel {
        /// The file.
        file: String,
        /// One line a field of the configuration.
        differences: Vec<String>,
    },
    /// A tensor has another shape than the model's.
    #[error(
        "{file}: state tensor `{name}` has shape {found:?}, this model needs {expected:?}; the state was saved by a model \
         of another size or for another batch"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the model needs.
        expected: Vec<usize>,
    },
    /// The file holds tensors that the model has no use for.
    #[error(
        "{file}: the state holds tensors that this model does not have: {}",
        brief(names)
    )]
    Unknown {
        /// The file.
        file: String,
        /// The tensors.
        names: String,
    },
}

/// Collects the tensors of a state under their names.
#[derive(Default)]
pub struct TensorWriter {
    prefix: String,
    tensors: TensorMap,
}

impl TensorWriter {
    /// Adds a tensor, in f32.
    pub fn put<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        let data = tensor.to_data_dtype(DType::F32);
        self.tensors.insert(format!("{}{name}", self.prefix), data);
    }
}

/// Number of values in a layer's state.
pub(crate) fn num_values(state: &impl StateTensors) -> usize {
    let mut out = TensorWriter::default();
    state.write(&mut out);
    out.tensors.values().map(TensorData::num_elements).sum()
}

/// Hands out the tensors of a state file by name.
pub struct TensorReader {
    file: String,
    prefix: String,
    tensors: TensorMap,
    /// The tensors of the file, for messages.
    held: String,
}

/// Such as "2 layers of att.shift, att.wkv, ffn.shift".
fn held(tensors: &TensorMap) -> String {
    let parts = tensors.keys().filter_map(|name| {
        let (layer, tensor) = name.strip_prefix("blocks.")?.split_once('.')?;
        Some((layer, tensor))
    });
    let layers: BTreeSet<&str> = parts.clone().map(|(layer, _)| layer).collect();
    let names: BTreeSet<&str> = parts.map(|(_, tensor)| tensor).collect();
    if layers.is_empty() {
        return "no layer's state".into();
    }
    let names: Vec<&str> = names.into_iter().collect();
    format!("{} layers of {}", layers.len(), names.join(", "))
}

impl TensorReader {
    /// Takes the tensor `name`, which must have the shape of `like` and goes to its device.
    ///
    /// # Errors
    ///
    /// [`StateError::Missing`] or [`StateError::Shape`].
    pub fn take<const D: usize>(
        &mut self,
        name: &str,
        like: &Tensor<D>,
    ) -> Result<Tensor<D>, StateError> {
        let name = format!("{}{name}", self.prefix);
        let data = self
            .tensors
            .remove(&name)
            .ok_or_else(|| StateError::Missing {
                file: self.file.clone(),
                name: name.clone(),
                held: self.held.clone(),
            })?;
        if data.shape().as_slice() != like.dims() {
            return Err(StateError::Shape {
                file: self.file.clone(),
                name,
                found: data.shape().to_vec(),
                expected: like.dims().to_vec(),
            });
        }
        Ok(Tensor::from_data(data, (&like.device(), DType::F32)))
    }
}

impl<S: StateTensors> State<S> {
    /// Number of values in the state of all rows of the batch. The number does not depend on the tokens that were read.
    pub fn num_values(&self) -> usize {
        self.named().values().map(TensorData::num_elements).sum()
    }

    /// Number of rows of the batch.
    pub fn batch_size(&self) -> usize {
        self.layers
            .first()
            .map_or(0, |layer| layer.att.wkv.dims()[0])
    }

    /// The same values, through which no gradient flows.
    pub fn detach(self) -> Self {
        let layers = self
            .layers
            .into_iter()
            .map(|layer| LayerState {
                att: TimeMixState {
                    shift: layer.att.shift.detach(),
                    wkv: layer.att.wkv.detach(),
                },
                ffn: layer.ffn.detach(),
            })
            .collect();
        Self { layers }
    }

    /// Every tensor in f32 under its name: `blocks.{i}.att.shift [batch, C]`,
    /// `blocks.{i}.att.wkv [batch, heads, value, key]` and those of the channel mixer.
    pub fn named(&self) -> TensorMap {
        let mut out = TensorWriter::default();
        for (i, layer) in self.layers.iter().enumerate() {
            out.prefix = format!("blocks.{i}.");
            out.put("att.shift", &layer.att.shift);
            out.put("att.wkv", &layer.att.wkv);
            layer.ffn.write(&mut out);
        }
        out.tensors
    }

    /// A state of the shapes and on the devices of `self` with the values that [`named`](Self::named) gave; `source` stands for
    /// the tensors in messages, such as the name of their file.
    ///
    /// # Errors
    ///
    /// [`StateError`] if a tensor is missing, unknown or of another shape.
    pub fn with_values(&self, source: &str, tensors: TensorMap) -> Result<Self, StateError> {
        let mut from = TensorReader {
            file: source.to_string(),
            prefix: String::new(),
            held: held(&tensors),
            tensors,
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            from.prefix = format!("blocks.{i}.");
            layers.push(LayerState {
                att: TimeMixState {
                    shift: from.take("att.shift", &layer.att.shift)?,
                    wkv: from.take("att.wkv", &layer.att.wkv)?,
                },
                ffn: layer.ffn.read(&mut from)?,
            });
        }
        if !from.tensors.is_empty() {
            let names: Vec<_> = from.tensors.into_keys().collect();
            return Err(StateError::Unknown {
                file: from.file,
                names: names.join(", "),
            });
        }
        Ok(Self { layers })
    }
}
