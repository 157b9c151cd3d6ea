//! The models, and the ways to train the largest.

use serde_json::{Value, json};

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

/// A model's size; the rest is as in `shakespeare-char`.
pub struct Size {
    pub name: &'static str,
    pub layers: u64,
    pub width: u64,
    /// Of RWKV-7; Meta-State has no feed-forward.
    pub ffn_size: u64,
}

/// A model grows from each into the next.
pub const LADDER: [Size; 3] = [
    Size {
        name: "A",
        layers: 3,
        width: 96,
        ffn_size: 288,
    },
    Size {
        name: "B",
        layers: 3,
        width: 128,
        ffn_size: 384,
    },
    Size {
        name: "C",
        layers: 6,
        width: 128,
        ffn_size: 384,
    },
];

/// What every run has in common.
const SETTINGS: [&str; 2] = ["steps_per_epoch=100", "validation_batches=20"];

/// A way to a trained model of the last size.
pub struct Variant {
    pub name: &'static str,
    pub description: &'static str,
    /// Steps of each model; the last is [`LADDER`]'s.
    pub steps: &'static [u64],
    /// What an entry of the recipe's `grow` has besides `after` and `to`.
    growth: Option<Growth>,
}

#[derive(Clone, Copy)]
struct Growth {
    method: &'static str,
    /// Whether Adam's moments grow too.
    optimizer: bool,
}

/// The variant by which the others are measured.
pub const SCRATCH: &str = "scratch";

const HALF: &[u64] = &[500, 300, 700];

/// Everything that is compared; [`SCRATCH`] first.
pub const VARIANTS: &[Variant] = &[
    Variant {
        name: SCRATCH,
        description: "C from the start",
        steps: &[2000],
        growth: None,
    },
    Variant {
        name: "scratch-half",
        description: "the same with half the steps",
        steps: &[1000],
        growth: None,
    },
    grown(
        "lossless-half",
        "lossless growth with about half the compute of scratch",
        HALF,
        "lossless",
    ),
    grown(
        "lossless-three-quarters",
        "the same with about three quarters",
        &[700, 400, 1100],
        "lossless",
    ),
    grown(
        "lossless-all",
        "the same with about all",
        &[1000, 600, 1400],
        "lossless",
    ),
    Variant {
        name: "lossless-half-fresh",
        description: "lossless-half, Adam's moments from zero after each growth",
        steps: HALF,
        growth: Some(Growth {
            method: "lossless",
            optimizer: false,
        }),
    },
    grown(
        "paper-half",
        "the steps of lossless-half, grown as in the paper",
        HALF,
        "paper",
    ),
    grown(
        "stack-half",
        "the steps of lossless-half, new blocks are copies of old ones",
        HALF,
        "stack",
    ),
    grown(
        "shrink-perturb-half",
        "the steps of lossless-half, grown by shrinking and perturbing",
        HALF,
        "shrink-perturb",
    ),
];

const fn grown(
    name: &'static str,
    description: &'static str,
    steps: &'static [u64],
    method: &'static str,
) -> Variant {
    Variant {
        name,
        description,
        steps,
        growth: Some(Growth {
            method,
            optimizer: true,
        }),
    }
}

impl Variant {
    /// The folder of its runs in that of the study.
    pub fn folder(&self, arch: Arch) -> String {
        format!("{}/{}", arch.name(), self.name)
    }

    /// What `metastate train --set` is given.
    pub fn settings(&self, arch: Arch, seed: u64) -> Vec<String> {
        let sizes = &LADDER[LADDER.len() - self.steps.len()..];
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
        settings.extend(SETTINGS.map(String::from));
        if let Some(growth) = self.growth {
            let mut after = 0;
            let entries = sizes.windows(2).zip(self.steps).map(|(pair, steps)| {
                after += steps;
                growth.entry(after, change(&pair[0], &pair[1], arch))
            });
            settings.push(format!("grow={}", entries.collect::<Value>()));
        }
        settings.push(format!("seed={seed}"));
        settings
    }
}

impl Growth {
    /// An entry of the recipe's `grow`.
    fn entry(self, after: u64, to: Value) -> Value {
        let mut entry =
            json!({ "after": after, "to": to, "method": self.method, "warmup_steps": 20 });
        if !self.optimizer {
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
            let variant = VARIANTS.iter().find(|variant| variant.name == name);
            variant.unwrap().settings(arch, 2).join(" ")
        };
        let common = "steps_per_epoch=100 validation_batches=20";
        assert_eq!(
            settings("scratch", Arch::MetaState),
            format!(
                "arch=meta-state model.n_layer=6 model.n_embd=128 model.meta_state.removal=\"time-mix\" steps=2000 {common} seed=2"
            )
        );
        let grow = r#"[{"after":500,"method":"lossless","to":{"n_embd":128,"ffn":{"ffn_size":384}},"warmup_steps":20},{"after":800,"method":"lossless","to":{"n_layer":6},"warmup_steps":20}]"#;
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
        for variant in VARIANTS {
            assert!(variant.steps.iter().all(|steps| steps.is_multiple_of(100)));
            let last = if variant.growth.is_some() {
                LADDER.len()
            } else {
                1
            };
            assert_eq!(variant.steps.len(), last, "{}", variant.name);
        }
    }
}
