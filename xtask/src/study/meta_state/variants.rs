//! What is compared: scales and variants.

use super::super::runs::Recipe;

/// What the models of a table have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    SameSize,
    SameParameters,
}

impl Scale {
    pub const ALL: [Self; 2] = [Self::SameSize, Self::SameParameters];

    /// The folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SameSize => "same-size",
            Self::SameParameters => "same-parameters",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::SameSize => "at equal layers and width",
            Self::SameParameters => "at equal parameters",
        }
    }
}

/// An architecture with its options.
pub struct Variant {
    pub name: &'static str,
    /// What `metastate train --set` is given.
    pub settings: &'static [&'static str],
    pub description: &'static str,
    /// What it is given besides, to have as many parameters as RWKV-7; none for variants without such runs.
    equal_parameters: Option<Enlarged>,
}

/// Settings that make a model larger.
struct Enlarged {
    reverse: &'static [&'static str],
    shakespeare: &'static [&'static str],
}

impl Variant {
    /// Whether it has runs with several seeds, runs at equal parameters and a line in the plots.
    pub fn is_main(&self) -> bool {
        self.equal_parameters.is_some()
    }

    /// Its settings besides [`settings`](Self::settings) at a scale, unless it is not compared there.
    pub fn further_settings(
        &self,
        recipe: Recipe,
        scale: Scale,
    ) -> Option<&'static [&'static str]> {
        match (scale, recipe) {
            (Scale::SameSize, _) => Some(&[]),
            (_, Recipe::Reverse) => self.equal_parameters.as_ref().map(|e| e.reverse),
            (_, Recipe::Shakespeare) => self.equal_parameters.as_ref().map(|e| e.shakespeare),
        }
    }

    /// The folder of its runs in that of the study. Without further settings it is the one at equal size.
    pub fn folder(&self, recipe: Recipe, scale: Scale) -> Option<String> {
        let scale = match self.further_settings(recipe, scale)? {
            [] => Scale::SameSize,
            _ => scale,
        };
        Some(format!("{}/{}/{}", recipe.name(), scale.name(), self.name))
    }
}

const META_STATE: &str = "arch=meta-state";
const DIAGNOSTICS: &str = "diagnostics=true";
const PAPER: &str = "model.meta_state=paper";
const PRACTICAL: &str = "model.meta_state=practical";
const VALUE_SIDE: &str = r#"model.meta_state.side="value""#;
const PER_HEAD: &str = "model.meta_state.oms=per-head";

const fn option(
    name: &'static str,
    settings: &'static [&'static str],
    description: &'static str,
) -> Variant {
    Variant {
        name,
        settings,
        description,
        equal_parameters: None,
    }
}

/// Everything that is compared; the main variants first.
pub const VARIANTS: &[Variant] = &[
    Variant {
        name: "rwkv7",
        settings: &[],
        description: "RWKV-7 with its channel mixing",
        equal_parameters: Some(Enlarged {
            reverse: &[],
            shakespeare: &[],
        }),
    },
    Variant {
        name: "paper",
        settings: &[META_STATE, PAPER, DIAGNOSTICS],
        description: "Meta-State, the equations read literally, one W_oms for all heads",
        equal_parameters: Some(Enlarged {
            reverse: &[
                "model.n_layer=4",
                "model.decay_rank=26",
                "model.in_context_rank=26",
                "model.value_rank=26",
                "model.gate_rank=26",
            ],
            shakespeare: &["model.n_layer=8"],
        }),
    },
    Variant {
        name: "practical",
        settings: &[META_STATE, PRACTICAL, DIAGNOSTICS],
        description: "a W_oms for each head, the state read along its key side, a soft norm: z times 1/16, epsilon 1",
        equal_parameters: Some(DEEPER),
    },
    Variant {
        name: "practical-value-side",
        settings: &[META_STATE, PRACTICAL, VALUE_SIDE, DIAGNOSTICS],
        description: "practical, the state read along the axis that eq. 1 has",
        equal_parameters: Some(DEEPER),
    },
    Variant {
        name: "learned",
        settings: &[
            META_STATE,
            PRACTICAL,
            VALUE_SIDE,
            r#"model.meta_state.sse="learned""#,
            DIAGNOSTICS,
        ],
        description: "practical with a learned matrix in the place of the state",
        equal_parameters: Some(DEEPER),
    },
    Variant {
        name: "bare",
        settings: &["model.ffn_size=1"],
        description: "RWKV-7 with channel mixing of a single unit: time mixing and next to nothing",
        equal_parameters: Some(Enlarged {
            reverse: &["model.n_layer=4"],
            shakespeare: &["model.n_layer=8"],
        }),
    },
    option(
        "per-head",
        &[META_STATE, PAPER, PER_HEAD],
        "paper with a W_oms for each head",
    ),
    option(
        "per-head-learned",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.sse="learned""#,
        ],
        "per-head with a learned matrix in the place of the state",
    ),
    option(
        "self-key",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.removal="self""#,
        ],
        "per-head, z itself is the removal key",
    ),
    option(
        "centered",
        &[META_STATE, PAPER, PER_HEAD, "model.meta_state.center=true"],
        "per-head, z without its mean",
    ),
    option(
        "shift",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            "model.meta_state.token_shift=true",
        ],
        "per-head with token shift",
    ),
    option(
        "affine",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            "model.meta_state.norm_affine=true",
        ],
        "per-head, the layer norm with scale and shift",
    ),
    option(
        "l2",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.scale="l2""#,
        ],
        "per-head, z of length 1",
    ),
    option(
        "key-side",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.side="key""#,
        ],
        "per-head, the state read along its other axis",
    ),
    option(
        "key-side-l2",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.side="key""#,
            r#"model.meta_state.scale="l2""#,
        ],
        "key-side, z of length 1",
    ),
    option(
        "low-rank",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.sse={"low-rank":8}"#,
        ],
        "per-head, 8 learned combinations of the state's rows are read",
    ),
    option(
        "top-left",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.sse={"top-left":16}"#,
        ],
        "per-head, 16 rows and columns of the state are read",
    ),
    option(
        "head-mixed",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.sse="head-mixed""#,
        ],
        "per-head, heads share what they read",
    ),
    option(
        "constant",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            r#"model.meta_state.scale={"constant":0.03125}"#,
        ],
        "per-head, z times 1/32",
    ),
    option(
        "detached",
        &[
            META_STATE,
            PAPER,
            PER_HEAD,
            "model.meta_state.detach_decay=true",
        ],
        "per-head, no gradient from ms to decay, removal key and in-context rate",
    ),
    option(
        "practical-shift",
        &[
            META_STATE,
            PRACTICAL,
            "model.meta_state.token_shift=true",
            DIAGNOSTICS,
        ],
        "practical with token shift",
    ),
    option(
        "practical-value-side-shared",
        &[
            META_STATE,
            PRACTICAL,
            VALUE_SIDE,
            r#"model.meta_state.oms="shared""#,
        ],
        "practical-value-side with one W_oms for all heads",
    ),
    option(
        "practical-value-side-shift",
        &[
            META_STATE,
            PRACTICAL,
            VALUE_SIDE,
            "model.meta_state.token_shift=true",
        ],
        "practical-value-side with token shift",
    ),
];

const DEEPER: Enlarged = Enlarged {
    reverse: &[
        "model.n_layer=4",
        "model.decay_rank=24",
        "model.in_context_rank=24",
        "model.value_rank=24",
        "model.gate_rank=24",
    ],
    shakespeare: &["model.n_layer=7"],
};
