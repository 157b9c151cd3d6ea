//! Parts of a page of results, and its place in the documentation.

use std::{fs, path::Path};

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

/// A place in the book: between `<!-- {name}:begin -->` and `<!-- {name}:end -->`.
pub struct Place {
    /// The file in the documentation's folder.
    pub page: &'static str,
    pub name: &'static str,
}

impl Place {
    /// Replaces what is between the markers.
    pub fn write(&self, docs: &Path, results: &str) -> Result<(), String> {
        let path = docs.join(self.page);
        fs::write(&path, self.filled(docs, results)?).map_err(at(&path))
    }

    /// The page with the results between its markers.
    pub fn filled(&self, docs: &Path, results: &str) -> Result<String, String> {
        let path = docs.join(self.page);
        let page = fs::read_to_string(&path).map_err(at(&path))?;
        self.fill(&page, results).map_err(at(&path))
    }

    fn fill(&self, page: &str, results: &str) -> Result<String, String> {
        let [begin, end] = ["begin", "end"].map(|part| format!("<!-- {}:{part} -->", self.name));
        let count = |marker: &str| page.matches(marker).count();
        match (
            count(&begin),
            count(&end),
            page.find(&begin),
            page.find(&end),
        ) {
            (1, 1, Some(first), Some(second)) if first < second => Ok(format!(
                "{}{begin}\n{}\n{}",
                &page[..first],
                results.trim(),
                &page[second..]
            )),
            (begins, ends, _, _) => Err(format!(
                "{begins} times `{begin}` and {ends} times `{end}`; the results go between one of each, in this order"
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        page: "page.md",
        name: "study",
    };
    const BEGIN: &str = "<!-- study:begin -->";
    const END: &str = "<!-- study:end -->";

    #[test]
    fn results_go_between_the_markers_and_leave_the_rest_of_the_page() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let expected = format!("before\n{BEGIN}\nnew\n{END}\nafter\n");
        assert_eq!(PLACE.fill(&page, "new\n").unwrap(), expected);
        assert_eq!(PLACE.fill(&expected, "new\n").unwrap(), expected);
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
            assert!(PLACE.fill(&page, "new").unwrap_err().contains(BEGIN));
        }
    }

    #[test]
    fn numbers_are_grouped_and_one_value_has_no_deviation() {
        assert_eq!([0, 999, 1000].map(thousands), ["0", "999", "1,000"]);
        let shown = [Some(0.25), None].map(|deviation| with_deviation(1.5, deviation, 1));
        assert_eq!(shown, ["1.5 ± 0.2", "1.5"]);
    }
}
