//! The results as Markdown, and their place in the documentation.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    at, plot,
    results::{Row, Table, mean_and_deviation},
    runs::LENGTHS,
    variants::{Recipe, VARIANTS},
};

const BEGIN: &str = "<!-- study:begin -->";
const END: &str = "<!-- study:end -->";

/// All tables.
pub fn markdown(tables: &[Table]) -> String {
    let mut page = String::from(
        "`cargo xtask study --data input.txt --write-docs` trains what is missing and writes what follows: the mean over seeds\n\
         ± the standard deviation of the sample, where there are several. Seconds are those of training; more than one run\n\
         may have shared the machine.\n\n",
    );
    page += &table(
        &["variant", "", "`--set`"],
        VARIANTS.iter().map(|variant| {
            let settings = list(variant.settings);
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
        page += &format!("More settings than above:\n\n{further}\n");
    }

    let mut titles = vec!["variant", "parameters", "seeds"];
    titles.extend(recipe.results().iter().map(|column| column.title));
    titles.push("seconds");
    page += &table(&titles, results.rows.iter().map(|row| cells(recipe, row)));
    if !results.missing.is_empty() {
        page += &format!(
            "\nWithout a finished run: {}.\n",
            results.missing.join(", ")
        );
    }
    page += &lengths(results);
    page += &layers(results);
    if plot::has_lines(results) {
        let title = format!(
            "Validation loss of {} by step, {}",
            recipe.name(),
            scale.title()
        );
        let file = plot::file_name(results);
        page += &format!("\n![{title}]({}/{file})\n", plot::FOLDER);
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
    cells.push(thousands(row.mean(|run| run.seconds).0.round() as u64));
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
                format!("{:.1}", mean_and_deviation(&known).0)
            }
        };
        let name = std::iter::once(row.variant.name.to_string());
        name.chain(LENGTHS.map(cell)).collect()
    });
    format!(
        "\nAnswers right, %, by the length of the number; training has numbers of up to {} digits.\n\n{}",
        longest.join(" or "),
        table(&titles.collect::<Vec<_>>(), rows)
    )
}

/// What layers measured of themselves, where a run had `diagnostics` on.
fn layers(results: &Table) -> String {
    let runs = || results.rows.iter().flat_map(|row| &row.runs);
    let names: BTreeSet<&str> = runs()
        .flat_map(|run| run.validation.layers.keys().map(String::as_str))
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
        "\nIn the last validation, from the first layer to the last:\n\n{}",
        table(&titles, rows)
    )
}

/// A measurement of each layer, the mean over the runs that have it.
fn of_layers(row: &Row, name: &str) -> String {
    let runs = row.runs.iter();
    let known: Vec<&Vec<f64>> = runs
        .filter_map(|run| run.validation.layers.get(name))
        .collect();
    let layers = known.iter().map(|values| values.len()).max().unwrap_or(0);
    let means = (0..layers).map(|layer| {
        let values = known.iter().filter_map(|values| values.get(layer).copied());
        significant(mean_and_deviation(&values.collect::<Vec<_>>()).0)
    });
    means.collect::<Vec<_>>().join(", ")
}

fn list(settings: &[&str]) -> String {
    let quoted: Vec<String> = settings.iter().map(|s| format!("`{s}`")).collect();
    quoted.join(" ")
}

