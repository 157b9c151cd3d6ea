//! Whole models against `tests/golden/make_metastate_goldens.py`, a float64 program in PyTorch that goes token by token and
//! head by head: logits, states, the loss and its gradient for every parameter, for every option.

use std::path::{Path, PathBuf};

use burn::{module::ModuleVisitor, tensor::Gradients};
use rwkv7_core::{checkpoint::Checkpoint, loss};
use safetensors::{SafeTensors, tensor::TensorView};

use super::*;

const VARIANTS: [&str; 18] = [
    "paper",
    "per-head",
    "key-side",
    "top-left",
    "low-rank",
    "head-mixed",
    "learned",
    "self-key",
    "centered",
    "constant",
    "l2",
    "shift",
    "affine",
    "detached",
    "combined",
    "combined2",
    "projected",
    "soft",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn floats(view: &TensorView) -> Vec<f64> {
    let (values, _) = view.data().as_chunks::<8>();
    values.iter().map(|&b| f64::from_le_bytes(b)).collect()
}

/// The variant's weights as a file with official names.
fn checkpoint(name: &str, weights: &SafeTensors) -> Checkpoint {
    let prefix = format!("{name}/");
    let tensors = weights.tensors().into_iter().filter_map(|(tensor, view)| {
        let own = tensor.strip_prefix(&prefix).map(str::to_string);
        let common = (!tensor.contains('/')).then(|| tensor.clone());
        Some((own.or(common)?, view))
    });
    let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    Checkpoint::from_safetensors(name, bytes.leak()).unwrap()
}

struct Paths<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    /// Official name, and the gradient in the official layout.
    found: Vec<(String, Vec<f64>)>,
}

impl ModuleVisitor for Paths<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".").replace(".ffn.", ".ms.");
        let name = name.replace(".gamma", ".weight").replace(".beta", ".bias");
        let grad = param.val().grad(self.grads).unwrap();
        let linear = D == 2 && name.ends_with(".weight") && name != "emb.weight";
        let grad = if linear { grad.transpose() } else { grad };
        self.found
            .push((name, grad.into_data().iter::<f64>().collect()));
    }
}

/// On a device without autodiff first: a state is read along its key side in another way there.
fn compare(dtype: FloatDType, values: f64, gradients: f64) {
    let weights = std::fs::read(folder().join("metastate.weights.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    for name in VARIANTS {
        let file = folder().join(format!("metastate-{name}.golden.safetensors"));
        let bytes = std::fs::read(file).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let expected = |tensor: &str| floats(&golden.tensor(tensor).unwrap());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = &metadata.metadata().as_ref().unwrap()["config"];
        let config: MetaStateModelConfig = serde_json::from_str(config).unwrap();
        let tokens = golden.tensor("tokens").unwrap();
        let (tokens, _) = tokens.data().as_chunks::<8>();
        let tokens: Vec<i32> = tokens
            .iter()
            .map(|&b| i64::from_le_bytes(b) as i32)
            .collect();
        let forward = |device: &Device| {
            let model = checkpoint(name, &weights)
                .into_model(&config, device, dtype)
                .unwrap();
            let (logits, state) = model.forward(row(&tokens, device), None);
            let check = |part: &str, found: TensorData| {
                let found: Vec<f64> = found.iter::<f64>().collect();
                let d = difference(&found, &expected(part));
                assert!(d < values, "{name}, {part} on {device:?}: {d:e}");
            };
            check("logits", logits.clone().into_data());
            for (layer, state) in state.layers.iter().enumerate() {
                let part = |part: &str| format!("state.{layer}.{part}");
                check(&part("att.shift"), state.att.shift.clone().into_data());
                check(&part("att.wkv"), state.att.wkv.clone().into_data());
                check(&part("ms.ms"), state.ffn.ms.clone().into_data());
                if let Some(shift) = &state.ffn.shift {
                    check(&part("ms.shift"), shift.clone().into_data());
                }
            }
            (model, logits)
        };
        forward(&Device::default());
        let device = Device::default().autodiff();
        let (model, logits) = forward(&device);

        let next = row(&tokens[1..], &device);
        let loss = loss::cross_entropy(logits.narrow(1, 0, tokens.len() - 1), next, None);
        let d = difference(&[loss.clone().into_scalar::<f64>()], &expected("loss"));
        assert!(d < values, "{name}: loss {d:e}");
        let grads = loss.backward();
        let mut paths = Paths {
            path: Vec::new(),
            grads: &grads,
            found: Vec::new(),
        };
        model.visit(&mut paths);
        let stored = golden
            .names()
            .into_iter()
            .filter(|n| n.starts_with("grad."));
        assert_eq!(paths.found.len(), stored.count(), "{name}");
        for (tensor, found) in paths.found {
            let d = difference(&found, &expected(&format!("grad.{tensor}")));
            assert!(d < gradients, "{name}: gradient of {tensor}: {d:e}");
        }
    }
}

#[test]
fn pytorch_in_f64() {
    compare(FloatDType::F64, 1e-10, 1e-10);
}

/// Rounding only the weights to f32 moves gradients by up to 1.2e-4 (`key-side`).
#[test]
fn pytorch_in_f32() {
    compare(FloatDType::F32, 5e-5, 5e-4);
}
