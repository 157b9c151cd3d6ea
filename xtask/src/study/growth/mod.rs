//! `cargo xtask growth`: a model that grew while it trained beside one of its size from scratch.
//!
//! Runs are in `{arch}/{variant}/{seed}/`.

mod page;
mod results;
mod variants;

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Options, Results,
    page::Section,
    plot::{Line, Plot},
    runs::{Recipe, Run},
};
use results::{Row, Table};
use variants::{Arch, SCRATCH, STUDY};

const SECTION: Section = Section {
    page: "growth-results.md",
    name: "growth",
};

/// The runs of the study. The results go to `docs/src/growth-results.md`.
#[derive(Args)]
pub struct Growth {
    /// Seeds of every variant.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    #[arg(long, value_name = "DIR", default_value = "runs/growth")]
    out: PathBuf,
    #[command(flatten)]
    options: Options,
}

impl Growth {
    /// Does the missing runs, then prints or writes the results.
    pub fn run(&self) -> Result<(), String> {
        let runs = plan(&self.out, self.seeds);
        self.options.run(runs, &SECTION, || read(&self.out))
    }
}

/// All runs, seed by seed, so that a stopped study has whole tables.
fn plan(out: &Path, seeds: u64) -> Vec<Run> {
    let mut runs = vec![];
    for seed in 0..seeds {
        for arch in Arch::ALL {
            for variant in &STUDY.variants {
                let name = format!("{}/{seed}", variant.folder(arch));
                let settings = variant.settings(arch, seed);
                runs.push(Run::new(out, Recipe::Shakespeare, name, settings));
            }
        }
    }
    runs
}

/// Tables and plots of the finished runs.
fn read(out: &Path) -> Result<Results, String> {
    let mut tables = vec![];
    for arch in Arch::ALL {
        tables.extend(Table::read(out, arch)?);
    }
    if tables.is_empty() {
        return Err(format!(
            "{}: no finished run of `{SCRATCH}`, by which the others are measured",
            out.display()
        ));
    }
    Ok(Results {
        markdown: page::markdown(&tables),
        plots: tables.iter().map(plot).collect(),
    })
}

/// The plot of a table: the mean validation loss by compute.
fn plot(table: &Table) -> Plot {
    let points = |row: &Row| {
        let losses = row.losses.iter();
        losses
            .map(|(&step, &loss)| (table.share(row.cost.flops(0..step)), loss))
            .collect()
    };
    let lines = STUDY.variants.iter().map(|variant| {
        let mut rows = table.rows.iter();
        let row = rows.find(|row| row.variant.name == variant.name);
        Line {
            name: variant.name,
            points: row.map(points).unwrap_or_default(),
        }
    });
    let arch = table.arch.name();
    Plot {
        file: format!("growth-{arch}.svg"),
        title: format!("{arch}, grown and from scratch"),
        x: "training FLOPs, in units of those of scratch",
        lines: lines.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::{collections::BTreeSet, fs};

    #[test]
    fn every_run_has_a_name_of_its_own_and_seeds_come_one_after_the_other() {
        let runs = plan(Path::new("out"), 3);
        let names: BTreeSet<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!((runs.len(), names.len()), (54, 54));
        assert_eq!(runs[0].name, "rwkv7/scratch/0");
        assert!(runs[..18].iter().all(|run| run.name.ends_with("/0")));
    }

    /// A finished run; its models cost `flops` a token, its validations are after equally many steps.
    fn finish(out: &Path, name: &str, flops: &[u32], loss: f64, losses: &[f64]) {
        let variant = STUDY
            .variants
            .iter()
            .find(|v| name.contains(&format!("/{}/", v.name)));
        let (mut start, mut stages) = (0, vec![]);
        for (steps, flops) in variant.unwrap().steps.iter().zip(flops) {
            let losses = (start > 0).then_some([2.0 * loss, 3.0 * loss]);
            stages.push(json!({
                "from_step": start,
                "flops_per_token": flops,
                "loss_before": losses.map(|losses| losses[0]),
                "loss_after": losses.map(|losses| losses[1]),
            }));
            start += steps;
        }
        let every = start / losses.len() as u64;
        let lines = (1..).zip(losses).map(|(epoch, loss)| {
            let line = json!({ "split": "valid", "step": epoch * every, "loss": loss });
            format!("{line}\n")
        });
        let recipe = json!({ "steps": start, "batch_size": 2, "context": 5, "accumulation": 1 });
        let report = json!({ "text": { "loss": loss }, "stages": stages });
        let folder = out.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("recipe.json"), recipe.to_string()).unwrap();
        fs::write(folder.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
        fs::write(folder.join("report.json"), report.to_string()).unwrap();
    }

    #[test]
    fn finished_runs_become_tables_and_a_plot_in_units_of_scratch() {
        let out = std::env::temp_dir().join(format!("xtask-growth-{}", std::process::id()));
        assert!(
            read(&out)
                .err()
                .unwrap()
                .contains("no finished run of `scratch`")
        );
        for (seed, loss) in [(0, 1.0), (1, 1.5)] {
            let name = |variant| format!("rwkv7/{variant}/{seed}");
            let losses = [2.0, 1.5, 1.25, loss];
            finish(&out, &name("scratch"), &[40], loss, &losses);
            finish(&out, &name("scratch-half"), &[40], 2.0, &[2.0, 1.5]);
            let losses = [2.0, 1.75, 1.5, 1.25, 1.0];
            finish(&out, &name("lossless-half"), &[10, 20, 40], loss, &losses);
        }
        let results = read(&out).unwrap();
        for line in [
            "| scratch | 2 | 2000 | 20,000 | 100.0 | 1.2500 ± 0.3536 |  |  |",
            "| scratch-half | 2 | 1000 | 10,000 | 50.0 | 2.0000 ± 0.0000 |  |  |",
            "| lossless-half | 2 | 500 + 300 + 700 | 15,000 | 48.8 | 1.2500 ± 0.3536 | 2.5000 → 3.7500 | 2.5000 → 3.7500 |",
            "| scratch | 1500 | 15,000 | 75.0 | 15,000 | 75.0 |",
            "| scratch-half | not reached |  |  |  |  |",
            "| lossless-half | 1200 | 12,000 | 33.8 | 4,000 | 20.0 |",
            "Without a finished run: lossless-three-quarters, lossless-all, lossless-half-fresh, paper-half, stack-half, shrink-perturb-half.",
        ] {
            let found = results.markdown.lines().any(|other| other == line);
            assert!(found, "no line `{line}` in\n{}", results.markdown);
        }
        let [plot] = results.plots.as_slice() else {
            panic!("plots of architectures without a run");
        };
        assert_eq!(plot.file, "growth-rwkv7.svg");
        assert_eq!(plot.lines[1].points, [(0.25, 2.0), (0.5, 1.5)]);

        // Another model than the seed before, and other steps than the variant has.
        for (variant, flops) in [("scratch", 30), ("lossless-all", 40)] {
            let name = format!("rwkv7/{variant}/2");
            finish(&out, &name, &[flops], 1.0, &[1.0]);
            let error = read(&out).err().unwrap();
            assert!(error.contains(&format!("{variant}/2: ")), "{error}");
            fs::remove_dir_all(out.join(name)).unwrap();
        }
        fs::remove_dir_all(&out).unwrap();
    }
}
