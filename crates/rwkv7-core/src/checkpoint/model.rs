//! Between checkpoint files and models.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, FloatDType, Tensor, TensorData},
};
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    bridge, burn_pack::Tensor as PackTensor,
};

use crate::{
    Rwkv7, Rwkv7Config, Rwkv7Lm,
    config::SecondHalfConfig,
    init::LayerInit,
    layers::{ChannelMix, ChannelMixConfig, SecondHalf},
};

use super::{
    Checkpoint, CheckpointError, Format, names,
    read::{About, CONFIG},
    write,
};

/// Loads an RWKV-7 model with f32 parameters from a checkpoint of any format.
///
/// # Errors
///
/// [`CheckpointError`] names the file and every tensor that is missing, unknown, of the wrong shape or not finite.
pub fn load(path: &Path, device: &Device) -> Result<(Rwkv7Config, Rwkv7Lm), CheckpointError> {
    Checkpoint::open(path)?.load(device)
}

/// Writes a model; `dtype` `None` keeps each parameter's own.
///
/// # Errors
///
/// [`CheckpointError::Write`]; then what was at `path` before is still there.
pub fn save<S: SecondHalfConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    model: &Rwkv7<S::Layer>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    write(path, config, official_tensors(model), format, dtype)
}

impl Checkpoint {
    /// The configuration and the model, with f32 parameters.
    ///
    /// # Errors
    ///
    /// As [`load`], and if the checkpoint is of another architecture.
    pub fn load<S: SecondHalfConfig>(
        self,
        device: &Device,
    ) -> Result<(Rwkv7Config<S>, Rwkv7<S::Layer>), CheckpointError> {
        let config = self.config()?;
        let model = self.into_model(&config, device, FloatDType::F32)?;
        Ok((config, model))
    }

    /// The model of this configuration with the checkpoint's values, its parameters in `dtype`.
    ///
    /// # Errors
    ///
    /// As [`load`].
    pub fn into_model<S: SecondHalfConfig>(
        self,
        config: &Rwkv7Config<S>,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<Rwkv7<S::Layer>, CheckpointError> {
        self.check(config)?;
        let not_finite = Arc::new(Mutex::new(Vec::new()));
        let tensors = self
            .named_for::<S>()
            .into_iter()
            .filter(|tensor| !names::is_unused(&tensor.name))
            .map(|tensor| module_path::<S::Layer>(watched(tensor, not_finite.clone())))
            .collect();
        let mut model = config.init(device, 0);
        let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(dtype.into()));
        let result = model.apply(tensors, None, Some(Box::new(adapter)), true);
        let problems =
            std::mem::take(&mut *not_finite.lock().unwrap_or_else(PoisonError::into_inner));
        if !problems.is_empty() {
            return Err(CheckpointError::NotFinite {
                path: self.path,
                problems,
            });
        }
        if let Some(first) = result.errors.first() {
            return Err(self.damaged(first.to_string()));
        }
        assert!(
            result.missing.is_empty() && result.unused.is_empty(),
            "the tensors were checked against the model: {result:?}"
        );
        Ok(model)
    }
}

