//! Charts of lines over steps or layers.

use std::ops::Range;

use plotters::prelude::*;

use super::axis::{Axes, Scale, TICKS};
use super::chart::{Drawing, PIXEL, Problem, drawing, range, stroke, words};
use super::colours::Colour;
use super::numbers::whole_tick;
use crate::exit::Failure;

/// Pixels.
const SIZE: (i32, i32) = (560, 320);

/// A line has a mark at each point where it has no more points than this.
const MARKED: usize = 16;

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// What it is of, for the key; none for lines in the background.
    pub(super) name: String,
    /// Its points from left to right. Those that are no numbers are left out.
    pub(super) points: Vec<(f64, f64)>,
    /// What it is drawn in.
    pub(super) colour: Colour,
    /// Whether it is dashed.
    pub(super) dashed: bool,
}

impl Line {
    /// A solid line.
    pub(super) fn new(name: impl Into<String>, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            colour,
            dashed: false,
        }
    }

    /// The same line, dashed.
    pub(super) fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }

    fn finite(&self) -> Vec<(f64, f64)> {
        let points = self.points.iter().copied();
        points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    }

    /// Width in pixels, and opacity.
    fn weight(&self) -> (f64, f64) {
        match self.colour {
            Colour::Other => (1.0, 0.55),
            Colour::All => (2.75, 1.0),
            _ => (2.0, 1.0),
        }
    }
}

/// The area between a lowest and a highest value: (x, low, high).
pub(super) type Band = Vec<(f64, f64, f64)>;

/// Draws lines, and a band behind them; none where nothing is to be drawn.
///
/// # Errors
/// Never, as it draws into memory.
pub(super) fn lines(axes: Axes, lines: &[Line], band: &Band) -> Result<Option<Drawing>, Failure> {
    let points: Vec<(f64, f64)> = lines.iter().flat_map(Line::finite).collect();
    let ends = band.iter().flat_map(|(_, low, high)| [*low, *high]);
    let x = range(points.iter().map(|(x, _)| *x), 0.0);
    let values: Vec<f64> = points.iter().map(|(_, y)| *y).chain(ends).collect();
    let Some((x, y)) = x.zip(Scale::of(&values, axes.may_be_log)) else {
        return Ok(None);
    };
    drawing(SIZE, |area| draw(area, axes, (x, y), lines, band)).map(Some)
}

fn draw(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    axes: Axes,
    (x, y): (Range<f64>, Scale),
    lines: &[Line],
    band: &Band,
) -> Result<(), Problem> {
    let mut chart = ChartBuilder::on(area)
        .margin(10 * PIXEL)
        .margin_right(18 * PIXEL)
        .x_label_area_size(42 * PIXEL)
        .y_label_area_size(64 * PIXEL)
        .build_cartesian_2d(x, y.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(stroke(Colour::Grid, 1.0, 1.0))
        .axis_style(stroke(Colour::Axis, 1.0, 1.0))
        .set_all_tick_mark_size(4 * PIXEL)
        .label_style(words())
        .axis_desc_style(words())
        .x_labels(TICKS)
        .y_labels(TICKS)
        .x_label_formatter(&|value| whole_tick(*value))
        .y_label_formatter(&|value| y.tick(*value))
        .x_desc(axes.x)
        .y_desc(match y {
            Scale::Linear(_) => axes.y.to_owned(),
            Scale::Log(_) => format!("{}, logarithmic", axes.y),
        })
        .draw()?;
    if !band.is_empty() {
        let low = band.iter().map(|(x, low, _)| (*x, *low));
        let high = band.iter().rev().map(|(x, _, high)| (*x, *high));
        let corners: Vec<(f64, f64)> = low.chain(high).collect();
        chart.draw_series([Polygon::new(corners, Colour::Other.rgb().mix(0.35))])?;
    }
    let mut order: Vec<&Line> = lines.iter().collect();
    order.sort_by_key(|line| match line.colour {
        Colour::Other => 0,
        Colour::All => 2,
        _ => 1,
    });
    for line in order {
        let (width, opacity) = line.weight();
        let (style, points) = (stroke(line.colour, width, opacity), line.finite());
        if line.colour != Colour::Other && points.len() <= MARKED {
            let mark = if line.dashed { style } else { style.filled() };
            let marks = points
                .iter()
                .map(|point| Circle::new(*point, (width * 1.5) as i32 * PIXEL, mark));
            chart.draw_series(marks)?;
        }
        if line.dashed {
            chart.draw_series(DashedLineSeries::new(points, 6 * PIXEL, 4 * PIXEL, style))?;
        } else {
            chart.draw_series([PathElement::new(points, style)])?;
        }
    }
    Ok(())
}
