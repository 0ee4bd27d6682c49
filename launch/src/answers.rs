//! Answers of a model, as a person reads them.

use interlingua_trainer::train::metrics::{EvalRow, Example};

use crate::style;

/// The answers of a task that are shown, each with that of an earlier measurement of the same task.
pub(crate) fn of(before: Option<&EvalRow>, row: &EvalRow) -> Vec<String> {
    let earlier = |example: &Example| {
        let same = |other: &&Example| other.prompt == example.prompt && other.language == example.language;
        let other = before?.examples.iter().find(same)?;
        Some(other.answer.as_str())
    };
    let shown = row.examples.iter();
    shown.map(|example| render(earlier(example), example)).collect()
}

/// A prompt, what the model answered before where that is known, what it answers, and what was expected.
pub(crate) fn render(before: Option<&str>, example: &Example) -> String {
    let line = |name: &str, text: &str| format!("  {} {}", style::paint(style::DIM, name), one_line(text));
    let mark = if example.answer.trim() == example.reference.trim() {
        style::GOOD
    } else {
        style::WARNING
    };
    let mut lines = vec![format!(
        "{} {}",
        style::paint(style::TITLE, &example.language),
        one_line(&example.prompt)
    )];
    lines.extend(before.map(|before| line("before  ", before)));
    let name = if before.is_some() { "after   " } else { "answer  " };
    lines.push(line(name, &style::paint(mark, &one_line(&example.answer))));
    lines.push(line("expected", &example.reference));
    lines.join("\n")
}

/// At most 160 characters, without line ends.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 160;
    let flat = text.trim().replace('\n', " ⏎ ");
    if flat.chars().count() <= LONGEST {
        flat
    } else {
        flat.chars().take(LONGEST).chain(['…']).collect()
    }
}
