//! The sections of a run, one file each. A section without anything to show is left out.

mod answers;
mod consistency;
mod evaluation;
mod head;
mod layers;
mod loss;
mod optimizer;
mod progress;
mod rewards;
mod shares;

use std::collections::BTreeSet;

use interlingua_trainer::train::metrics::EvalRow;

use super::axis::Axes;
use super::colours::{Colour, Languages};
use super::lines::{self, Band, Line};
use super::page::{Figure, Group, Key, Part, Section, Table};
use super::run::RunFolder;
use super::smoothing::Window;
use crate::exit::Failure;

/// All of a run.
///
/// # Errors
/// Never, as charts are drawn into memory.
pub(super) fn of(run: &RunFolder, languages: &Languages) -> Result<Part, Failure> {
    let sections = [
        ("loss", "Loss", loss::groups(run, languages)?),
        ("evaluation", "Evaluation before and after", evaluation::groups(run)?),
        ("progress", "Metrics over steps", progress::groups(run, languages)?),
        ("consistency", "Consistency across languages", consistency::groups(run)?),
        ("answers", "Answers", answers::groups(run)?),
        ("layers", "Alignment by layer", layers::groups(run, languages)?),
        ("rewards", "Rewards", rewards::groups(run)?),
        ("shares", "Shares of the data", shares::groups(run, languages)?),
        ("optimizer", "Learning rate and gradients", optimizer::groups(run)?),
    ];
    let sections = sections.into_iter().filter(|(.., groups)| !groups.is_empty());
    Ok(Part {
        stage: run.stage.clone(),
        facts: head::facts(run),
        colours: languages.note(),
        events: head::events(run),
        sections: sections
            .map(|(id, title, groups)| Section { id, title, groups })
            .collect(),
    })
}

/// A chart of lines, with its key; none where no line has a point.
fn figure(
    title: impl Into<String>,
    text: impl Into<String>,
    axes: Axes,
    drawn: &[Line],
    band: &Band,
    table: Option<Table>,
) -> Result<Option<Figure>, Failure> {
    let Some(drawing) = lines::lines(axes, drawn, band)? else {
        return Ok(None);
    };
    let drawn: Vec<Line> = drawn.iter().filter(|line| !line.points.is_empty()).cloned().collect();
    let mut keys = Key::of_lines(&drawn, None);
    if !band.is_empty() {
        keys.push(Key::new(Colour::Other, "band", "lowest and highest step"));
    }
    Ok(Some(Figure {
        title: title.into(),
        text: text.into(),
        drawings: vec![drawing],
        keys,
        table,
    }))
}

/// A group of charts, where there are any.
fn group(figures: impl IntoIterator<Item = Option<Figure>>, table: Option<Table>) -> Vec<Group> {
    let figures: Vec<Figure> = figures.into_iter().flatten().collect();
    if figures.is_empty() && table.is_none() {
        return Vec::new();
    }
    vec![Group {
        figures,
        table,
        ..Group::default()
    }]
}

/// The lowest and highest steps of windows, where windows hold more than one.
fn band(windows: &[Window]) -> Band {
    let wide = windows.iter().any(|window| window.low < window.high);
    let ends = windows.iter().map(|window| (window.step, window.low, window.high));
    if wide { ends.collect() } else { Vec::new() }
}

/// All metrics of a task's evaluations, in alphabetical order.
fn metrics(rows: &[EvalRow]) -> Vec<&str> {
    let languages = rows.iter().flat_map(|row| row.by_language.values());
    let metrics: BTreeSet<&str> = languages
        .flat_map(|numbers| numbers.keys())
        .map(String::as_str)
        .collect();
    metrics.into_iter().collect()
}

/// All languages of a task's evaluations, in alphabetical order.
fn languages(rows: &[EvalRow]) -> Vec<&str> {
    let languages = rows.iter().flat_map(|row| row.by_language.keys());
    let languages: BTreeSet<&str> = languages.map(String::as_str).collect();
    languages.into_iter().collect()
}

/// A metric of one language in an evaluation.
fn value(row: &EvalRow, language: &str, metric: &str) -> Option<f64> {
    row.by_language.get(language)?.get(metric).copied()
}

/// How often a task was measured: the number of different steps.
fn times(rows: &[EvalRow]) -> usize {
    rows.iter().map(|row| row.step).collect::<BTreeSet<_>>().len()
}

/// A metric of a task over steps: a line for each language, and one for their mean.
fn over_steps(rows: &[EvalRow], metric: &str, colours: &Languages) -> Vec<Line> {
    let names = languages(rows);
    let points = |value: &dyn Fn(&EvalRow) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter()
            .filter_map(|row| Some((row.step as f64, value(row)?)))
            .collect()
    };
    let lines = names.iter().map(|language| {
        let points = points(&|row| value(row, language, metric));
        Line::new(*language, colours.colour(language), points)
    });
    let mean = (names.len() > 1).then(|| Line::new("mean", Colour::All, points(&|row| row.mean.get(metric).copied())));
    lines.chain(mean).collect()
}

/// Lines as a table: a row for each x, a column for each line.
fn table_of(title: impl Into<String>, x: &str, lines: &[Line]) -> Table {
    let mut table = Table::new(
        title,
        std::iter::once(x).chain(lines.iter().map(|line| line.name.as_str())),
    );
    let mut xs: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    for x in xs {
        let cells = lines.iter().map(|line| {
            let point = line.points.iter().find(|(at, _)| *at == x);
            super::numbers::optional(point.map(|(_, y)| *y))
        });
        table
            .rows
            .push(std::iter::once(super::numbers::place(x)).chain(cells).collect());
    }
    table
}
