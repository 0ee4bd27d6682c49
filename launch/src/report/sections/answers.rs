//! A few answers before and after, of runs that keep them (`eval.save_answers`).

use std::collections::BTreeMap;

use interlingua_trainer::evaluate::{Answer, Answers, Said, answers_of_step};
use serde_json::Value;

use crate::exit::Failure;
use crate::report::page::{Group, Table};
use crate::report::run::RunFolder;

/// The first answer of so many languages is shown.
const SHOWN: usize = 12;

/// Letters of a text that are shown.
const LETTERS: usize = 300;

pub(super) fn groups(run: &RunFolder) -> Result<Vec<Group>, Failure> {
    let mut groups = Vec::new();
    for (task, rows) in &run.evaluations {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            continue;
        };
        let after = texts(run, task, last.step);
        let before = if first.step < last.step {
            texts(run, task, first.step)
        } else {
            BTreeMap::new()
        };
        if !after.is_empty() {
            groups.push(Group {
                title: Some(task.clone()),
                table: Some(table(task, &before, &after)),
                ..Group::default()
            });
        }
    }
    Ok(groups)
}

/// What a model wrote to an item.
struct Text {
    language: String,
    prompt: String,
    output: String,
    expected: Value,
}

/// The answers of a task at a step that are texts, by item; none where none are kept.
fn texts(run: &RunFolder, task: &str, step: u64) -> BTreeMap<usize, Text> {
    let kept = Answers {
        folder: answers_of_step(&run.folder, step),
        model: None,
    };
    let lines = std::fs::read_to_string(kept.file(task)).unwrap_or_default();
    // The first line says what the answers are of; a last one may have been cut.
    let answers = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Answer>(line).ok());
    let texts = answers.filter_map(|answer| match answer.said {
        Said::Text {
            prompt,
            output,
            expected,
        } => Some((
            answer.number,
            Text {
                language: answer.language,
                prompt,
                output,
                expected,
            },
        )),
        _ => None,
    });
    texts.collect()
}

fn table(task: &str, before: &BTreeMap<usize, Text>, after: &BTreeMap<usize, Text>) -> Table {
    let mut head = vec!["language", "prompt", "before", "after", "expected"];
    if before.is_empty() {
        head.remove(2);
    }
    let mut table = Table::new(format!("the first answer of each language, {task}"), head);
    table.prose = true;
    let mut firsts = BTreeMap::new();
    for (number, text) in after {
        firsts.entry(&text.language).or_insert((number, text));
    }
    for (language, (number, text)) in firsts.into_iter().take(SHOWN) {
        let mut row = vec![language.clone(), shown(&text.prompt)];
        if !before.is_empty() {
            row.push(
                before
                    .get(number)
                    .map_or_else(|| "–".to_owned(), |text| shown(&text.output)),
            );
        }
        let expected = text
            .expected
            .as_str()
            .map_or_else(|| text.expected.to_string(), str::to_owned);
        row.extend([shown(&text.output), shown(&expected)]);
        table.rows.push(row);
    }
    table
}

/// A text, cut where it is long.
fn shown(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= LETTERS {
        return text.to_owned();
    }
    text.chars().take(LETTERS - 1).chain(['…']).collect()
}
