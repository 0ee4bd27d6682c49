//! Each task at its first and its last evaluation: by language and metric, with intervals and the number of items.

use interlingua_trainer::train::metrics::EvalRow;

use super::{languages, metrics, value};
use crate::exit::Failure;
use crate::report::colours::Colour;
use crate::report::dots::{Row, Value, dots};
use crate::report::numbers::{better, difference, metric, number, optional, spoken, title};
use crate::report::page::{Figure, Group, Key, Table};
use crate::report::run::RunFolder;
use crate::table;

/// What follows from another metric of the same task, and stands in the table only.
const FOLLOWS: (&str, &str) = ("perplexity", "loss");

pub(super) fn groups(run: &RunFolder) -> Result<Vec<Group>, Failure> {
    let mut groups = Vec::new();
    for (task, rows) in &run.evaluations {
        if let [first, .., last] | [first @ last] = rows.as_slice() {
            groups.push(of_task(task, first, last)?);
        }
    }
    Ok(groups)
}

fn of_task(task: &str, first: &EvalRow, last: &EvalRow) -> Result<Group, Failure> {
    let pair = [first.clone(), last.clone()];
    let before = (first.step < last.step).then_some(first);
    let names = metrics(&pair);
    let languages = languages(&pair);
    let shown = names
        .iter()
        .filter(|name| !(**name == FOLLOWS.0 && names.contains(&FOLLOWS.1)));
    let mut figures = Vec::new();
    for name in shown {
        figures.push(of_metric(task, (name, &names), (before, last), &languages)?);
    }
    let mut text = vec![match before {
        Some(first) => format!(
            "Before: step {}. After: step {}.",
            table::count(first.step),
            table::count(last.step)
        ),
        None => format!("Measured once, at step {}.", table::count(last.step)),
    }];
    let items = last.items.values();
    if let Some((least, most)) = items.clone().min().zip(items.max()) {
        let count = if least == most {
            table::count(*least)
        } else {
            format!("{} to {}", table::count(*least), table::count(*most))
        };
        text.push(format!("Items for each language: {count}."));
    }
    if !last.intervals.is_empty() {
        text.push("Intervals hold 95 % of the scores of resampled items (bootstrap).".to_owned());
    }
    if languages.len() > 1 {
        text.push(
            "The gap in the table is how far the other languages are behind the anchor on average, or without the anchor the largest \
             difference between two."
                .to_owned(),
        );
    }
    Ok(Group {
        title: Some(task.to_owned()),
        text: vec![text.join(" ")],
        figures,
        table: Some(numbers(task, &names, &languages, before, last)),
    })
}

fn interval(row: &EvalRow, language: &str, metric: &str) -> Option<(f64, f64)> {
    let [low, high] = row.intervals.get(language)?.get(metric)?;
    Some((*low, *high))
}

fn of_metric(
    task: &str,
    (name, names): (&str, &[&str]),
    (before, last): (Option<&EvalRow>, &EvalRow),
    languages: &[&str],
) -> Result<Figure, Failure> {
    let of = |row: &EvalRow, language: &str| {
        value(row, language, name).map(|at| Value {
            at,
            interval: interval(row, language, name),
        })
    };
    let rows: Vec<Row> = languages
        .iter()
        .map(|language| Row {
            name: (*language).to_owned(),
            before: before.and_then(|row| of(row, language)),
            after: of(last, language),
        })
        .collect();
    let mut keys = Vec::new();
    if before.is_some() {
        keys.push(Key::new(Colour::Other, "ring", "before"));
    }
    keys.push(Key::new(
        Colour::Line(0),
        "dot",
        if before.is_some() { "after" } else { "measured" },
    ));
    if rows
        .iter()
        .any(|row| row.after.is_some_and(|value| value.interval.is_some()))
    {
        keys.push(Key::new(Colour::Line(0), "interval", "95 % interval"));
    }
    Ok(Figure {
        title: title(name, task),
        text: format!("Sorted by the last value. {}", better(name))
            .trim_end()
            .to_owned(),
        drawings: dots(&metric(name, names), &rows)?,
        keys,
        table: None,
    })
}

/// All numbers of a task, with the mean over languages and the gap between them.
fn numbers(task: &str, names: &[&str], languages: &[&str], before: Option<&EvalRow>, last: &EvalRow) -> Table {
    let mut head = vec!["language".to_owned(), "items".to_owned()];
    for name in names.iter().map(|name| spoken(name)) {
        if before.is_some() {
            head.extend([
                format!("{name} before"),
                format!("{name} after"),
                "difference".to_owned(),
            ]);
        } else {
            head.push(name);
        }
    }
    let mut table = Table::new(format!("all numbers of {task}"), head);
    let mut row = |name: &str, items: String, of: &dyn Fn(&EvalRow, &str) -> (Option<f64>, Option<(f64, f64)>)| {
        let mut cells = vec![name.to_owned(), items];
        for name in names {
            let (after, interval) = of(last, name);
            if let Some(first) = before {
                let (before, interval) = of(first, name);
                cells.push(with_interval(before, interval));
            }
            cells.push(with_interval(after, interval));
            if let Some(first) = before {
                cells.push(difference(of(first, name).0, after));
            }
        }
        table.rows.push(cells);
    };
    for language in languages {
        let items = last
            .items
            .get(*language)
            .map_or_else(|| "–".to_owned(), |count| table::count(*count));
        row(language, items, &|row, name| {
            (value(row, language, name), interval(row, language, name))
        });
    }
    if languages.len() > 1 {
        row("mean of all", String::new(), &|row, name| {
            (row.mean.get(name).copied(), None)
        });
        row("gap", String::new(), &|row, name| (row.gap.get(name).copied(), None));
    }
    table
}

fn with_interval(value: Option<f64>, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{} [{}, {}]", optional(value), number(low), number(high)),
        None => optional(value),
    }
}
