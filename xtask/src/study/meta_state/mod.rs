//! `cargo xtask study`: RWKV-7 beside Meta-State and its options, trained by the same recipes.
//!
//! Runs are in `{recipe}/{scale}/{variant}/{seed}/`; those of `reverse` have a `lengths.json` besides.

mod page;
mod results;
mod variants;

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Options, Results,
    page::Section,
    plot::{Line, Plot},
    results::mean_by_step,
    runs::{Recipe, Run},
};
use results::{Row, Table};
use variants::{Scale, VARIANTS};

const RECIPES: [Recipe; 2] = [Recipe::Reverse, Recipe::Shakespeare];

const SECTION: Section = Section {
    page: "meta-state-results.md",
    name: "study",
};

/// The runs of the study. The results go to `docs/src/meta-state-results.md`.
#[derive(Args)]
pub struct MetaState {
    /// Seeds of every variant.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    #[arg(long, value_name = "DIR", default_value = "runs/study")]
    out: PathBuf,
    #[command(flatten)]
    options: Options,
}

impl MetaState {
    /// Does the missing runs, then prints or writes the results.
    pub fn run(&self) -> Result<(), String> {
        let runs = plan(&self.out, self.seeds);
        self.options.run(runs, &SECTION, || read(&self.out))
    }
}

/// All runs, seed by seed, so that a stopped study has whole tables.
fn plan(out: &Path, seeds: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for seed in 0..seeds {
        for recipe in RECIPES {
            for scale in Scale::ALL {
                for variant in VARIANTS.iter() {
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
                    let settings = variant.settings.iter().chain(further).map(String::as_str);
                    let settings = settings.chain(variant.diagnostics());
                    let settings = settings.chain([seed.as_str()]).map(String::from).collect();
                    runs.push(Run::new(out, recipe, name, settings));
                }
            }
        }
    }
    runs
}

/// Tables and plots of the finished runs.
fn read(out: &Path) -> Result<Results, String> {
    let mut tables = vec![];
    for recipe in RECIPES {
        for scale in Scale::ALL {
            let table = Table::read(out, recipe, scale)?;
            if !table.rows.is_empty() {
                tables.push(table);
            }
        }
    }
    if tables.is_empty() {
        return Err(format!("{}: no finished run", out.display()));
    }
    Ok(Results {
        markdown: page::markdown(&tables),
        plots: tables.iter().filter_map(plot).collect(),
    })
}

/// The plot of a table's main variants, the means over their seeds; none where no run of them is finished.
fn plot(table: &Table) -> Option<Plot> {
    let points = |row: &Row| {
        let losses: Vec<_> = row.runs.iter().map(|run| &run.losses).collect();
        let mean = mean_by_step(&losses).into_iter();
        mean.map(|(step, loss)| (step as f64, loss)).collect()
    };
    let main = VARIANTS.iter().filter(|variant| variant.is_main);
    let lines = main.map(|variant| {
        let mut rows = table.rows.iter();
        let row = rows.find(|row| row.variant.name == variant.name);
        Line {
            name: variant.name,
            points: row.map(points).unwrap_or_default(),
        }
    });
    let lines: Vec<Line> = lines.collect();
    let (recipe, scale) = (table.recipe.name(), table.scale);
    lines
        .iter()
        .any(|line| !line.points.is_empty())
        .then(|| Plot {
            file: format!("{recipe}-{}.svg", scale.name()),
            title: format!("{recipe}, {}", scale.title()),
            x: "step",
            lines,
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use results::Finished;
    use std::collections::BTreeMap;

    #[test]
    fn variants_have_all_seeds_and_rwkv7_has_one_run_for_both_scales() {
        let runs = plan(Path::new("out"), 3);
        let count = |part: &str| runs.iter().filter(|run| run.name.contains(part)).count();
        assert_eq!(
            (count("/rwkv7/"), count("/paper/"), count("/l2/")),
            (6, 12, 12)
        );

        let name = "reverse/same-parameters/learned/1";
        let run = runs.iter().find(|run| run.name == name);
        let settings = run.map(|run| run.settings.join(" "));
        let expected = r#"arch=meta-state model.meta_state=practical model.meta_state.removal="time-mix" model.meta_state.side="value" model.meta_state.sse="learned" model.n_layer=4 model.decay_rank=24 model.in_context_rank=24 model.value_rank=24 model.gate_rank=24 diagnostics=true seed=1"#;
        assert_eq!(settings.as_deref(), Some(expected));
    }

    #[test]
    fn only_main_variants_are_in_a_plot() {
        let table = |variant| Table {
            recipe: Recipe::Reverse,
            scale: Scale::SameSize,
            rows: vec![Row {
                variant,
                runs: vec![Finished {
                    parameters: 1,
                    max_digits: 15,
                    results: vec![],
                    lengths: BTreeMap::new(),
                    losses: BTreeMap::from([(250, 2.0)]),
                    layers: BTreeMap::new(),
                }],
            }],
            missing: vec![],
        };
        let lines = plot(&table(&VARIANTS[1])).unwrap().lines;
        let points = lines.into_iter().map(|line| (line.name, line.points.len()));
        let expected = [
            ("rwkv7", 0),
            ("paper", 1),
            ("practical", 0),
            ("time-mix-key", 0),
            ("value-side", 0),
            ("learned", 0),
            ("bare", 0),
        ];
        assert_eq!(points.collect::<Vec<_>>(), expected);
        let other = VARIANTS.iter().find(|variant| !variant.is_main).unwrap();
        assert!(plot(&table(other)).is_none());
    }
}