/// The tensor, which reports values that are not finite when it is read.
fn watched(tensor: PackTensor, report: Arc<Mutex<Vec<String>>>) -> PackTensor {
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let label = name.clone();
    bridge::map_data(tensor, name, dtype, shape, move |data| {
        let count = count_not_finite(&data);
        if count > 0 {
            let line = format!("{label}: {count} of {} values", data.num_elements());
            report
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
        data
    })
}

/// Counts NaN and infinities by the bits of the exponent, which are all ones in both.
fn count_not_finite(data: &TensorData) -> usize {
    let bytes = data.as_bytes();
    let half = |mask: u16| {
        let (values, _) = bytes.as_chunks::<2>();
        values
            .iter()
            .filter(|&&b| u16::from_le_bytes(b) & mask == mask)
            .count()
    };
    match data.dtype() {
        DType::F64 => {
            let (values, _) = bytes.as_chunks::<8>();
            values
                .iter()
                .filter(|&&b| !f64::from_le_bytes(b).is_finite())
                .count()
        }
        DType::F32 => {
            let (values, _) = bytes.as_chunks::<4>();
            values
                .iter()
                .filter(|&&b| !f32::from_le_bytes(b).is_finite())
                .count()
        }
        DType::BF16 => half(0x7f80),
        DType::F16 => half(0x7c00),
        _ => 0,
    }
}

/// A model's tensors under their official names, read when they are written.
fn official_tensors<M: SecondHalf>(model: &Rwkv7<M>) -> Vec<PackTensor> {
    let mut tensors = model.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
    for tensor in &mut tensors {
        tensor.name = second_half_name(&tensor.name, "ffn", M::NAME);
        tensor.param_id = None;
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// What a change of second halves left out and put in, as tensor names.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    /// Tensors of the old second halves.
    pub dropped: Vec<String>,
    /// Tensors of the new ones.
    pub added: Vec<String>,
}

impl Checkpoint {
    /// Writes the model of configuration `from` with other second halves, at their initial values; all else is kept.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::save`]; then nothing is written.
    pub fn save_with_second_half<S: SecondHalfConfig, T: SecondHalfConfig>(
        &self,
        from: &Rwkv7Config<S>,
        second_half: T,
        path: &Path,
        format: Format,
        dtype: Option<DType>,
    ) -> Result<Replaced, CheckpointError> {
        let to = from.with_second_half(second_half);
        to.validate().map_err(|source| CheckpointError::Config {
            path: path.to_path_buf(),
            source,
        })?;
        self.check(from)?;
        let is_old = |tensor: &PackTensor| {
            let renamed = second_half_name(&tensor.name, S::Layer::NAME, "");
            renamed != tensor.name
        };
        let (old, mut tensors): (Vec<_>, Vec<_>) =
            self.named_for::<S>().into_iter().partition(is_old);
        for tensor in &tensors {
            tensor.to_bytes().map_err(|e| self.damaged(e.to_string()))?;
        }
        let mut new = second_halves(&to);
        let dtypes: Vec<DType> = old.iter().map(|tensor| tensor.dtype).collect();
        if let Some(&first) = dtypes.first() {
            new = new
                .into_iter()
                .map(|t| write::cast(t, Some(first)))
                .collect();
        }
        let names = |tensors: &[PackTensor]| tensors.iter().map(|t| t.name.clone()).collect();
        let replaced = Replaced {
            dropped: names(&old),
            added: names(&new),
        };
        tensors.extend(new);
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        write(path, &to, tensors, format, dtype)?;
        Ok(replaced)
    }
}

/// The second halves' tensors at their initial values.
fn second_halves<S: SecondHalfConfig>(config: &Rwkv7Config<S>) -> Vec<PackTensor> {
    let dims = config.dims();
    let device = Device::default();
    let layer = |index: usize| {
        let init = LayerInit::new(index, &dims, &device, 0);
        let module = config.second_half.init(&dims, &init);
        let mut tensors = module.collect(None, Some(Box::new(BurnToPyTorchAdapter)), true);
        for tensor in &mut tensors {
            tensor.name = format!("blocks.{index}.{}.{}", S::Layer::NAME, tensor.name);
            tensor.param_id = None;
        }
        tensors
    };
    (0..config.n_layer).flat_map(layer).collect()
}

fn module_path<M: SecondHalf>(mut tensor: PackTensor) -> PackTensor {
    tensor.name = second_half_name(&tensor.name, M::NAME, "ffn");
    tensor
}

/// The module calls a block's second half `ffn`, whatever it is; the checkpoint calls it by its name.
pub(super) fn second_half_name(name: &str, from: &str, to: &str) -> String {
    let mut parts = name.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("blocks"), Some(layer), Some(part), Some(rest)) if part == from => {
            format!("blocks.{layer}.{to}.{rest}")
        }
        _ => name.to_string(),
    }
}

