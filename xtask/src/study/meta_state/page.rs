//! The results as Markdown.

use std::collections::BTreeSet;

use super::{
    super::{
        lengths::LENGTHS,
        page::{missing, table, thousands, with_deviation},
        results::mean_and_deviation,
        runs::Recipe,
    },
    plot,
    results::{Row, Table},
    variants::VARIANTS,
};

/// All tables.
pub fn markdown(tables: &[Table]) -> String {
    let mut page = String::from(
        "`cargo xtask study --data input.txt --write-docs` trains the missing runs and writes this section. A number is the mean over seeds.\n\
         The standard deviation of the sample stands after ± where there are several seeds. Runs of Meta-State also have `diagnostics=true`.\n\n",
    );
    page += &table(
        &["variant", "", "`--set`"],
        VARIANTS.iter().map(|variant| {
            let settings = list(&variant.settings);
            vec![variant.name.into(), variant.description.into(), settings]
        }),
    );
    for table in tables {
        page += &section(table);
    }
    page
}

fn section(results: &Table) -> String {
    let (recipe, scale) = (results.recipe, results.scale);
    let mut page = format!("\n### `{}`, {}\n\n", recipe.name(), scale.title());
    let further = VARIANTS.iter().filter_map(|variant| {
        let settings = variant.further_settings(recipe, scale)?;
        (!settings.is_empty()).then(|| format!("- {}: {}\n", variant.name, list(settings)))
    });
    let further: String = further.collect();
    if !further.is_empty() {
        page += &format!("Further settings:\n\n{further}\n");
    }

    let mut titles = vec!["variant", "parameters", "seeds"];
    titles.extend(recipe.results().iter().map(|column| column.title));
    page += &table(&titles, results.rows.iter().map(|row| cells(recipe, row)));
    page += &missing(&results.missing);
    page += &lengths(results);
    page += &layers(results);
    if let Some(plot) = plot(results) {
        page += &plot.image(&format!(
            "Validation loss of {} by step, {}",
            recipe.name(),
            scale.title()
        ));
    }
    page
}

/// A variant's line in the table of results.
fn cells(recipe: Recipe, row: &Row) -> Vec<String> {
    let mut cells = vec![
        row.variant.name.to_string(),
        thousands(row.runs.first().map_or(0, |run| run.parameters)),
        row.runs.len().to_string(),
    ];
    for (index, column) in recipe.results().iter().enumerate() {
        let (mean, deviation) = row.mean(|run| run.results[index]);
        cells.push(with_deviation(mean, deviation, column.decimals));
    }
    cells
}

/// Answers right by the length of the number, where a run has been asked.
fn lengths(results: &Table) -> String {
    let runs = || results.rows.iter().flat_map(|row| &row.runs);
    if runs().all(|run| run.lengths.is_empty()) {
        return String::new();
    }
    let longest: BTreeSet<u64> = runs().map(|run| run.max_digits).collect();
    let longest: Vec<String> = longest.iter().map(u64::to_string).collect();
    let titles = LENGTHS.map(|digits| digits.to_string());
    let titles = std::iter::once("digits").chain(titles.iter().map(String::as_str));
    let rows = results.rows.iter().map(|row| {
        let cell = |digits| {
            let runs = row.runs.iter();
            let known: Vec<f64> = runs
                .filter_map(|run| run.lengths.get(&digits).copied())
                .collect();
            if known.is_empty() {
                String::new()
            } else {
                let (mean, deviation) = mean_and_deviation(&known);
                with_deviation(mean, deviation, 1)
            }
        };
        let name = std::iter::once(row.variant.name.to_string());
        name.chain(LENGTHS.map(cell)).collect()
    });
    format!(
        "\nAnswers right in %, by the length of the number. Training has numbers of up to {} digits.\n\n{}",
        longest.join(" or "),
        table(&titles.collect::<Vec<_>>(), rows)
    )
}

/// The layers' measurements, for runs with `diagnostics`.
fn layers(results: &Table) -> String {
    let runs = || results.rows.iter().flat_map(|row| &row.runs);
    let names: BTreeSet<&str> = runs()
        .flat_map(|run| run.layers.keys().map(String::as_str))
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let rows = results.rows.iter().filter_map(|row| {
        let cells: Vec<String> = names.iter().map(|name| of_layers(row, name)).collect();
        let name = std::iter::once(row.variant.name.to_string());
        let some = cells.iter().any(|cell| !cell.is_empty());
        some.then(|| name.chain(cells).collect())
    });
    let titles: Vec<&str> = std::iter::once("variant")
        .chain(names.iter().copied())
        .collect();
    format!(
        "\nThe layers' measurements in the last validation, from the first layer to the last. A number is the mean over the runs that measured:\n\n{}",
        table(&titles, rows)
    )
}

