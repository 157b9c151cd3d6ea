//! The accuracy of `reverse` by the length of the number: `lengths.json` in a run's folder.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use super::{
    at,
    runs::{Metastate, Run},
};

/// The lengths of numbers that are asked for, in digits.
pub const LENGTHS: [u32; 9] = [3, 6, 9, 12, 15, 18, 21, 24, 30];

/// The accuracies at [`LENGTHS`], in a run's folder.
pub const FILE: &str = "lengths.json";

/// Asks a trained model for the lengths that `lengths.json` does not have yet.
pub fn ask(run: &Run, metastate: &Metastate) -> Result<(), String> {
    let path = run.folder.join(FILE);
    let mut known = read(&path)?;
    let before = known.len();
    let (mut failed, mut reason) = (vec![], String::new());
    for digits in LENGTHS.map(|digits| digits.to_string()) {
        if known.contains_key(&digits) {
            continue;
        }
        match evaluate(run, metastate, &digits) {
            Ok(value) => {
                known.insert(digits, value);
            }
            Err(error) => {
                failed.push(digits);
                reason = error;
            }
        }
    }
    if known.len() > before {
        // Renamed when whole: a study may be stopped at any moment.
        let part = path.with_extension("part");
        fs::write(&part, format!("{:#}\n", Value::Object(known))).map_err(at(&part))?;
        fs::rename(&part, &path).map_err(at(&path))?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}: eval of numbers of {} digits: {reason}",
        run.name,
        failed.join(", ")
    ))
}

fn evaluate(run: &Run, metastate: &Metastate, digits: &str) -> Result<Value, String> {
    let mut command = metastate.command();
    command.arg("eval").arg("--model").arg(&run.folder);
    command.args(["--task", "reverse", "--digits", digits, "--json"]);
    let output = command.output().map_err(at(&metastate.program))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let error = text.lines().find(|line| !line.trim().is_empty());
        return Err(format!("{}, {}", output.status, error.unwrap_or_default()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let value: Value =
        serde_json::from_str(line).map_err(|e| format!("it printed `{line}`: {e}"))?;
    match value["answer_accuracy"].as_f64() {
        Some(_) => Ok(value),
        None => Err(format!("it printed `{line}`, without answer_accuracy")),
    }
}

/// The content of `lengths.json`: an object for each number of digits.
pub fn read(path: &Path) -> Result<Map<String, Value>, String> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = fs::read_to_string(path).map_err(at(path))?;
    serde_json::from_str(&text).map_err(at(path))
}
