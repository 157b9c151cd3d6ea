//! The scales and the variants that a study compares: `xtask/studies/meta-state.json`.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use super::super::runs::Recipe;

/// The property that all models of a table share.
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

/// Every variant, the main variants first.
pub static VARIANTS: LazyLock<Vec<Variant>> = LazyLock::new(|| {
    let text = include_str!("../../../studies/meta-state.json");
    let file: File = serde_json::from_str(text).expect("xtask/studies/meta-state.json is valid");
    file.variants()
});

/// An architecture with its options.
pub struct Variant {
    pub name: &'static str,
    pub description: &'static str,
    /// The arguments of `metastate train --set`.
    pub settings: Vec<String>,
    /// Whether the plots have a line for this variant.
    pub is_main: bool,
    /// Further settings by the recipe's name, which give the model as many parameters as RWKV-7 has. A recipe that is not here
    /// has no runs at equal parameters.
    enlarged: BTreeMap<&'static str, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'static"))]
struct File {
    /// Settings that make a model larger, by a name and by the recipe's name.
    enlarged: BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>,
    variants: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: &'static str,
    description: &'static str,
    /// An earlier variant, whose settings come first.
    of: Option<&'static str>,
    #[serde(default)]
    settings: Vec<String>,
    #[serde(default)]
    main: bool,
    /// A name in [`File::enlarged`].
    enlarged: Option<&'static str>,
}

impl File {
    fn variants(self) -> Vec<Variant> {
        let mut variants: Vec<Variant> = vec![];
        for entry in self.variants {
            let mut settings = entry.of.map_or(vec![], |name| {
                let earlier = variants.iter().find(|variant| variant.name == name);
                let earlier = earlier.expect("`of` names an earlier variant");
                earlier.settings.clone()
            });
            settings.extend(entry.settings);
            let enlarged = entry.enlarged.map(|name| self.enlarged[name].clone());
            variants.push(Variant {
                name: entry.name,
                description: entry.description,
                settings,
                is_main: entry.main,
                enlarged: enlarged.unwrap_or_default(),
            });
        }
        variants
    }
}

impl Variant {
    /// The settings at a scale besides [`settings`](Self::settings); none if the variant is not compared there.
    pub fn further_settings(&self, recipe: Recipe, scale: Scale) -> Option<&[String]> {
        match scale {
            Scale::SameSize => Some(&[]),
            Scale::SameParameters => self.enlarged.get(recipe.name()).map(Vec::as_slice),
        }
    }

    /// The setting that makes a Meta-State layer measure itself. RWKV-7 has no such diagnostics.
    pub fn diagnostics(&self) -> Option<&'static str> {
        let is_meta_state = self.settings.iter().any(|s| s == "arch=meta-state");
        is_meta_state.then_some("diagnostics=true")
    }

    /// The folder of the runs in the study's folder. Without further settings the folder is the one at equal size.
    pub fn folder(&self, recipe: Recipe, scale: Scale) -> Option<String> {
        let scale = match self.further_settings(recipe, scale)? {
            [] => Scale::SameSize,
            _ => scale,
        };
        Some(format!("{}/{}/{}", recipe.name(), scale.name(), self.name))
    }
}
