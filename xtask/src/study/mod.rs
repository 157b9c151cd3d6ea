//! Studies: many training runs and the page that compares them.
//!
//! | in the output folder | |
//! |---|---|
//! | `{run}/` | the files of `metastate train`. The last part of a run's name is the seed |
//! | `{run}.log` | the output of `metastate train` |
//!
//! A run that has a `report.json` is not done again, so a stopped study goes on where it was.

mod growth;
mod lengths;
mod meta_state;
mod page;
mod plot;
mod results;
mod runs;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::Args;

use page::Section;
use plot::Plot;
use runs::{Metastate, Run};

pub use growth::Growth;
pub use meta_state::MetaState;

/// Where the documentation is, seen from the repository's root.
const DOCS: &str = "docs/src";

/// Options of every study.
#[derive(Args)]
struct Options {
    /// The text of `shakespeare-char`.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Runs at a time.
    #[arg(long, default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    jobs: NonZeroUsize,
    /// Only the runs with this in their name, as in `variant/seed`; the tables have all that are finished.
    #[arg(long, value_name = "SUBSTRING", conflicts_with = "skip_runs")]
    only: Option<String>,
    /// Run nothing: tables and plots of the runs that are finished.
    #[arg(long)]
    skip_runs: bool,
    /// Put tables into the page of the study in `docs/src`, and plots into `docs/src/plots`; refused where a line of the page
    /// would be lost because no run for it is finished.
    #[arg(long)]
    write_docs: bool,
    /// The metastate that trains; without it one is built.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// The results of a study.
struct Results {
    markdown: String,
    plots: Vec<Plot>,
}

impl Options {
    /// Does the runs that are missing, and prints the results or writes them into their section.
    fn run(
        &self,
        runs: Vec<Run>,
        section: &Section,
        results: impl FnOnce() -> Result<Results, String>,
    ) -> Result<(), String> {
        if self.write_docs {
            // A page without the markers is an error before hours of training, not after.
            section.check(Path::new(DOCS))?;
        }
        let failures = if self.skip_runs {
            vec![]
        } else {
            self.train(runs)?
        };
        let shown = results().and_then(|results| self.show(section, &results));
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

    /// Does the selected runs, and returns the failures.
    fn train(&self, mut runs: Vec<Run>) -> Result<Vec<String>, String> {
        let only = self.only.as_deref().unwrap_or_default();
        runs.retain(|run| run.name.contains(only));
        if runs.is_empty() {
            return Err(format!("no run has `{only}` in its name"));
        }
        if runs.iter().any(Run::needs_data) {
            let data = self.data.as_deref();
            let data = data.ok_or("shakespeare-char needs its text: --data PATH")?;
            if !data.exists() {
                return Err(format!("{}: no such file", data.display()));
            }
        }
        let metastate = Metastate::new(self.binary.as_deref(), self.jobs)?;
        let data = self.data.as_deref();
        Ok(runs::finish(&runs, self.jobs, &metastate, data))
    }

    #[allow(clippy::print_stdout)]
    fn show(&self, section: &Section, results: &Results) -> Result<(), String> {
        if !self.write_docs {
            println!("{}", results.markdown);
            return Ok(());
        }
        let docs = Path::new(DOCS);
        let page = section.filled(docs, &results.markdown)?;
        let folder = docs.join(plot::FOLDER);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        for plot in &results.plots {
            let path = folder.join(&plot.file);
            fs::write(&path, plot.svg()?).map_err(at(&path))?;
        }
        let path = docs.join(section.page);
        fs::write(&path, page).map_err(at(&path))
    }
}

/// Puts the file's name before an error.
fn at<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("{}: {error}", path.display())
}
