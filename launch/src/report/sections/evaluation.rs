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

/// A metric of one language with its interval.
fn measured(row: &EvalRow, language: &str, metric: &str) -> Option<Value> {
    let interval = row.intervals.get(language).and_then(|metrics| metrics.get(metric));
    Some(Value {
        at: value(row, language, metric)?,
        interval: interval.map(|[low, high]| (*low, *high)),
    })
}

fn of_metric(
    task: &str,
    (name, names): (&str, &[&str]),
    (before, last): (Option<&EvalRow>, &EvalRow),
    languages: &[&str],
) -> Result<Figure, Failure> {
    let rows: Vec<Row> = languages
        .iter()
        .map(|language| Row {
            name: (*language).to_owned(),
            before: before.and_then(|row| measured(row, language, name)),
            after: measured(last, language, name),
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
    let mut row = |name: &str, items: String, of: &dyn Fn(&EvalRow, &str) -> Option<Value>| {
        let mut cells = vec![name.to_owned(), items];
        for name in names {
            let after = of(last, name);
            if let Some(first) = before {
                let before = of(first, name);
                cells.extend([with_interval(before), with_interval(after)]);
                cells.push(difference(before.map(|value| value.at), after.map(|value| value.at)));
            } else {
                cells.push(with_interval(after));
            }
        }
        table.rows.push(cells);
    };
    let alone = |at: Option<&f64>| {
        at.map(|at| Value {
            at: *at,
            interval: None,
        })
    };
    for language in languages {
        let items = last.items.get(*language);
        let items = items.map_or_else(|| "–".to_owned(), |count| table::count(*count));
        row(language, items, &|row, name| measured(row, language, name));
    }
    if languages.len() > 1 {
        row("mean of all", String::new(), &|row, name| alone(row.mean.get(name)));
        row("gap", String::new(), &|row, name| alone(row.gap.get(name)));
    }
    table
}

fn with_interval(value: Option<Value>) -> String {
    match value {
        Some(Value {
            at,
            interval: Some((low, high)),
        }) => format!("{} [{}, {}]", number(at), number(low), number(high)),
        _ => optional(value.map(|value| value.at)),
    }
}
