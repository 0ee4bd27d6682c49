//! Measures of representations over the layers of the model, before and after.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_trainer::train::metrics::EvalRow;

use super::figure;
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::{Colour, Languages};
use crate::report::lines::Line;
use crate::report::numbers::{difference, metric, optional, spoken, title};
use crate::report::page::{Figure, Group, Key, Table};
use crate::report::run::RunFolder;

/// What stands between the languages of a direction.
const TO: char = '→';

/// At most so many grey lines are drawn.
const GREY: usize = 60;

/// Values at each of the hidden states, by series.
type Series = BTreeMap<String, Vec<f64>>;

pub(super) fn groups(run: &RunFolder, colours: &Languages) -> Result<Vec<Group>, Failure> {
    let mut groups = Vec::new();
    for (task, rows) in &run.evaluations {
        let mut with_layers = rows.iter().filter(|row| !row.layers.is_empty());
        let Some(first) = with_layers.next() else { continue };
        let last = with_layers.next_back().unwrap_or(first);
        let before = (first.step < last.step).then_some(first);
        let mut group = Group {
            title: Some(task.clone()),
            text: vec![described(before, last)],
            ..Group::default()
        };
        for (name, after) in &last.layers {
            let before = before.and_then(|row| row.layers.get(name));
            group.figures.extend(of_metric(task, name, before, after, colours)?);
        }
        groups.push(group);
    }
    Ok(groups)
}

fn described(before: Option<&EvalRow>, last: &EvalRow) -> String {
    let when = match before {
        Some(first) => format!(
            "Dashed: before, at step {}. Solid: after, at step {}.",
            first.step, last.step
        ),
        None => format!("Measured once, at step {}.", last.step),
    };
    format!("{when} Layer 0 is the embedding, layer N the output of block N.")
}

fn of_metric(
    task: &str,
    name: &str,
    before: Option<&Series>,
    after: &Series,
    colours: &Languages,
) -> Result<Option<Figure>, Failure> {
    let pick = Pick::of(after, colours);
    let mut lines = Vec::new();
    if after.len() > 1 {
        lines.push(Line::new("mean", Colour::All, points(&mean(after))));
        lines.extend(before.map(|before| Line::new("mean", Colour::All, points(&mean(before))).dashed()));
    }
    let (mut grey, mut left_out) = (0, 0);
    for (series, values) in after {
        let colour = pick.colour(series);
        if colour == Colour::Other {
            grey += 1;
            if grey > GREY {
                left_out += 1;
                continue;
            }
        }
        lines.push(Line::new(series, colour, points(values)));
        let before = before
            .and_then(|before| before.get(series))
            .filter(|_| colour != Colour::Other);
        lines.extend(before.map(|values| Line::new(series, colour, points(values)).dashed()));
    }
    let mut text = Vec::new();
    if grey > 0 && before.is_some() {
        text.push("Grey lines are after.".to_owned());
    }
    if left_out > 0 {
        text.push(format!(
            "{left_out} more series are not drawn; they are in the mean and in the table."
        ));
    }
    let table = numbers(task, name, before, after);
    let title = title(name, task);
    let drawn = figure(
        title,
        text.join(" "),
        Axes::layers(&metric(name, &[])),
        &lines,
        &Vec::new(),
        Some(table),
    )?;
    Ok(drawn.map(|figure| Figure {
        keys: Key::of_lines(&lines, Some(("after", "before"))),
        ..figure
    }))
}

/// Which series have a colour: languages have theirs, and directions that of the language which the most common one is paired
/// with, one direction for each language.
struct Pick<'a> {
    colours: &'a Languages,
    hub: Option<String>,
    names: BTreeSet<String>,
}

impl<'a> Pick<'a> {
    fn of(series: &Series, colours: &'a Languages) -> Self {
        let mut counts = BTreeMap::<&str, usize>::new();
        for language in series
            .keys()
            .filter_map(|name| name.split_once(TO))
            .flat_map(|(from, to)| [from, to])
        {
            *counts.entry(language).or_default() += 1;
        }
        let hub = counts
            .into_iter()
            .max_by_key(|(language, count)| (*count, *language == "en"));
        Self {
            colours,
            hub: hub.map(|(language, _)| language.to_owned()),
            names: series.keys().cloned().collect(),
        }
    }

    fn colour(&self, series: &str) -> Colour {
        let (Some((from, to)), Some(hub)) = (series.split_once(TO), &self.hub) else {
            return self.colours.colour(series);
        };
        if from == hub {
            self.colours.colour(to)
        } else if to == hub && !self.names.contains(&format!("{hub}{TO}{from}")) {
            self.colours.colour(from)
        } else {
            Colour::Other
        }
    }
}

fn points(values: &[f64]) -> Vec<(f64, f64)> {
    values
        .iter()
        .enumerate()
        .map(|(layer, value)| (layer as f64, *value))
        .collect()
}

/// The mean over series at each layer.
fn mean(series: &Series) -> Vec<f64> {
    let layers = series.values().map(Vec::len).max().unwrap_or(0);
    let at = |layer: usize| {
        let values: Vec<f64> = series
            .values()
            .filter_map(|values| values.get(layer).copied())
            .filter(|value| value.is_finite())
            .collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    (0..layers).map(at).collect()
}

/// A row for the mean and each series, a column for each layer, after; with the difference of the means over layers.
fn numbers(task: &str, name: &str, before: Option<&Series>, after: &Series) -> Table {
    let overall =
        |values: &[f64]| Some(values.iter().sum::<f64>() / values.len() as f64).filter(|mean| mean.is_finite());
    let means = (mean(after), before.map(mean));
    let layers = means.0.len();
    let mut head = vec![
        "series".to_owned(),
        "over layers, before".to_owned(),
        "after".to_owned(),
        "difference".to_owned(),
    ];
    head.extend((0..layers).map(|layer| format!("layer {layer}")));
    let mut table = Table::new(format!("{} of {task}, after", spoken(name)), head);
    let mut row = |name: &str, before: Option<&Vec<f64>>, after: &[f64]| {
        let (before, mean) = (before.and_then(|values| overall(values)), overall(after));
        let mut cells = vec![
            name.to_owned(),
            optional(before),
            optional(mean),
            difference(before, mean),
        ];
        cells.extend((0..layers).map(|layer| optional(after.get(layer).copied())));
        table.rows.push(cells);
    };
    if after.len() > 1 {
        row("mean of all", means.1.as_ref(), &means.0);
    }
    for (series, values) in after {
        row(series, before.and_then(|before| before.get(series)), values);
    }
    table
}
