//! `cargo xtask study`: RWKV-7 beside Meta-State and its options, trained by the same recipes.
//!
//! | in the output folder | |
//! |---|---|
//! | `{recipe}/{scale}/{variant}/{seed}/` | what `metastate train` leaves, and for `reverse` `lengths.json` |
//! | `{recipe}/{scale}/{variant}/{seed}.log` | what it printed |
//!
//! A run that has a `report.json` is not done again, so a stopped study goes on where it was.

mod page;
mod plot;
mod results;
mod runs;
mod variants;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;

use results::Table;
use runs::Run;
use variants::{Recipe, Scale};

/// Where the documentation is, seen from the repository's root.
const DOCS: &str = "docs/src";

/// What is trained, and where the results go.
#[derive(Args)]
pub struct Study {
    /// The text of `shakespeare-char`; runs of `reverse` do without.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Seeds of the main variants; the others get one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// As many seeds for the other variants.
    #[arg(long)]
    all_seeds: bool,
    #[arg(long, value_name = "DIR", default_value = "runs/study")]
    out: PathBuf,
    /// Runs at a time.
    #[arg(long, default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    jobs: NonZeroUsize,
    /// Only the runs with this in `recipe/scale/variant/seed`; the tables have all that are finished.
    #[arg(long, value_name = "SUBSTRING", conflicts_with = "skip_runs")]
    only: Option<String>,
    /// Run nothing: tables and plots of the runs that are finished.
    #[arg(long)]
    skip_runs: bool,
    /// Put tables into `docs/src/meta-state.md` and plots into `docs/src/plots`.
    #[arg(long)]
    write_docs: bool,
}

impl Study {
    /// Runs what is missing and prints or writes the results.
    pub fn run(&self) -> Result<(), String> {
        if self.write_docs && !Path::new(DOCS).is_dir() {
            return Err(format!(
                "{DOCS}: no such folder; --write-docs needs the repository's root"
            ));
        }
        let failures = if self.skip_runs {
            vec![]
        } else {
            self.train()?
        };
        let shown = self.show();
        for failure in &failures {
            eprintln!("failed: {failure}");
        }
        match failures.len() {
            0 => shown,
            failed => {
                let results = shown.err().map(|error| format!("; and {error}"));
                Err(format!(
                    "{failed} of the study's runs failed{}",
                    results.unwrap_or_default()
                ))
            }
        }
    }

    /// Does the runs that are selected; what failed.
    fn train(&self) -> Result<Vec<String>, String> {
        let only = self.only.as_deref().unwrap_or_default();
        let mut runs = runs::plan(&self.out, self.seeds, self.all_seeds);
        runs.retain(|run| run.name().contains(only));
        if runs.is_empty() {
            return Err(format!("no run has `{only}` in its name"));
        }
        if runs.iter().any(Run::needs_data) {
            let data = self.data.as_deref().ok_or_else(|| {
                "shakespeare-char needs its text: --data PATH, or --only reverse".to_string()
            })?;
            if !data.exists() {
                return Err(format!("{}: no such file", data.display()));
            }
        }
        let status = Command::new("cargo")
            .args(["build", "--release", "-p", "metastate"])
            .status()
            .map_err(|e| format!("cargo: {e}"))?;
        if !status.success() {
            return Err(format!("cargo build --release -p metastate: {status}"));
        }
        Ok(runs::finish(&runs, self.jobs, self.data.as_deref()))
    }

    /// Prints the results, or writes them into the documentation.
    #[allow(clippy::print_stdout)]
    fn show(&self) -> Result<(), String> {
        let mut tables = vec![];
        for recipe in Recipe::ALL {
            for scale in Scale::ALL {
                let table = Table::read(&self.out, recipe, scale)?;
                if !table.rows.is_empty() {
                    tables.push(table);
                }
            }
        }
        if tables.is_empty() {
            return Err(format!("{}: no finished run", self.out.display()));
        }
        let page = page::markdown(&tables);
        if !self.write_docs {
            println!("{page}");
            return Ok(());
        }
        let folder = Path::new(DOCS).join(plot::FOLDER);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        for table in &tables {
            if let Some(svg) = plot::svg(table)? {
                let path = folder.join(plot::file_name(table));
                fs::write(&path, svg).map_err(at(&path))?;
            }
        }
        page::write(&Path::new(DOCS).join("meta-state.md"), &page)
    }
}

/// Puts the file's name before an error.
fn at<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("{}: {error}", path.display())
}
