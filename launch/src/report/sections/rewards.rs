//! Implicit rewards of preferences.

use std::collections::BTreeMap;

use interlingua_trainer::train::metrics::{Rewards, TrainRow};

use super::{figure, group, table_of};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::Colour;
use crate::report::lines::Line;
use crate::report::numbers::optional;
use crate::report::page::{Figure, Group, Table};
use crate::report::run::RunFolder;
use crate::report::smoothing::{described, means, windows};

/// A number of rewards.
type Part = fn(&Rewards) -> Option<f64>;

/// The names of the numbers, and where they are.
const PARTS: [(&str, Part); 4] = [
    ("chosen", |rewards| rewards.chosen),
    ("rejected", |rewards| rewards.rejected),
    ("margin", |rewards| rewards.margin),
    ("accuracy", |rewards| rewards.accuracy),
];

pub(super) fn groups(run: &RunFolder) -> Result<Vec<Group>, Failure> {
    let line = |(index, (name, part)): (usize, (&str, Part))| {
        let windows = windows(&run.steps, |row| Some((part(row.rewards.as_ref()?)?, 1.0)));
        Line::new(name, Colour::Line(index), means(&windows))
    };
    let lines: Vec<Line> = PARTS.into_iter().enumerate().map(line).collect();
    let (rewards, accuracy) = lines.split_at(3);
    let drawn = |title: &str, unit: &str, lines: &[Line]| -> Result<Option<Figure>, Failure> {
        let table = table_of(title, "step", lines);
        figure(
            title,
            described(&run.steps, None),
            Axes::steps(unit),
            lines,
            &Vec::new(),
            Some(table),
        )
    };
    let figures = [
        drawn("Rewards of chosen and rejected answers", "reward", rewards)?,
        drawn("Accuracy of the rewards", "share of pairs ranked rightly", accuracy)?,
    ];
    Ok(group(figures, by_language(&run.steps)))
}

/// Means over the last tenth of the steps, by language, weighted by samples.
fn by_language(steps: &[TrainRow]) -> Option<Table> {
    let last = &steps[steps.len() - steps.len().div_ceil(10)..];
    let mut sums = BTreeMap::<&str, [(f64, f64); 4]>::new();
    for (language, numbers) in last.iter().flat_map(|row| &row.by_language) {
        let Some(rewards) = &numbers.rewards else { continue };
        let sums = sums.entry(language).or_default();
        for (sum, (_, part)) in sums.iter_mut().zip(PARTS) {
            if let Some(value) = part(rewards) {
                sum.0 += value * numbers.samples as f64;
                sum.1 += numbers.samples as f64;
            }
        }
    }
    let names = std::iter::once("language").chain(PARTS.map(|(name, _)| name));
    let mut table = Table::new("rewards by language, mean of the last tenth of the steps", names);
    for (language, sums) in sums {
        let means = sums.map(|(sum, weight)| optional((weight > 0.0).then(|| sum / weight)));
        table
            .rows
            .push(std::iter::once(language.to_owned()).chain(means).collect());
    }
    (!table.rows.is_empty()).then_some(table)
}
