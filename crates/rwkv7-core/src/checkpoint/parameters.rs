//! The parameters that a configuration asks for: names, shapes, initial values, without making a model.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{Device, Tensor, TensorData},
};

use crate::{Rwkv7, Rwkv7Config, config::ChannelMixerConfig, layers::ChannelMixer};

use super::names::rename_mixer;

/// The initial value of one tensor of a model, by its official name and in its official layout; no other is made.
pub fn initial_tensor<S: ChannelMixerConfig>(
    config: &Rwkv7Config<S>,
    name: &str,
    seed: u64,
) -> Option<TensorData> {
    struct Find<'a> {
        names: Names,
        wanted: &'a str,
        ffn: &'static str,
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
            if self.names.official(self.ffn) == self.wanted {
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
        ffn: S::Layer::NAME,
        found: None,
    };
    config
        .init_seeded(&Device::default(), seed)
        .visit(&mut find);
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

    fn official(&self, ffn: &str) -> String {
        let name = self.path.join(".");
        let name = match name.rsplit_once('.') {
            Some((path, "gamma")) => format!("{path}.weight"),
            Some((path, "beta")) => format!("{path}.bias"),
            _ => name,
        };
        rename_mixer(&name, "ffn", ffn)
    }
}

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its official name.
    pub name: String,
    /// Its place in the module, as optimizers call it.
    pub path: String,
    /// Its id.
    pub id: ParamId,
    /// Its shape in the module.
    pub shape: Vec<usize>,
    /// Whether the official layout is the transposed one.
    pub transposed: bool,
}

/// The parameters of a model.
pub fn parameters<M: ChannelMixer>(model: &Rwkv7<M>) -> Vec<Parameter> {
    struct List {
        names: Names,
        ffn: &'static str,
        found: Vec<Parameter>,
    }
    impl ModuleVisitor for List {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.names.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.names.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found.push(Parameter {
                name: self.names.official(self.ffn),
                path: self.names.path.join("."),
                id: param.id,
                shape: param.lazy_shape().iter().copied().collect(),
                transposed: self.names.is_linear() && D == 2,
            });
        }
    }
    let mut list = List {
        names: Names::default(),
        ffn: M::NAME,
        found: Vec::new(),
    };
    model.visit(&mut list);
    list.found
}

/// Official name and shape of every tensor of a model, without making its initial values.
pub fn expected_tensors<S: ChannelMixerConfig>(
    config: &Rwkv7Config<S>,
) -> BTreeMap<String, Vec<usize>> {
    let official = |parameter: Parameter| {
        let mut shape = parameter.shape;
        if parameter.transposed {
            shape.reverse();
        }
        (parameter.name, shape)
    };
    let parameters = parameters(&config.init(&Device::default()));
    parameters.into_iter().map(official).collect()
}