/// Writes tensors with official names and layouts that make up a model of this configuration.
///
/// # Errors
///
/// [`CheckpointError::Write`]; then what was at `path` before is still there.
pub fn save_tensors<S: SecondHalfConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    tensors: Vec<PackTensor>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    write(path, config, tensors, format, dtype)
}

/// The initial value of one tensor of a model, by its official name and in its official layout; no other is made.
pub fn initial_tensor<S: SecondHalfConfig>(
    config: &Rwkv7Config<S>,
    name: &str,
    seed: u64,
) -> Option<TensorData> {
    struct Find<'a> {
        names: Names,
        wanted: &'a str,
        second_half: &'static str,
        found: Option<TensorData>,
    }
    impl ModuleVisitor for Find<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.names.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.names.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.names.official(self.second_half) == self.wanted {
                let value = param.val();
                let value = if self.names.is_linear() && D == 2 {
                    value.transpose()
                } else {
                    value
                };
                self.found = Some(value.into_data());
            }
        }
    }
    let mut find = Find {
        names: Names::default(),
        wanted: name,
        second_half: S::Layer::NAME,
        found: None,
    };
    config.init(&Device::default(), seed).visit(&mut find);
    find.found
}

/// The path to a parameter while a module is visited.
#[derive(Default)]
struct Names {
    path: Vec<String>,
    containers: Vec<String>,
}

impl Names {
    fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_string());
        self.containers.push(container.to_string());
    }

    fn exit(&mut self) {
        self.path.pop();
        self.containers.pop();
    }

    /// Whether it belongs to a linear layer, whose weights are transposed officially.
    fn is_linear(&self) -> bool {
        self.containers.iter().any(|c| c.ends_with(":Linear"))
    }

    fn official(&self, second_half: &str) -> String {
        let name = self.path.join(".");
        let name = match name.rsplit_once('.') {
            Some((path, "gamma")) => format!("{path}.weight"),
            Some((path, "beta")) => format!("{path}.bias"),
            _ => name,
        };
        second_half_name(&name, "ffn", second_half)
    }
}

/// A configuration as files of ours carry it: its fields and `architecture`.
pub fn config_json<S: SecondHalfConfig>(config: &Rwkv7Config<S>) -> serde_json::Value {
    serde_json::json!(About::new(config))
}

/// Official name and shape of every tensor of a model, without making its initial values.
pub fn expected_tensors<S: SecondHalfConfig>(
    config: &Rwkv7Config<S>,
) -> BTreeMap<String, Vec<usize>> {
    struct Shapes {
        names: Names,
        second_half: &'static str,
        found: BTreeMap<String, Vec<usize>>,
    }
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.names.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.names.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
            if self.names.is_linear() && D == 2 {
                shape.reverse();
            }
            self.found
                .insert(self.names.official(self.second_half), shape);
        }
    }
    let mut shapes = Shapes {
        names: Names::default(),
        second_half: S::Layer::NAME,
        found: BTreeMap::new(),
    };
    config.init(&Device::default(), 0).visit(&mut shapes);
    shapes.found
}

