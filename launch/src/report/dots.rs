//! Charts with a row for each language: a ring for what was, a dot for what is, and their intervals.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use super::axis::{Scale, TICKS};
use super::chart::{Drawing, PIXEL, Problem, drawing, range, stroke, words};
use super::colours::Colour;
use crate::exit::Failure;

/// Width in pixels of a chart of its own, and of one of several.
const WIDTHS: (i32, i32) = (560, 380);

/// Height of a row in pixels.
const ROW: i32 = 20;

/// More rows than this stand in several charts with the same axis.
const ROWS: usize = 40;

/// Letters of a name that are shown; the table has all of them.
const LETTERS: usize = 18;

/// A value, and its interval where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Value {
    /// The value.
    pub(super) at: f64,
    /// Where its interval begins and ends.
    pub(super) interval: Option<(f64, f64)>,
}

/// A row of a chart.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its name.
    pub(super) name: String,
    /// Drawn as a ring.
    pub(super) before: Option<Value>,
    /// Drawn as a dot.
    pub(super) after: Option<Value>,
}

impl Row {
    fn values(&self) -> impl Iterator<Item = f64> {
        let values = self.before.into_iter().chain(self.after);
        values.flat_map(|value| {
            let (low, high) = value.interval.unwrap_or((value.at, value.at));
            [low, value.at, high]
        })
    }

    /// What it is sorted by.
    fn order(&self) -> f64 {
        self.after.or(self.before).map_or(f64::NEG_INFINITY, |value| value.at)
    }
}

/// Draws rows, the highest value on top, in as many charts as it takes.
///
/// # Errors
/// Never, as it draws into memory.
pub(super) fn dots(name: &str, rows: &[Row]) -> Result<Vec<Drawing>, Failure> {
    let Some(values) = range(rows.iter().flat_map(Row::values), 0.05).map(Scale::Linear) else {
        return Ok(Vec::new());
    };
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by(|one, other| other.order().total_cmp(&one.order()));
    let charts = rows.len().div_ceil(ROWS);
    let width = if charts > 1 { WIDTHS.1 } else { WIDTHS.0 };
    let longest = rows.iter().map(|row| shown(&row.name).chars().count()).max();
    let names = 16 + 8 * i32::try_from(longest.unwrap_or(0)).unwrap_or(0);
    let draw_one = |rows: &[&Row]| {
        let height = 62 + ROW * i32::try_from(rows.len().max(2)).unwrap_or(0);
        drawing((width, height), |area| draw(area, (name, names), values.clone(), rows))
    };
    rows.chunks(rows.len().div_ceil(charts)).map(draw_one).collect()
}

/// An axis with a tick for each row, the first on top.
struct Rows(usize);

impl Ranged for Rows {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value + 0.5) / self.0 as f64;
        high + (f64::from(low - high) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0).map(|row| row as f64).collect()
    }

    fn range(&self) -> Range<f64> {
        -0.5..self.0 as f64 - 0.5
    }
}

fn draw(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    (name, names): (&str, i32),
    values: Scale,
    rows: &[&Row],
) -> Result<(), Problem> {
    let mut chart = ChartBuilder::on(area)
        .margin(10 * PIXEL)
        .margin_right(24 * PIXEL)
        .x_label_area_size(42 * PIXEL)
        .y_label_area_size(names * PIXEL)
        .build_cartesian_2d(values.clone(), Rows(rows.len().max(2)))?;
    let label = |row: &f64| {
        rows.get(row.round() as usize)
            .map_or_else(String::new, |row| shown(&row.name))
    };
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(stroke(Colour::Grid, 1.0, 1.0))
        .axis_style(stroke(Colour::Axis, 1.0, 1.0))
        .set_all_tick_mark_size(4 * PIXEL)
        .label_style(words())
        .axis_desc_style(words())
        .x_labels(TICKS)
        .x_label_formatter(&|value| values.tick(*value))
        .y_label_formatter(&label)
        .x_desc(name)
        .draw()?;
    for (index, row) in rows.iter().enumerate() {
        let middle = index as f64;
        let (ring, dot) = (stroke(Colour::Other, 1.75, 1.0), stroke(Colour::Line(0), 2.0, 1.0));
        // The two stand a little apart where intervals would lie on one another.
        let apart = if row.before.is_some_and(|value| value.interval.is_some()) {
            0.17
        } else {
            0.0
        };
        if let (Some(before), Some(after), true) = (row.before, row.after, apart == 0.0) {
            let way = vec![(before.at, middle), (after.at, middle)];
            chart.draw_series([PathElement::new(way, stroke(Colour::Other, 1.0, 0.8))])?;
        }
        for (value, at, style) in [
            (row.before, middle - apart, ring),
            (row.after, middle + apart, dot.filled()),
        ] {
            let Some(value) = value else { continue };
            if let Some((low, high)) = value.interval {
                chart.draw_series([PathElement::new(vec![(low, at), (high, at)], style)])?;
            }
            chart.draw_series([Circle::new((value.at, at), 4 * PIXEL, style)])?;
        }
    }
    Ok(())
}

/// A name, cut where it is long.
fn shown(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        return name.to_owned();
    }
    name.chars().take(LETTERS - 1).chain(['…']).collect()
}
