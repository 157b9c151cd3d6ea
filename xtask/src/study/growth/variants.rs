//! The sizes of the models, and the ways to train the largest: `xtask/studies/growth.json`.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};

/// The file's content.
pub static STUDY: LazyLock<Study> = LazyLock::new(|| {
    let text = include_str!("../../../studies/growth.json");
    serde_json::from_str(text).expect("xtask/studies/growth.json is valid")
});

/// The variant by which the others are measured, the first of [`Study::variants`].
pub const SCRATCH: &str = "scratch";

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'static"))]
pub struct Study {
    /// A model grows from each size into the next.
    pub sizes: Vec<Size>,
    /// Settings of every run.
    settings: Vec<String>,
    pub variants: Vec<Variant>,
}

/// The size of a model. The rest is as in `shakespeare-char`.
#[derive(Deserialize)]
pub struct Size {
    pub name: &'static str,
    pub layers: u64,
    pub width: u64,
    /// Of RWKV-7. Meta-State has no feed-forward part.
    pub ffn_size: u64,
}

/// A way to a trained model of the last size.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub name: &'static str,
    pub description: &'static str,
    /// Steps of each model. The last model has the last size.
    pub steps: Vec<u64>,
    /// The method of every growth; none for a model that does not grow.
    method: Option<&'static str>,
    /// Whether Adam's moments start again from zero after a growth.
    #[serde(default)]
    fresh_moments: bool,
}

/// An architecture of `metastate train`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Rwkv7,
    MetaState,
}

impl Arch {
    pub const ALL: [Self; 2] = [Self::Rwkv7, Self::MetaState];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rwkv7 => "rwkv7",
            Self::MetaState => "meta-state",
        }
    }
}

impl Study {
    /// The largest model.
    pub fn last_size(&self) -> &Size {
        &self.sizes[self.sizes.len() - 1]
    }
}

impl Variant {
    /// The folder of the runs in the study's folder.
    pub fn folder(&self, arch: Arch) -> String {
        format!("{}/{}", arch.name(), self.name)
    }

    /// The arguments of `metastate train --set`.
    pub fn settings(&self, arch: Arch, seed: u64) -> Vec<String> {
        let sizes = &STUDY.sizes[STUDY.sizes.len() - self.steps.len()..];
        let first = &sizes[0];
        let mut settings = vec![
            format!("arch={}", arch.name()),
            format!("model.n_layer={}", first.layers),
            format!("model.n_embd={}", first.width),
        ];
        settings.push(match arch {
            Arch::Rwkv7 => format!("model.ffn_size={}", first.ffn_size),
            Arch::MetaState => r#"model.meta_state.removal="time-mix""#.into(),
        });
        settings.push(format!("steps={}", self.steps.iter().sum::<u64>()));
        settings.extend(STUDY.settings.iter().cloned());
        if let Some(method) = self.method {
            let mut after = 0;
            let entries = sizes.windows(2).zip(&self.steps).map(|(pair, steps)| {
                after += steps;
                let to = change(&pair[0], &pair[1], arch);
                self.growth(method, after, to)
            });
            settings.push(format!("grow={}", entries.collect::<Value>()));
        }
        settings.push(format!("seed={seed}"));
        settings
    }

    /// An entry of the recipe's `grow`.
    fn growth(&self, method: &str, after: u64, to: Value) -> Value {
        let mut entry = json!({ "after": after, "to": to, "method": method, "warmup_steps": 20 });
        if self.fresh_moments {
            entry["optimizer"] = false.into();
        }
        entry
    }
}

/// The part of the configuration that differs.
fn change(from: &Size, to: &Size, arch: Arch) -> Value {
    let mut change = json!({});
    if from.layers != to.layers {
        change["n_layer"] = to.layers.into();
    }
    if from.width != to.width {
        change["n_embd"] = to.width.into();
    }
    if from.ffn_size != to.ffn_size && arch == Arch::Rwkv7 {
        change["ffn"] = json!({ "ffn_size": to.ffn_size });
    }
    change
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_first_model_and_what_changes_at_each_growth() {
        let settings = |name: &str, arch| {
            let variant = STUDY.variants.iter().find(|variant| variant.name == name);
            variant.unwrap().settings(arch, 2).join(" ")
        };
        let common = "steps_per_epoch=100 validation_batches=20";
        assert_eq!(
            settings("scratch", Arch::MetaState),
            format!(
                "arch=meta-state model.n_layer=6 model.n_embd=128 model.meta_state.removal=\"time-mix\" steps=2000 {common} seed=2"
            )
        );
        let grow = r#"[{"after":500,"method":"lossless","to":{"ffn":{"ffn_size":384},"n_embd":128},"warmup_steps":20},{"after":800,"method":"lossless","to":{"n_layer":6},"warmup_steps":20}]"#;
        assert_eq!(
            settings("lossless-half", Arch::Rwkv7),
            format!(
                "arch=rwkv7 model.n_layer=3 model.n_embd=96 model.ffn_size=288 steps=1500 {common} grow={grow} seed=2"
            )
        );
        let grow = r#"[{"after":500,"method":"lossless","optimizer":false,"to":{"n_embd":128},"warmup_steps":20},{"after":800,"method":"lossless","optimizer":false,"to":{"n_layer":6},"warmup_steps":20}]"#;
        assert!(settings("lossless-half-fresh", Arch::MetaState).contains(grow));
    }

    #[test]
    fn growth_is_at_the_end_of_an_epoch() {
        for variant in &STUDY.variants {
            assert!(variant.steps.iter().all(|steps| steps.is_multiple_of(100)));
            let last = if variant.method.is_some() {
                STUDY.sizes.len()
            } else {
                1
            };
            assert_eq!(variant.steps.len(), last, "{}", variant.name);
        }
    }
}
