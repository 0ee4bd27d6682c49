//! Whether a task's items get the same answer in all languages.

use interlingua_trainer::train::metrics::EvalRow;

use super::{figure, table_of, times};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::Colour;
use crate::report::lines::Line;
use crate::report::numbers::{difference, optional};
use crate::report::page::{Group, Table};
use crate::report::run::RunFolder;

/// A number of an evaluation.
type Measure = fn(&EvalRow) -> Option<f64>;

/// The names of the numbers, and where they are.
const MEASURES: [(&str, Measure); 3] = [
    ("consistency", |row| row.consistency),
    ("AC3", |row| row.ac3),
    ("MLC", |row| row.mlc),
];

pub(super) fn groups(run: &RunFolder) -> Result<Vec<Group>, Failure> {
    let mut groups = Vec::new();
    for (task, rows) in &run.evaluations {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            continue;
        };
        if MEASURES
            .iter()
            .all(|(_, measure)| rows.iter().all(|row| measure(row).is_none()))
        {
            continue;
        }
        let mut group = Group {
            title: Some(task.clone()),
            text: vec![
                "Consistency: the share of items that get the same answer in every language of a subset of languages, as a mean over \
                 subsets. AC3: the harmonic mean of that and accuracy. MLC: the share of items with the same answer in two languages, as a mean over pairs."
                    .to_owned(),
            ],
            table: Some(table(task, first, last)),
            ..Group::default()
        };
        if times(rows) > 1 {
            let lines: Vec<Line> = MEASURES
                .iter()
                .enumerate()
                .map(|(index, (name, measure))| {
                    let points = rows.iter().filter_map(|row| Some((row.step as f64, measure(row)?)));
                    Line::new(*name, Colour::Line(index), points.collect())
                })
                .collect();
            let title = format!("Consistency, {task}");
            let numbers = table_of(&title, "step", &lines);
            let text = "Each mark is one evaluation. Higher is better.";
            group.figures.extend(figure(
                title,
                text,
                Axes::steps("share of 1"),
                &lines,
                &Vec::new(),
                Some(numbers),
            )?);
        }
        groups.push(group);
    }
    Ok(groups)
}

/// First and last, also by the size of the subsets.
fn table(task: &str, first: &EvalRow, last: &EvalRow) -> Table {
    let mut table = Table::new(
        format!("consistency of {task}"),
        ["measure", "first", "last", "difference"],
    );
    let mut row = |name: String, before: Option<f64>, after: Option<f64>| {
        let cells = vec![name, optional(before), optional(after), difference(before, after)];
        if before.or(after).is_some() {
            table.rows.push(cells);
        }
    };
    for (name, measure) in MEASURES {
        row(name.to_owned(), measure(first), measure(last));
    }
    let by_size = [
        ("consistency", &first.consistency_by_size, &last.consistency_by_size),
        ("AC3", &first.ac3_by_size, &last.ac3_by_size),
    ];
    for (name, before, after) in by_size {
        for (size, value) in after {
            row(
                format!("{name} over {size} languages"),
                before.get(size).copied(),
                Some(*value),
            );
        }
    }
    table
}
