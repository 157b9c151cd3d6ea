//! The paths in a recipe.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::{Recipe, RecipeError};

impl Recipe {
    /// The recipe with absolute paths, so that it means the same files in every folder. A name that is no path stays.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Value`] names the key of a path that is empty or not UTF-8.
    pub(crate) fn with_absolute_paths(&self) -> Result<Self, RecipeError> {
        self.check_paths()?;
        let all = |key, paths: &[PathBuf]| -> Result<Vec<PathBuf>, RecipeError> {
            paths.iter().map(|path| absolute(key, path)).collect()
        };
        let mut recipe = Self {
            data: all("data", &self.data)?,
            validation_data: all("validation_data", &self.validation_data)?,
            ..self.clone()
        };
        let name = |key, path: &str| -> Result<String, RecipeError> {
            let path = absolute(key, Path::new(path))?;
            Ok(path.display().to_string())
        };
        if self.tokenizer != "byte" {
            recipe.tokenizer = name("tokenizer", &self.tokenizer)?;
        }
        if let Some(start) = &self.start
            && (Path::new(start).exists() || zoo::find(start).is_none())
        {
            recipe.start = Some(name("start", start)?);
        }
        Ok(recipe)
    }

    /// Refuses paths that a JSON file cannot hold.
    pub(super) fn check_paths(&self) -> Result<(), RecipeError> {
        for (key, paths) in [
            ("data", &self.data),
            ("validation_data", &self.validation_data),
        ] {
            for path in paths {
                utf8(key, path)?;
            }
        }
        Ok(())
    }
}

fn absolute(key: &'static str, path: &Path) -> Result<PathBuf, RecipeError> {
    let absolute = std::path::absolute(path).map_err(|_| RecipeError::Value {
        key,
        found: format!("`{}`", path.display()),
        expected: "a path",
    })?;
    utf8(key, &absolute)?;
    Ok(absolute)
}

fn utf8(key: &'static str, path: &Path) -> Result<(), RecipeError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(RecipeError::Value {
            key,
            found: path.display().to_string(),
            expected: "a path in UTF-8, as recipe.json holds it; rename the file or folder, or link to it",
        }),
    }
}

/// Paths as text, which [`Recipe::check_paths`] makes sure they are.
pub(super) fn as_text<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    let texts: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    texts.serialize(to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_absolute_and_names_stay() {
        let recipe = Recipe {
            data: vec!["a.txt".into(), "/b".into()],
            tokenizer: "vocabulary.txt".into(),
            start: Some("reverse-rwkv7".into()),
            ..Recipe::default()
        };
        let here = std::env::current_dir().unwrap();
        let absolute = recipe.with_absolute_paths().unwrap();
        assert_eq!(absolute.data, [here.join("a.txt"), "/b".into()]);
        assert_eq!(Path::new(&absolute.tokenizer), here.join("vocabulary.txt"));
        assert_eq!(absolute.start, recipe.start);
        assert_eq!(absolute.with_absolute_paths().unwrap(), absolute);
        let byte = Recipe::default().with_absolute_paths().unwrap();
        assert_eq!(byte.tokenizer, "byte");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_json_cannot_hold_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(b"text\xff.txt"));
        let recipe = Recipe {
            data: vec![path],
            ..Recipe::default()
        };
        let errors = [
            recipe.with_absolute_paths().unwrap_err(),
            recipe.with_overrides(&["steps=5".into()]).unwrap_err(),
            recipe.validate().unwrap_err(),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(
                error.contains("`data`") && error.contains("UTF-8"),
                "{error}"
            );
        }
        recipe.to_json();
    }
}