/// Writes official tensors.
pub(super) fn write<S: SecondHalfConfig>(
    path: &Path,
    config: &Rwkv7Config<S>,
    tensors: Vec<PackTensor>,
    format: Format,
    dtype: Option<DType>,
) -> Result<(), CheckpointError> {
    let tensors: Vec<PackTensor> = tensors
        .into_iter()
        .map(|tensor| write::cast(tensor, dtype))
        .collect();
    let about = config_json(config).to_string();
    match format {
        Format::Official => {
            let metadata = HashMap::from([(CONFIG.to_string(), about)]);
            write::safetensors(path, &tensors, metadata)
        }
        Format::Burn => write::burnpack(path, names::to_burn(tensors), &about),
        Format::Fla if S::Layer::NAME != ChannelMix::NAME || config.embed_width.is_some() => {
            Err(CheckpointError::NoSuchLayout {
                path: path.to_path_buf(),
                architecture: S::ARCHITECTURE.into(),
            })
        }
        Format::Fla => {
            let failed = |source| CheckpointError::Write {
                path: path.to_path_buf(),
                source,
            };
            std::fs::create_dir_all(path).map_err(failed)?;
            let tensors = names::to_fla(tensors);
            write::safetensors(&path.join("model.safetensors"), &tensors, HashMap::new())?;
            let json = serde_json::to_vec_pretty(&fla_config(config, &tensors))
                .map_err(|e| failed(e.into()))?;
            crate::atomic::write(&path.join("config.json"), |out| {
                std::io::Write::write_all(out, &json)
            })
            .map_err(failed)
        }
    }
}

/// `config.json` of flash-linear-attention, reference `rwkv7.md` 2.3.
fn fla_config<S: SecondHalfConfig>(
    config: &Rwkv7Config<S>,
    tensors: &[PackTensor],
) -> serde_json::Value {
    let width = config.n_embd;
    let ffn = tensors
        .iter()
        .find(|t| t.name.ends_with("layers.0.ffn.key.weight"))
        .and_then(|t| t.shape.iter().next().copied())
        .unwrap_or(4 * width);
    serde_json::json!({
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "attn": null,
        "attn_mode": "chunk",
        "hidden_size": width,
        "hidden_ratio": ffn as f64 / width as f64,
        "intermediate_size": ffn,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "num_heads": config.n_head(),
        "decay_low_rank_dim": config.decay_rank,
        "gate_low_rank_dim": config.gate_rank,
        "a_low_rank_dim": config.in_context_rank,
        "v_low_rank_dim": config.value_rank,
        "hidden_act": "sqrelu",
        "norm_first": config.embedding_norm,
        "norm_bias": true,
        "norm_eps": config.layer_norm_eps,
        GROUP_NORM_EPS: config.group_norm_eps,
        "value_dim": vec![width; config.n_layer],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "fuse_norm": true,
        "fuse_cross_entropy": true,
        "initializer_range": 0.006,
        "torch_dtype": tensors.first().map_or("float32", |t| match t.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        }),
        "use_cache": true,
    })
}

/// What the `config.json` beside flash-linear-attention's tensors says of the epsilons. Its group norm's is derived from the
/// head size; files of ours that differ from that say so.
pub(super) fn about_fla(path: &Path) -> Result<Option<About>, CheckpointError> {
    let folder = if path.is_dir() {
        Some(path)
    } else {
        path.parent()
    };
    let Some(file) = folder
        .map(|f| f.join("config.json"))
        .filter(|f| f.is_file())
    else {
        return Ok(None);
    };
    let wrong = |reason: String| CheckpointError::ConfigFile {
        path: file.clone(),
        reason,
    };
    let text = std::fs::read_to_string(&file).map_err(|e| wrong(e.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let number = |key: &str| json.get(key).and_then(serde_json::Value::as_f64);
    let Some((layer, head)) = number("norm_eps").zip(number("head_dim")) else {
        return Ok(None);
    };
    let group = number(GROUP_NORM_EPS).unwrap_or(layer * head);
    let config = [("layer_norm_eps", layer), (GROUP_NORM_EPS, group)];
    Ok(Some(About {
        architecture: ChannelMixConfig::ARCHITECTURE.into(),
        config: config
            .map(|(key, value)| (key.into(), value.into()))
            .into_iter()
            .collect(),
    }))
}

/// Our key in flash-linear-attention's `config.json`.
const GROUP_NORM_EPS: &str = "group_norm_eps";
