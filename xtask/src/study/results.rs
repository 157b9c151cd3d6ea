//! What the finished runs say, read from their files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    at,
    runs::{LENGTHS_FILE, read_lengths},
    variants::{Recipe, Scale, VARIANTS, Variant},
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

/// What a run came to.
#[derive(Debug, PartialEq)]
pub struct Finished {
    /// Of the model.
    pub parameters: u64,
    /// The longest number of training.
    pub max_digits: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// The columns of [`Recipe::results`].
    pub results: Vec<f64>,
    /// Answers right, %, by digits.
    pub lengths: BTreeMap<u32, f64>,
    pub validation: Validation,
}

/// The validation lines of `metrics.jsonl`.
#[derive(Debug, Default, PartialEq)]
pub struct Validation {
    /// Loss by step.
    pub losses: BTreeMap<u64, f64>,
    /// The last measurements by name, layer after layer.
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
    /// What is compared; the last column decides the order.
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
        for variant in VARIANTS {
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

/// Mean and, of two values or more, the deviation of a sample (n - 1 in the denominator).
pub fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
    (mean, deviation)
}

/// The finished runs of a variant: of every seed that has a `report.json`.
fn read_runs(folder: &Path, recipe: Recipe) -> Result<Vec<Finished>, String> {
    if !folder.exists() {
        return Ok(vec![]);
    }
    let mut seeds: Vec<(u64, PathBuf)> = vec![];
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        if let Ok(seed) = entry.file_name().to_string_lossy().parse()
            && entry.path().join("report.json").exists()
        {
            seeds.push((seed, entry.path()));
        }
    }
    seeds.sort();
    let mut runs: Vec<Finished> = vec![];
    for (_, path) in seeds {
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
    let path = folder.join("metrics.jsonl");
    let metrics = fs::read_to_string(&path).map_err(at(&path))?;
    let path_of_lengths = folder.join(LENGTHS_FILE);
    let mut lengths = BTreeMap::new();
    for (digits, value) in read_lengths(&path_of_lengths)? {
        let (Ok(digits), Some(share)) = (digits.parse(), value["answer_accuracy"].as_f64()) else {
            let wrong = format!("`{digits}` is no number of digits with an answer_accuracy");
            return Err(at(&path_of_lengths)(wrong));
        };
        lengths.insert(digits, 100.0 * share);
    }
    Ok(Finished {
        parameters: report.number("/parameters")? as u64,
        max_digits: Json::read(folder.join("recipe.json"))?.number("/max_digits")? as u64,
        seconds: report.number("/training_seconds")?,
        results: results.collect::<Result<_, String>>()?,
        lengths,
        validation: validation(&metrics).map_err(at(&path))?,
    })
}

/// A JSON file.
struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    fn read(path: PathBuf) -> Result<Self, String> {
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let value = serde_json::from_str(&text).map_err(at(&path))?;
        Ok(Self { path, value })
    }

    fn number(&self, pointer: &str) -> Result<f64, String> {
        let number = self.value.pointer(pointer).and_then(Value::as_f64);
        number.ok_or_else(|| format!("{}: no number at {pointer}", self.path.display()))
    }
}

/// Reads the lines of `metrics.jsonl`.
fn validation(text: &str) -> Result<Validation, String> {
    let mut read = Validation::default();
    for (number, line) in (1..).zip(text.lines()) {
        let entry: Value = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
        if entry["split"] != "valid" {
            continue;
        }
        let (Some(step), Some(loss)) = (entry["step"].as_u64(), entry["loss"].as_f64()) else {
            return Err(format!("line {number}: no step or no loss"));
        };
        read.losses.insert(step, loss);
        let mut layers: BTreeMap<String, BTreeMap<usize, f64>> = BTreeMap::new();
        for (key, value) in entry.as_object().into_iter().flatten() {
            if let Some((layer, name)) = measurement(key) {
                // What is no number is null in JSON.
                let value = value.as_f64().unwrap_or(f64::NAN);
                layers.entry(name).or_default().insert(layer, value);
            }
        }
        let layers = layers.into_iter();
        read.layers = layers
            .map(|(name, values)| (name, values.into_values().collect()))
            .collect();
    }
    Ok(read)
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
    fn the_deviation_is_that_of_a_sample_and_one_value_has_none() {
        assert_eq!(mean_and_deviation(&[1.5]), (1.5, None));
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((mean - 5.0).abs() < 1e-12);
        assert!((deviation.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn metrics_give_losses_by_step_and_the_last_measurements_in_the_order_of_layers() {
        let layers = |factor: u32| {
            let keys = (0..12).map(|i| format!(r#""layer_{i}_largest_u":{}"#, i * factor));
            keys.collect::<Vec<_>>().join(",")
        };
        let text = format!(
            "{{\"split\":\"train\",\"step\":1,\"loss\":9.0,\"layer_0_largest_u\":7}}\n\
             {{\"split\":\"valid\",\"step\":10,\"loss\":2.5,{}}}\n\
             {{\"split\":\"valid\",\"step\":20,\"loss\":1.5,{},\"layer_0_zeros_in_z\":null}}\n",
            layers(1),
            layers(2)
        );
        let read = validation(&text).unwrap();
        assert_eq!(read.losses, BTreeMap::from([(10, 2.5), (20, 1.5)]));
        let expected: Vec<f64> = (0..12).map(|i| f64::from(2 * i)).collect();
        assert_eq!(read.layers["largest u"], expected);
        assert!(read.layers["zeros in z"][0].is_nan());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        let text = "{\"split\":\"train\"}\n{\"split\":\"va";
        assert!(validation(text).unwrap_err().starts_with("line 2: "));
        let text = "{\"split\":\"valid\",\"step\":3,\"loss\":null}";
        assert_eq!(validation(text).unwrap_err(), "line 1: no step or no loss");
    }
}
