//! Training, and the accuracy of `reverse` by the length of the number.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde_json::{Map, Value};

use super::{
    at,
    variants::{Recipe, Scale, VARIANTS},
};

/// Made by `cargo build --release` in the repository's root.
const METASTATE: &str = "target/release/metastate";

/// The lengths of numbers that `reverse` is asked for, in digits.
pub const LENGTHS: [u32; 9] = [3, 6, 9, 12, 15, 18, 21, 24, 30];

/// The accuracies at [`LENGTHS`], in a run's folder.
pub const LENGTHS_FILE: &str = "lengths.json";

/// One training run.
#[derive(Debug)]
pub struct Run {
    recipe: Recipe,
    /// `recipe/scale/variant/seed`.
    name: String,
    folder: PathBuf,
    log: PathBuf,
    settings: Vec<String>,
}

/// All runs, seed by seed, so that a stopped study has whole tables.
pub fn plan(out: &Path, seeds: u64, all_seeds: bool) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for seed in 0..seeds {
        for recipe in Recipe::ALL {
            for scale in Scale::ALL {
                for variant in VARIANTS {
                    if seed > 0 && !variant.is_main() && !all_seeds {
                        continue;
                    }
                    let further = variant.further_settings(recipe, scale);
                    let (Some(further), Some(folder)) = (further, variant.folder(recipe, scale))
                    else {
                        continue;
                    };
                    let name = format!("{folder}/{seed}");
                    if runs.iter().any(|run| run.name == name) {
                        continue;
                    }
                    let seed = format!("seed={seed}");
                    let settings = variant.settings.iter().chain(further).copied();
                    runs.push(Run {
                        recipe,
                        folder: out.join(&name),
                        log: out.join(format!("{name}.log")),
                        settings: settings.chain([seed.as_str()]).map(String::from).collect(),
                        name,
                    });
                }
            }
        }
    }
    runs
}

/// Does what is missing, some runs at a time; what failed.
pub fn finish(runs: &[Run], jobs: NonZeroUsize, data: Option<&Path>) -> Vec<String> {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = (cores.get() / jobs).max(1);
    let queue = Mutex::new(runs.iter().zip(1..));
    let failures = Mutex::new(vec![]);
    let work = || {
        loop {
            let next = lock(&queue).next();
            let Some((run, number)) = next else { break };
            let place = format!("[{number}/{}]", runs.len());
            if let Err(error) = run.finish(&place, threads, data) {
                eprintln!("{place} failed: {error}");
                lock(&failures).push(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.get().min(runs.len()) {
            scope.spawn(work);
        }
    });
    failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// `recipe/scale/variant/seed`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it trains on a text and is not finished.
    pub fn needs_data(&self) -> bool {
        self.recipe == Recipe::Shakespeare && !self.is_trained()
    }

    fn is_trained(&self) -> bool {
        self.folder.join("report.json").exists()
    }

    fn finish(&self, place: &str, threads: usize, data: Option<&Path>) -> Result<(), String> {
        if self.is_trained() {
            eprintln!("{place} {}: is there", self.name);
        } else {
            eprintln!("{place} {}", self.name);
            let started = Instant::now();
            self.train(threads, data)?;
            let seconds = started.elapsed().as_secs();
            eprintln!("{place} {}: {seconds} s", self.name);
        }
        match self.recipe {
            Recipe::Reverse => self.lengths(threads),
            Recipe::Shakespeare => Ok(()),
        }
    }

    fn train(&self, threads: usize, data: Option<&Path>) -> Result<(), String> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).map_err(at(&self.folder))?;
        }
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let log = File::create(&self.log).map_err(at(&self.log))?;
        let mut command = metastate(threads);
        command.args(["train", "--no-tui", "--recipe", self.recipe.name(), "--out"]);
        command.arg(&self.folder);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        if let (Recipe::Shakespeare, Some(data)) = (self.recipe, data) {
            command.arg("--data").arg(data);
        }
        command.stderr(log.try_clone().map_err(at(&self.log))?);
        let status = command.stdout(log).status();
        let status = status.map_err(at(Path::new(METASTATE)))?;
        if !status.success() {
            let log = self.log.display();
            return Err(format!("{}: {status}, see {log}", self.name));
        }
        if !self.is_trained() {
            let log = self.log.display();
            return Err(format!("{}: left no report.json, see {log}", self.name));
        }
        Ok(())
    }

    /// Asks for what `lengths.json` does not have yet.
    fn lengths(&self, threads: usize) -> Result<(), String> {
        let path = self.folder.join(LENGTHS_FILE);
        let mut known = read_lengths(&path)?;
        let before = known.len();
        let (mut failed, mut reason) = (vec![], String::new());
        for digits in LENGTHS.map(|digits| digits.to_string()) {
            if known.contains_key(&digits) {
                continue;
            }
            match self.evaluate(&digits, threads) {
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
            self.name,
            failed.join(", ")
        ))
    }

    fn evaluate(&self, digits: &str, threads: usize) -> Result<Value, String> {
        let mut command = metastate(threads);
        command.arg("eval").arg("--model").arg(&self.folder);
        command.args(["--task", "reverse", "--digits", digits, "--json"]);
        let output = command.output().map_err(at(Path::new(METASTATE)))?;
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
}

/// What `lengths.json` has: an object for each number of digits.
pub fn read_lengths(path: &Path) -> Result<Map<String, Value>, String> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = fs::read_to_string(path).map_err(at(path))?;
    serde_json::from_str(&text).map_err(at(path))
}

fn metastate(threads: usize) -> Command {
    let mut command = Command::new(METASTATE);
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_variants_have_all_seeds_and_rwkv7_has_one_run_for_both_scales() {
        let runs = plan(Path::new("out"), 3, false);
        let count = |part: &str| runs.iter().filter(|run| run.name.contains(part)).count();
        assert_eq!(
            (count("/rwkv7/"), count("/paper/"), count("/l2/")),
            (6, 12, 2)
        );

        let name = "reverse/same-parameters/learned/1";
        let run = runs.iter().find(|run| run.name == name);
        let settings = run.map(|run| run.settings.join(" "));
        let expected = r#"arch=meta-state model.meta_state=practical model.meta_state.sse="learned" diagnostics=true model.n_layer=4 model.decay_rank=24 model.in_context_rank=24 model.value_rank=24 model.gate_rank=24 seed=1"#;
        assert_eq!(settings.as_deref(), Some(expected));
    }
}