/// A measurement of each layer, the mean over the runs that have it.
fn of_layers(row: &Row, name: &str) -> String {
    let runs = row.runs.iter();
    let known: Vec<&Vec<f64>> = runs.filter_map(|run| run.layers.get(name)).collect();
    let layers = known.iter().map(|values| values.len()).max().unwrap_or(0);
    let means = (0..layers).map(|layer| {
        let values = known.iter().filter_map(|values| values.get(layer).copied());
        significant(mean_and_deviation(&values.collect::<Vec<_>>()).0)
    });
    means.collect::<Vec<_>>().join(", ")
}

fn list(settings: &[String]) -> String {
    let quoted: Vec<String> = settings.iter().map(|s| format!("`{s}`")).collect();
    quoted.join(" ")
}

/// Three digits that matter, or as many as stand before the point.
fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let before = value.abs().log10().floor() as i32 + 1;
    if before < -3 {
        return format!("{value:.2e}");
    }
    format!("{value:.*}", (3 - before).max(0) as usize)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{results::Finished, variants::Scale};
    use super::*;
    use std::collections::BTreeMap;

    fn run(results: &[f64], lengths: &[(u32, f64)], ranks: &[f64]) -> Finished {
        let ranks = (!ranks.is_empty()).then(|| ("effective rank".to_string(), ranks.to_vec()));
        Finished {
            parameters: 1_234_567,
            max_digits: 15,
            results: results.to_vec(),
            lengths: lengths.iter().copied().collect(),
            losses: BTreeMap::new(),
            layers: ranks.into_iter().collect(),
        }
    }

    fn row_of(variant: usize, runs: Vec<Finished>) -> Row {
        Row {
            variant: &VARIANTS[variant],
            runs,
        }
    }

    #[test]
    fn a_row_has_the_mean_the_deviation_and_grouped_numbers() {
        let one = row_of(0, vec![run(&[1.60356], &[], &[])]);
        let cells = cells(Recipe::Shakespeare, &one);
        assert_eq!(cells, ["rwkv7", "1,234,567", "1", "1.6036"]);
        let runs = [[99.0, 90.0], [100.0, 92.0]].map(|results| run(&results, &[], &[]));
        let cells = super::cells(Recipe::Reverse, &row_of(1, runs.into()));
        let expected = "paper, 1,234,567, 2, 99.5 ± 0.7, 91.0 ± 1.4";
        assert_eq!(cells.join(", "), expected);
    }

    #[test]
    fn lengths_have_deviations_and_what_was_not_measured_has_empty_cells() {
        let table = Table {
            recipe: Recipe::Reverse,
            scale: Scale::SameSize,
            rows: vec![
                row_of(
                    0,
                    vec![
                        run(&[1.0, 1.0], &[(3, 100.0), (30, 0.04)], &[]),
                        run(&[1.0, 1.0], &[(3, 99.0)], &[]),
                    ],
                ),
                row_of(1, vec![run(&[1.0, 1.0], &[], &[12.345, 0.001])]),
            ],
            missing: vec!["l2"],
        };
        let page = markdown(&[table]);
        let line = |start: &str| page.lines().rfind(|line| line.starts_with(start)).unwrap();
        assert_eq!(
            line("| rwkv7"),
            "| rwkv7 | 99.5 ± 0.7 |  |  |  |  |  |  |  | 0.0 |"
        );
        assert_eq!(line("| paper"), "| paper | 12.3, 0.00100 |");
        assert!(page.contains("numbers of up to 15 digits."));
        assert!(page.contains("Without a finished run: l2."));
    }

    #[test]
    fn numbers_keep_three_digits_that_matter() {
        let shown = [0.0, 0.5, -3.25159, 1234.5, 1.5e-7, f64::NAN].map(significant);
        let expected = ["0", "0.500", "-3.25", "1234", "1.50e-7", "not finite"];
        assert_eq!(shown, expected);
    }
}
