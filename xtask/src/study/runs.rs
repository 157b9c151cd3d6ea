//! Training runs, some at a time.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{at, lengths};

/// A recipe of `metastate train`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    Reverse,
    Shakespeare,
}

impl Recipe {
    pub fn name(self) -> &'static str {
        match self {
            Self::Reverse => "reverse",
            Self::Shakespeare => "shakespeare-char",
        }
    }
}

/// One training run.
#[derive(Debug)]
pub struct Run {
    pub recipe: Recipe,
    /// The folder in that of the study; its last part is the seed.
    pub name: String,
    pub folder: PathBuf,
    /// The arguments of `metastate train --set`.
    pub settings: Vec<String>,
    log: PathBuf,
}

impl Run {
    pub fn new(out: &Path, recipe: Recipe, name: String, settings: Vec<String>) -> Self {
        Self {
            recipe,
            folder: out.join(&name),
            log: out.join(format!("{name}.log")),
            name,
            settings,
        }
    }

    /// Whether it trains on a text and is not finished.
    pub fn needs_data(&self) -> bool {
        self.recipe == Recipe::Shakespeare && !self.is_trained()
    }

    fn is_trained(&self) -> bool {
        self.folder.join("report.json").exists()
    }

    fn finish(
        &self,
        place: &str,
        metastate: &Metastate,
        data: Option<&Path>,
    ) -> Result<(), String> {
        if self.is_trained() {
            eprintln!("{place} {}: is there", self.name);
        } else {
            eprintln!("{place} {}", self.name);
            let started = Instant::now();
            self.train(metastate, data)?;
            let seconds = started.elapsed().as_secs();
            eprintln!("{place} {}: {seconds} s", self.name);
        }
        match self.recipe {
            Recipe::Reverse => lengths::ask(self, metastate),
            Recipe::Shakespeare => Ok(()),
        }
    }

    fn train(&self, metastate: &Metastate, data: Option<&Path>) -> Result<(), String> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).map_err(at(&self.folder))?;
        }
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let log = File::create(&self.log).map_err(at(&self.log))?;
        let mut command = metastate.command();
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
        let status = status.map_err(at(&metastate.program))?;
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
}

/// Does the missing runs, some at a time, and returns the failures.
pub fn finish(
    runs: &[Run],
    jobs: NonZeroUsize,
    metastate: &Metastate,
    data: Option<&Path>,
) -> Vec<String> {
    let queue = Mutex::new(runs.iter().zip(1..));
    let failures = Mutex::new(vec![]);
    let work = || {
        loop {
            let next = lock(&queue).next();
            let Some((run, number)) = next else { break };
            let place = format!("[{number}/{}]", runs.len());
            if let Err(error) = run.finish(&place, metastate, data) {
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

/// The command line, with a share of the machine's cores.
pub struct Metastate {
    pub program: PathBuf,
    threads: usize,
}

impl Metastate {
    /// The given one, or else the release build of this repository, built anew.
    pub fn new(binary: Option<&Path>, jobs: NonZeroUsize) -> Result<Self, String> {
        let program = match binary {
            Some(binary) => fs::canonicalize(binary).map_err(at(binary))?,
            None => build()?,
        };
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            program,
            threads: (cores.get() / jobs).max(1),
        })
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        command
    }
}

fn build() -> Result<PathBuf, String> {
    let status = Command::new("cargo")
        .args(["build", "--release", "-p", "metastate-cli"])
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if !status.success() {
        return Err(format!("cargo build --release -p metastate-cli: {status}"));
    }
    Ok("target/release/metastate".into())
}