fn table(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = format!(
        "| {} |\n|{}\n",
        titles.join(" | "),
        "---|".repeat(titles.len())
    );
    for cells in rows {
        lines += &row(&cells);
    }
    lines
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn with_deviation(mean: f64, deviation: Option<f64>, decimals: usize) -> String {
    match deviation {
        Some(deviation) => format!("{mean:.decimals$} ± {deviation:.decimals$}"),
        None => format!("{mean:.decimals$}"),
    }
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

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Writes the results into a page, which is begun where there is none.
pub fn write(path: &Path, results: &str) -> Result<(), String> {
    let text = if path.exists() {
        fs::read_to_string(path).map_err(at(path))?
    } else {
        "# Meta-State\n".into()
    };
    let text = with_results(&text, results).map_err(at(path))?;
    fs::write(path, text).map_err(at(path))
}

/// The page with the results between its markers, or at its end where it has none.
fn with_results(page: &str, results: &str) -> Result<String, String> {
    let block = format!("{BEGIN}\n{}\n{END}", results.trim());
    let count = |marker| page.matches(marker).count();
    match (count(BEGIN), count(END), page.find(BEGIN), page.find(END)) {
        (0, 0, _, _) => Ok(format!("{}\n\n## Study\n\n{block}\n", page.trim_end())),
        (1, 1, Some(begin), Some(end)) if begin < end => Ok(format!(
            "{}{block}{}",
            &page[..begin],
            &page[end + END.len()..]
        )),
        (begins, ends, _, _) => Err(format!(
            "{begins} times `{BEGIN}` and {ends} times `{END}`; needed is one of each in this order, or none"
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{
        results::{Finished, Validation},
        variants::Scale,
    };
    use super::*;
    use std::collections::BTreeMap;

    fn run(results: &[f64], lengths: &[(u32, f64)], ranks: &[f64]) -> Finished {
        let ranks = (!ranks.is_empty()).then(|| ("effective rank".to_string(), ranks.to_vec()));
        Finished {
            parameters: 1_234_567,
            max_digits: 15,
            seconds: 61.6,
            results: results.to_vec(),
            lengths: lengths.iter().copied().collect(),
            validation: Validation {
                losses: BTreeMap::new(),
                layers: ranks.into_iter().collect(),
            },
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
        assert_eq!(row(&cells), "| rwkv7 | 1,234,567 | 1 | 1.6036 | 62 |\n");
        let runs = [[99.0, 90.0], [100.0, 92.0]].map(|results| run(&results, &[], &[]));
        let cells = super::cells(Recipe::Reverse, &row_of(1, runs.into()));
        let expected = "| paper | 1,234,567 | 2 | 99.5 ± 0.7 | 91.0 ± 1.4 | 62 |\n";
        assert_eq!(row(&cells), expected);
    }

    #[test]
    fn a_length_that_was_not_asked_and_a_layer_that_was_not_measured_have_empty_cells() {
        let table = Table {
            recipe: Recipe::Reverse,
            scale: Scale::SameSize,
            rows: vec![
                row_of(0, vec![run(&[1.0, 1.0], &[(3, 100.0), (30, 0.04)], &[])]),
                row_of(1, vec![run(&[1.0, 1.0], &[], &[12.345, 0.001])]),
            ],
            missing: vec!["l2"],
        };
        let page = markdown(&[table]);
        let line = |start: &str| page.lines().rfind(|line| line.starts_with(start)).unwrap();
        assert_eq!(
            line("| rwkv7"),
            "| rwkv7 | 100.0 |  |  |  |  |  |  |  | 0.0 |"
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
        assert_eq!([0, 999, 1000].map(thousands), ["0", "999", "1,000"]);
    }

    #[test]
    fn results_go_between_the_markers_and_leave_the_rest_of_the_page() {
        let once = with_results("# Title\n\ntext\n", "new\n").unwrap();
        assert_eq!(
            once,
            format!("# Title\n\ntext\n\n## Study\n\n{BEGIN}\nnew\n{END}\n")
        );
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(with_results(&page, "new\n").unwrap(), expected);
        assert_eq!(with_results(&expected, "new\n").unwrap(), expected);
    }

    #[test]
    fn markers_that_do_not_match_are_an_error() {
        for page in [
            format!("{BEGIN}\n"),
            format!("text {END}"),
            format!("{END}\n{BEGIN}"),
            format!("{BEGIN}{END}{BEGIN}{END}"),
        ] {
            assert!(with_results(&page, "new").unwrap_err().contains(BEGIN));
        }
    }
}
