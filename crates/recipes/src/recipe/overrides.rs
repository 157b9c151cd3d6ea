//! `key=value` overrides of a recipe.

use serde_json::Value;
use zoo::Arch;

use super::{ModelOverrides, Recipe, RecipeError};

impl Recipe {
    /// The recipe with `key=value` overrides; keys of parts are written `learning_rate.peak`. Values are JSON, or else
    /// text. A `model.preset` replaces the recipe's whole `model`; other overrides change its parts.
    ///
    /// ```
    /// use metastate_recipes::Recipe;
    ///
    /// let settings = ["steps=500", "learning_rate.peak=1e-3", "arch=meta-state"].map(String::from);
    /// let recipe = Recipe::load("reverse")?.with_overrides(&settings)?;
    /// assert_eq!((recipe.steps, recipe.learning_rate.peak), (500, 1e-3));
    /// let error = recipe.with_overrides(&["stepz=500".into()]).unwrap_err();
    /// assert!(error.to_string().contains("steps_per_epoch"));
    /// # Ok::<(), metastate_recipes::recipe::RecipeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RecipeError`] names the override and, for an unknown key, lists all there are.
    pub fn with_overrides(&self, settings: &[String]) -> Result<Self, RecipeError> {
        self.check_paths()?;
        let mut recipe = self.clone();
        if settings
            .iter()
            .any(|setting| setting.starts_with("model.preset="))
        {
            recipe.model = ModelOverrides::default();
        }
        for setting in settings {
            let mut json = recipe.to_json();
            let wrong = |reason: String| RecipeError::Override {
                setting: setting.clone(),
                reason,
            };
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| wrong("expected key=value".into()))?;
            let key = match key {
                "products" => "matmul_precision",
                key => key,
            };
            let field = key.strip_prefix("model.meta_state.");
            if field.is_some() {
                json["model"]["meta_state"] = serde_json::json!(recipe.model.meta_state());
            }
            let known = keys(&json, "");
            let parts = &mut key.split('.');
            let Some(current) = parts.try_fold(&mut json, |json, part| json.get_mut(part)) else {
                return Err(RecipeError::UnknownKey {
                    key: key.into(),
                    known: known.join(", "),
                });
            };
            *current = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
            if let Some(field) = field.and_then(|field| field.split('.').next()) {
                // The others stay those of the preset, which a later setting may change.
                let layer = &mut json["model"]["meta_state"];
                let given = recipe.model.meta_state.take().unwrap_or_default();
                *layer = given.with(field, layer[field].take());
            }
            // Back and forth, so that a part that was given by its name can be changed further.
            recipe = serde_json::from_value(json).map_err(|error| wrong(error.to_string()))?;
        }
        recipe.check_use(settings)?;
        Ok(recipe)
    }

    /// Refuses overrides of keys that the recipe does not read.
    fn check_use(&self, settings: &[String]) -> Result<(), RecipeError> {
        let preset = self.model.preset.as_deref().map(zoo::config);
        let preset = preset.and_then(Result::ok).map(|config| config.arch());
        let arch = self.arch.or(preset);
        for setting in settings {
            let key = setting.split('=').next().unwrap_or_default();
            let reason = if self.start.is_some() && (key == "arch" || key.starts_with("model.")) {
                "the model in `start` has its own architecture and size; `grow` changes the size"
            } else if key == "model.ffn_size" && arch == Some(Arch::MetaState) {
                "a model of architecture meta-state has no feed-forward layer"
            } else {
                continue;
            };
            return Err(RecipeError::Override {
                setting: setting.clone(),
                reason: reason.into(),
            });
        }
        Ok(())
    }
}

/// All keys of an object, those of its parts with a dot.
fn keys(json: &Value, prefix: &str) -> Vec<String> {
    let Value::Object(object) = json else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(_) => found.extend(keys(value, &format!("{key}."))),
            _ => found.push(key),
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn overrides_reach_every_key() {
        let recipe = Recipe::load("reverse").unwrap();
        let settings = [
            "learning_rate.peak=1e-3",
            "model.n_layer=3",
            "tokenizer=some/path",
            "l2_wrap=true",
        ];
        let changed = recipe.with_overrides(&settings.map(String::from)).unwrap();
        assert_eq!(changed.learning_rate.peak, 1e-3);
        assert_eq!(changed.model.n_layer, Some(3));
        assert_eq!(changed.tokenizer, "some/path");
        assert!(changed.l2_wrap);
    }

    #[test]
    fn a_field_of_the_layer_changes_that_field_of_the_preset_in_any_order() {
        let [shift, preset] = [
            "model.meta_state.token_shift=true",
            "model.preset=450m-meta-state-paper",
        ];
        let expected = meta_state::MetaStateConfig {
            token_shift: true,
            ..meta_state::MetaStateConfig::paper()
        };
        let layer = |recipe: &Recipe| match recipe.model.config(recipe.arch, 256).unwrap() {
            zoo::AnyConfig::MetaState(config) => config.ffn,
            other => panic!("{other:?}"),
        };
        for settings in [[shift, preset], [preset, shift]] {
            let recipe = Recipe::default().with_overrides(&settings.map(String::from));
            assert_eq!(layer(&recipe.unwrap()), expected);
        }
        let json = r#"{"model": {"preset": "450m-meta-state-paper", "meta_state": {"token_shift": true}}}"#;
        assert_eq!(layer(&Recipe::parse("mine.json", json).unwrap()), expected);
        let settings = ["model.meta_state=paper", "model.meta_state.removal=self"];
        let recipe = Recipe::parse("mine.json", json).unwrap();
        let recipe = recipe.with_overrides(&settings.map(String::from)).unwrap();
        assert_eq!(
            layer(&recipe),
            meta_state::MetaStateConfig {
                removal: meta_state::Removal::Own,
                ..meta_state::MetaStateConfig::paper()
            }
        );
        let settings = [preset, "arch=rwkv7"].map(String::from);
        let recipe = Recipe::default().with_overrides(&settings).unwrap();
        let error = recipe.model.config(recipe.arch, 256).unwrap_err();
        assert!(
            error.to_string().contains("450m-meta-state-paper"),
            "{error}"
        );
    }

    #[test]
    fn wrong_keys_types_and_values_are_named() {
        let recipe = Recipe::load("reverse").unwrap();
        let error = |setting: &str| {
            recipe
                .with_overrides(&[setting.into()])
                .unwrap_err()
                .to_string()
        };
        assert!(error("learning_rate.peek=1").contains("learning_rate.peak"));
        assert!(error("steps=many").contains("steps=many: invalid type"));
        assert!(error("steps").contains("key=value"));
        let error = Recipe::parse("mine.json", r#"{"stepz": 3}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("mine.json") && error.contains("stepz"),
            "{error}"
        );
        let error = Recipe::load("revers").unwrap_err().to_string();
        assert!(error.contains("shakespeare-char"), "{error}");
    }
}
