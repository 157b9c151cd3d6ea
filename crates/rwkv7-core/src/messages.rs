//! Texts from files in messages: short, and without control characters, which a terminal would obey. And the texts of panics.

use std::any::Any;

/// Number of lines of a list that a message shows.
const LINES: usize = 20;

/// Number of characters of a text that a message shows.
const CHARACTERS: usize = 800;

/// The first lines, and how many more there are.
pub(crate) fn listed(lines: &[String]) -> String {
    let mut shown: Vec<String> = lines.iter().take(LINES).map(|line| brief(line)).collect();
    if lines.len() > LINES {
        shown.push(format!("and {} more", lines.len() - LINES));
    }
    shown.join("\n  ")
}

/// A text that may come from a file: its first characters, and no control characters.
pub(crate) fn brief(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let mut short: String = text.chars().take(CHARACTERS).map(plain).collect();
    if text.chars().nth(CHARACTERS).is_some() {
        short.push('…');
    }
    short
}

/// What a panic says, if it says something.
pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_and_texts_are_cut() {
        let lines: Vec<String> = (0..100_000).map(|i| format!("line {i}")).collect();
        let shown = listed(&lines);
        assert_eq!(shown.lines().count(), 21);
        assert!(shown.ends_with("line 19\n  and 99980 more"), "{shown}");
        assert_eq!(brief(&"ä".repeat(100_000)).chars().count(), CHARACTERS + 1);
        assert_eq!(brief("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
