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
    /// Whether it has a line in the plots.
    pub is_main: bool,
    /// What it is given besides, to have as many parameters as RWKV-7; none for variants without such runs.
    equal_parameters: Enlarged,
}

/// Settings that make a model larger, for each recipe.
struct Enlarged {
    reverse: Option<&'static [&'static str]>,
    shakespeare: Option<&'static [&'static str]>,
}

impl Variant {
    /// Its settings besides [`settings`](Self::settings) at a scale, unless it is not compared there.
    pub fn further_settings(
        &self,
        recipe: Recipe,
        scale: Scale,
    ) -> Option<&'static [&'static str]> {
        match (scale, recipe) {
            (Scale::SameSize, _) => Some(&[]),
            (_, Recipe::Reverse) => self.equal_parameters.reverse,
            (_, Recipe::Shakespeare) => self.equal_parameters.shakespeare,
        }
    }

    /// What a Meta-State run is given besides: RWKV-7 has no such diagnostics.
    pub fn diagnostics(&self) -> Option<&'static str> {
        let is_meta_state = self.settings.contains(&META_STATE);
        is_meta_state.then_some("diagnostics=true")
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
const PAPER: &str = "model.meta_state=paper";
const PRACTICAL: &str = "model.meta_state=practical";
const TIME_MIX_KEY: &str = r#"model.meta_state.removal="time-mix""#;
const VALUE_SIDE: &str = r#"model.meta_state.side="value""#;
const PER_HEAD: &str = "model.meta_state.oms=per-head";

const fn main(
    name: &'static str,
    settings: &'static [&'static str],
    description: &'static str,
    equal_parameters: Enlarged,
) -> Variant {
    Variant {
        is_main: true,
        ..option(name, settings, description, equal_parameters)
    }
}

const fn option(
    name: &'static str,
    settings: &'static [&'static str],
    description: &'static str,
    equal_parameters: Enlarged,
) -> Variant {
    Variant {
        name,
        settings,
        description,
        is_main: false,
        equal_parameters,
    }
}

/// Everything that is compared; the main variants first.
pub const VARIANTS: &[Variant] = &[
    main(
        "rwkv7",
        &[],
        "RWKV-7 with its channel mixing",
        Enlarged {
            reverse: Some(&[]),
            shakespeare: Some(&[]),
        },
    ),
    main(
        "paper",
        &[META_STATE, PAPER],
        "Meta-State, the equations read literally, one W_oms for all heads",
        DEEPER_SHARED,
    ),
    main(
        "practical",
        &[META_STATE, PRACTICAL],
        "a W_oms for each head, the state read along its key side, z itself as removal key, a soft norm: z times 1/16, \
         epsilon 1",
        DEEPER,
    ),
    main(
        "time-mix-key",
        &[META_STATE, PRACTICAL, TIME_MIX_KEY],
        "practical with the removal key of time mixing, as in eq. 3",
        DEEPER,
    ),
    main(
        "value-side",
        &[META_STATE, PRACTICAL, TIME_MIX_KEY, VALUE_SIDE],
        "time-mix-key, the state read along the axis that eq. 1 has",
        DEEPER,
    ),
    main(
        "learned",
        &[
            META_STATE,
            PRACTICAL,
            TIME_MIX_KEY,
            VALUE_SIDE,
            r#"model.meta_state.sse="learned""#,
        ],
        "value-side with a learned matrix in the place of the state",
        DEEPER,
    ),
    main(
        "bare",
        &["model.ffn_size=1"],
        "RWKV-7 with channel mixing of a single unit: time mixing and next to nothing",
        Enlarged {
            reverse: Some(&["model.n_layer=4"]),
            shakespeare: Some(&["model.n_layer=8"]),
        },
    ),
    option(
        "narrow",
        &["model.ffn_size=64"],
        "RWKV-7 with channel mixing as small as Meta-State's matrices",
        Enlarged {
            reverse: Some(&[
                "model.ffn_size=32",
                "model.n_layer=4",
                "model.decay_rank=24",
                "model.in_context_rank=24",
                "model.value_rank=24",
                "model.gate_rank=24",
            ]),
            shakespeare: Some(&["model.n_layer=7"]),
        },
    ),
    option(
        "practical-shared",
        &[META_STATE, PRACTICAL, "model.meta_state.oms=shared"],
        "practical with one W_oms for all heads",
        DEEPER_SHARED,
    ),
    option(
        "practical-shift",
        &[META_STATE, PRACTICAL, "model.meta_state.token_shift=true"],
        "practical with token shift",
        TEXT,
    ),
    option(
        "practical-value-side",
        &[META_STATE, PRACTICAL, VALUE_SIDE],
        "practical, the state read along the axis that eq. 1 has",
        DEEPER,
    ),
    option(
        "practical-learned",
        &[
            META_STATE,
            PRACTICAL,
            VALUE_SIDE,
            r#"model.meta_state.sse="learned""#,
        ],
        "practical-value-side with a learned matrix in the place of the state",
        DEEPER,
    ),
    option(
        "per-head",
        &[META_STATE, PAPER, PER_HEAD],
        "paper with a W_oms for each head",
        DEEPER,
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
        DEEPER,
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
        DEEPER,
    ),
    option(
        "centered",
        &[META_STATE, PAPER, PER_HEAD, "model.meta_state.center=true"],
        "per-head, z without its mean",
        DEEPER,
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
        NONE,
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
        NONE,
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
        DEEPER,
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
        DEEPER,
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
        TEXT,
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
        DEEPER,
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
        NONE,
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
        NONE,
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
        NONE,
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
        NONE,
    ),
    option(
        "time-mix-key-shift",
        &[
            META_STATE,
            PRACTICAL,
            TIME_MIX_KEY,
            "model.meta_state.token_shift=true",
        ],
        "time-mix-key with token shift",
        NONE,
    ),
    option(
        "value-side-shared",
        &[
            META_STATE,
            PRACTICAL,
            TIME_MIX_KEY,
            VALUE_SIDE,
            r#"model.meta_state.oms="shared""#,
        ],
        "value-side with one W_oms for all heads",
        NONE,
    ),
    option(
        "value-side-shift",
        &[
            META_STATE,
            PRACTICAL,
            TIME_MIX_KEY,
            VALUE_SIDE,
            "model.meta_state.token_shift=true",
        ],
        "value-side with token shift",
        NONE,
    ),
];

/// As many parameters as RWKV-7 by more layers: for options that differ by more than two standard errors at one of the scales from
/// the variant they change.
const DEEPER: Enlarged = Enlarged {
    reverse: Some(&[
        "model.n_layer=4",
        "model.decay_rank=24",
        "model.in_context_rank=24",
        "model.value_rank=24",
        "model.gate_rank=24",
    ]),
    shakespeare: Some(&["model.n_layer=7"]),
};

/// [`DEEPER`] on text alone: smaller differences on the way to `practical`.
const TEXT: Enlarged = Enlarged {
    reverse: None,
    ..DEEPER
};

/// [`DEEPER`] with one W_oms for all heads.
const DEEPER_SHARED: Enlarged = Enlarged {
    reverse: Some(&[
        "model.n_layer=4",
        "model.decay_rank=26",
        "model.in_context_rank=26",
        "model.value_rank=26",
        "model.gate_rank=26",
    ]),
    shakespeare: Some(&["model.n_layer=8"]),
};

const NONE: Enlarged = Enlarged {
    reverse: None,
    shakespeare: None,
};
