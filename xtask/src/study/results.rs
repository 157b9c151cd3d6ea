//! The content of finished runs, read from their files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::at;

/// The finished runs in a folder, by seed: those with a `report.json`.
pub fn finished(folder: &Path) -> Result<Vec<PathBuf>, String> {
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
    Ok(seeds.into_iter().map(|(_, path)| path).collect())
}

/// A JSON file.
pub struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    pub fn read(path: PathBuf) -> Result<Self, String> {
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let value = serde_json::from_str(&text).map_err(at(&path))?;
        Ok(Self { path, value })
    }

    pub fn number(&self, pointer: &str) -> Result<f64, String> {
        let number = self.value.pointer(pointer).and_then(Value::as_f64);
        number.ok_or_else(|| format!("{}: no number at {pointer}", self.path.display()))
    }
    /// How many entries a list has.
    pub fn length(&self, pointer: &str) -> Result<usize, String> {
        let list = self.value.pointer(pointer).and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("{}: no list at {pointer}", self.path.display()))?;
        Ok(list.len())
    }
}

/// A validation: a line of `metrics.jsonl`.
pub struct Validation {
    pub step: u64,
    pub loss: f64,
    /// All of the line.
    pub entry: Value,
}

/// The validations of a run, first to last.
pub fn validations(folder: &Path) -> Result<Vec<Validation>, String> {
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    parse(&text).map_err(at(&path))
}

fn parse(metrics: &str) -> Result<Vec<Validation>, String> {
    let mut validations = vec![];
    for (number, line) in (1..).zip(metrics.lines()) {
        let entry: Value = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
        if entry["split"] != "valid" {
            continue;
        }
        let (Some(step), Some(loss)) = (entry["step"].as_u64(), entry["loss"].as_f64()) else {
            return Err(format!("line {number}: no step or no loss"));
        };
        validations.push(Validation { step, loss, entry });
    }
    Ok(validations)
}

/// Mean and, of two values or more, the deviation of a sample (n - 1 in the denominator).
pub fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
    (mean, deviation)
}

/// The mean loss at the steps that all runs have, from the losses of each by step.
pub fn mean_by_step(runs: &[&BTreeMap<u64, f64>]) -> BTreeMap<u64, f64> {
    let mut losses: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (&step, &loss) in runs.iter().copied().flatten() {
        losses.entry(step).or_default().push(loss);
    }
    losses.retain(|_, losses| losses.len() == runs.len());
    let means = losses.into_iter();
    means
        .map(|(step, losses)| (step, mean_and_deviation(&losses).0))
        .collect()
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
    fn the_mean_is_over_seeds_at_the_steps_that_all_have() {
        let runs = [BTreeMap::from([(1, 2.0), (2, 1.0)]), [(1, 4.0)].into()];
        let mean = mean_by_step(&runs.each_ref());
        assert_eq!(mean, BTreeMap::from([(1, 3.0)]));
    }

    #[test]
    fn only_validations_are_read_from_the_metrics() {
        let text = "{\"split\":\"train\",\"step\":1,\"loss\":9.0}\n\
                    {\"split\":\"valid\",\"step\":10,\"loss\":2.5}\n\
                    {\"split\":\"growth\",\"step\":10}\n\
                    {\"split\":\"valid\",\"step\":20,\"loss\":1.5}\n";
        let read = parse(text).unwrap();
        let losses: Vec<_> = read.iter().map(|v| (v.step, v.loss)).collect();
        assert_eq!(losses, [(10, 2.5), (20, 1.5)]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        let text = "{\"split\":\"train\"}\n{\"split\":\"va";
        assert!(parse(text).err().unwrap().starts_with("line 2: "));
        let text = "{\"split\":\"valid\",\"step\":3,\"loss\":null}";
        assert_eq!(parse(text).err().unwrap(), "line 1: no step or no loss");
    }
}
