//! Parts of a page of results, and the section of the book that holds the results.

use std::{collections::BTreeSet, fs, path::Path};

use super::at;

/// A table in Markdown.
pub fn table(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = format!(
        "| {} |\n|{}\n",
        titles.join(" | "),
        "---|".repeat(titles.len())
    );
    for cells in rows {
        lines += &format!("| {} |\n", cells.join(" | "));
    }
    lines
}

/// A line with the variants that have no results; nothing where all have some.
pub fn missing(variants: &[&str]) -> String {
    if variants.is_empty() {
        return String::new();
    }
    format!("\nWithout a finished run: {}.\n", variants.join(", "))
}

/// As in `1.62 ± 0.01`.
pub fn with_deviation(mean: f64, deviation: Option<f64>, decimals: usize) -> String {
    match deviation {
        Some(deviation) => format!("{mean:.decimals$} ± {deviation:.decimals$}"),
        None => format!("{mean:.decimals$}"),
    }
}

/// As in `1,234,567`.
pub fn thousands(number: u64) -> String {
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

/// A section of a page of the book: between `<!-- {name}:begin -->` and `<!-- {name}:end -->`.
pub struct Section {
    /// The file in the documentation's folder.
    pub page: &'static str,
    pub name: &'static str,
}

impl Section {
    /// The page with the results between its markers; not if they lack a line that a table of the page has.
    pub fn filled(&self, docs: &Path, results: &str) -> Result<String, String> {
        let path = docs.join(self.page);
        let page = fs::read_to_string(&path).map_err(at(&path))?;
        self.fill(&page, results).map_err(at(&path))
    }

    /// Whether the page has the markers.
    pub fn check(&self, docs: &Path) -> Result<(), String> {
        let path = docs.join(self.page);
        let page = fs::read_to_string(&path).map_err(at(&path))?;
        self.around(&page).map_err(at(&path))?;
        Ok(())
    }

    fn fill(&self, page: &str, results: &str) -> Result<String, String> {
        let [before, old, after] = self.around(page)?;
        let lost: Vec<_> = lines_of_tables(old)
            .difference(&lines_of_tables(results))
            .map(|(section, name)| format!("{section}: {name}"))
            .collect();
        if !lost.is_empty() {
            return Err(format!(
                "the study's folder has no finished run for results of this page, and they would be lost: {}; finish these runs, \
                 or put the new lines in by hand (without --write-docs they are printed), or delete what is to go",
                lost.join(", ")
            ));
        }
        Ok(format!("{before}\n{}\n{after}", results.trim()))
    }

    /// The page up to the end of the first marker, the text between the markers, and the rest.
    fn around<'a>(&self, page: &'a str) -> Result<[&'a str; 3], String> {
        let [begin, end] = ["begin", "end"].map(|part| format!("<!-- {}:{part} -->", self.name));
        let count = |marker: &str| page.matches(marker).count();
        match (
            count(&begin),
            count(&end),
            page.find(&begin),
            page.find(&end),
        ) {
            (1, 1, Some(first), Some(second)) if first < second => {
                let first = first + begin.len();
                Ok([&page[..first], &page[first..second], &page[second..]])
            }
            (begins, ends, _, _) => Err(format!(
                "{begins} times `{begin}` and {ends} times `{end}`; the results go between one of each, in this order"
            )),
        }
    }
}

/// The section and the first cell of every line of a table.
fn lines_of_tables(page: &str) -> BTreeSet<(&str, &str)> {
    let mut section = "";
    let mut lines = BTreeSet::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title;
        } else if let Some((name, _)) = line.strip_prefix("| ").and_then(|l| l.split_once(" |")) {
            lines.insert((section, name));
        }
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECTION: Section = Section {
        page: "page.md",
        name: "study",
    };
    const BEGIN: &str = "<!-- study:begin -->";
    const END: &str = "<!-- study:end -->";

    #[test]
    fn results_go_between_the_markers_and_leave_the_rest_of_the_page() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(SECTION.fill(&page, "new\n").unwrap(), expected);
        assert_eq!(SECTION.fill(&expected, "new\n").unwrap(), expected);
    }

    #[test]
    fn results_that_the_page_has_and_the_study_does_not_are_named_and_kept() {
        let results = |names: &[&str]| {
            let rows = names.iter().map(|&name| vec![name.into(), "1".into()]);
            format!("### `reverse`\n\n{}", table(&["variant", "loss"], rows))
        };
        let page = format!("{BEGIN}\n{}{END}\n", results(&["rwkv7", "l2"]));
        let error = SECTION
            .fill(&page, &results(&["rwkv7", "new"]))
            .unwrap_err();
        assert!(error.contains("lost: `reverse`: l2; finish"), "{error}");
        let filled = SECTION
            .fill(&page, &results(&["rwkv7", "l2", "new"]))
            .unwrap();
        assert!(filled.contains("| new | 1 |"));
    }

    #[test]
    fn markers_that_are_missing_or_do_not_match_are_an_error() {
        for page in [
            "# Title\n".into(),
            format!("{BEGIN}\n"),
            format!("text {END}"),
            format!("{END}\n{BEGIN}"),
            format!("{BEGIN}{END}{BEGIN}{END}"),
        ] {
            assert!(SECTION.fill(&page, "new").unwrap_err().contains(BEGIN));
        }
    }

    #[test]
    fn numbers_are_grouped_and_one_value_has_no_deviation() {
        assert_eq!([0, 999, 1000].map(thousands), ["0", "999", "1,000"]);
        let shown = [Some(0.25), None].map(|deviation| with_deviation(1.5, deviation, 1));
        assert_eq!(shown, ["1.5 ± 0.2", "1.5"]);
    }
}
