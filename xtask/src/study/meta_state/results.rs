//! The results of the finished runs, read from their files.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    super::{
        at, lengths,
        results::{Json, finished, mean_and_deviation, validations},
        runs::Recipe,
    },
    variants::{Scale, VARIANTS, Variant},
};

/// The results of a recipe at a scale.
pub struct Table {
    pub recipe: Recipe,
    pub scale: Scale,
    /// The variants with a finished run, best first.
    pub rows: Vec<Row>,
    /// Names of the others.
    pub missing: Vec<&'static str>,
}

/// A variant's finished runs.
pub struct Row {
    pub variant: &'static Variant,
    pub runs: Vec<Finished>,
}

/// The results of a run.
#[derive(Debug, PartialEq)]
pub struct Finished {
    /// Of the model.
    pub parameters: u64,
    /// The longest number of training.
    pub max_digits: u64,
    /// The columns of [`Recipe::results`].
    pub results: Vec<f64>,
    /// Answers right, %, by digits.
    pub lengths: BTreeMap<u32, f64>,
    /// Validation loss by step.
    pub losses: BTreeMap<u64, f64>,
    /// The layers' measurements in the last validation, by name, layer after layer.
    pub layers: BTreeMap<String, Vec<f64>>,
}

/// A column of results: where `report.json` has it, and how it is shown.
pub struct Column {
    pub title: &'static str,
    pub decimals: usize,
    path: &'static str,
    factor: f64,
    larger_is_better: bool,
}

impl Recipe {
    /// The columns of the table. The last column decides the order.
    pub fn results(self) -> &'static [Column] {
        match self {
            Self::Reverse => &[
                Column {
                    title: "digits right, %",
                    decimals: 1,
                    path: "/reverse/digit_accuracy",
                    factor: 100.0,
                    larger_is_better: true,
                },
                Column {
                    title: "answers right, %",
                    decimals: 1,
                    path: "/reverse/answer_accuracy",
                    factor: 100.0,
                    larger_is_better: true,
                },
            ],
            Self::Shakespeare => &[Column {
                title: "validation loss, nats",
                decimals: 4,
                path: "/text/loss",
                factor: 1.0,
                larger_is_better: false,
            }],
        }
    }
}

impl Table {
    /// Reads the finished runs.
    pub fn read(out: &Path, recipe: Recipe, scale: Scale) -> Result<Self, String> {
        let (mut rows, mut missing) = (vec![], vec![]);
        for variant in VARIANTS.iter() {
            let Some(folder) = variant.folder(recipe, scale) else {
                continue;
            };
            let runs = read_runs(&out.join(folder), recipe)?;
            if runs.is_empty() {
                missing.push(variant.name);
            } else {
                rows.push(Row { variant, runs });
            }
        }
        rows.sort_by(|a, b| {
            let mut order = std::cmp::Ordering::Equal;
            for (index, column) in recipe.results().iter().enumerate().rev() {
                let [a, b] = [a, b].map(|row| row.mean(|run| run.results[index]).0);
                order = order.then(if column.larger_is_better {
                    b.total_cmp(&a)
                } else {
                    a.total_cmp(&b)
                });
            }
            order
        });
        Ok(Self {
            recipe,
            scale,
            rows,
            missing,
        })
    }
}

impl Row {
    /// Mean and standard deviation of something over the runs.
    pub fn mean(&self, what: impl Fn(&Finished) -> f64) -> (f64, Option<f64>) {
        let values: Vec<f64> = self.runs.iter().map(what).collect();
        mean_and_deviation(&values)
    }
}

/// The finished runs of a variant.
fn read_runs(folder: &Path, recipe: Recipe) -> Result<Vec<Finished>, String> {
    let mut runs: Vec<Finished> = vec![];
    for path in finished(folder)? {
        let run = read_run(&path, recipe)?;
        if let Some(first) = runs.first()
            && first.parameters != run.parameters
        {
            return Err(format!(
                "{}: a model of {} parameters, beside one of {}; remove the run that is out of date",
                path.display(),
                run.parameters,
                first.parameters
            ));
        }
        runs.push(run);
    }
    Ok(runs)
}

fn read_run(folder: &Path, recipe: Recipe) -> Result<Finished, String> {
    let report = Json::read(folder.join("report.json"))?;
    let results = recipe.results().iter();
    let results = results.map(|column| Ok(column.factor * report.number(column.path)?));
    let path = folder.join(lengths::FILE);
    let mut lengths = BTreeMap::new();
    for (digits, value) in lengths::read(&path)? {
        let (Ok(digits), Some(share)) = (digits.parse(), value["answer_accuracy"].as_f64()) else {
            let wrong = format!("`{digits}` is no number of digits with an answer_accuracy");
            return Err(at(&path)(wrong));
        };
        lengths.insert(digits, 100.0 * share);
    }
    let validations = validations(folder)?;
    let last = validations.last();
    Ok(Finished {
        parameters: report.number("/parameters")? as u64,
        max_digits: Json::read(folder.join("recipe.json"))?.number("/max_digits")? as u64,
        results: results.collect::<Result<_, String>>()?,
        lengths,
        losses: validations.iter().map(|v| (v.step, v.loss)).collect(),
        layers: last.map(|v| layers(&v.entry)).unwrap_or_default(),
    })
}

/// The measurements of a line of `metrics.jsonl`.
fn layers(entry: &Value) -> BTreeMap<String, Vec<f64>> {
    let mut layers: BTreeMap<String, BTreeMap<usize, f64>> = BTreeMap::new();
    for (key, value) in entry.as_object().into_iter().flatten() {
        if let Some((layer, name)) = measurement(key) {
            // JSON has null for a value that is not finite.
            let value = value.as_f64().unwrap_or(f64::NAN);
            layers.entry(name).or_default().insert(layer, value);
        }
    }
    let layers = layers.into_iter();
    layers
        .map(|(name, values)| (name, values.into_values().collect()))
        .collect()
}

/// Layer and name of a key as `layer_0_effective_rank`.
fn measurement(key: &str) -> Option<(usize, String)> {
    let (layer, name) = key.strip_prefix("layer_")?.split_once('_')?;
    Some((layer.parse().ok()?, name.replace('_', " ")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_in_the_order_of_layers_and_null_is_no_number() {
        let keys = (0..12).map(|i| format!(r#""layer_{i}_largest_u":{i}"#));
        let text = keys.collect::<Vec<_>>().join(",");
        let text = format!(r#"{{"step":10,"layer_0_zeros_in_z":null,{text}}}"#);
        let read = layers(&serde_json::from_str(&text).unwrap());
        let expected: Vec<f64> = (0..12).map(f64::from).collect();
        assert_eq!(read["largest u"], expected);
        assert!(read["zeros in z"][0].is_nan());
        assert_eq!(read.len(), 2);
    }
}
