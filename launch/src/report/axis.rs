//! The axes of charts of lines.

use std::ops::Range;

use plotters::coord::ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;

use super::chart::range;
use super::numbers::tick;

/// Ticks of an axis, about.
pub(super) const TICKS: usize = 6;

/// A logarithmic axis has values that differ by this factor or more; others would show a corner and a flat line.
const FACTOR: f64 = 6.0;

/// What a chart has on its axes.
#[derive(Clone, Copy)]
pub(super) struct Axes<'a> {
    /// The name of x, whose values are whole numbers.
    pub(super) x: &'a str,
    /// The name and unit of y.
    pub(super) y: &'a str,
    /// Whether y becomes logarithmic where its values are far apart.
    pub(super) may_be_log: bool,
}

impl<'a> Axes<'a> {
    /// Steps, and something.
    pub(super) fn steps(y: &'a str) -> Self {
        Self {
            x: "step",
            y,
            may_be_log: false,
        }
    }

    /// Hidden states, and something.
    pub(super) fn layers(y: &'a str) -> Self {
        Self {
            x: "layer (hidden state)",
            ..Self::steps(y)
        }
    }

    /// The same, logarithmic where values are far apart.
    pub(super) fn or_log(self) -> Self {
        Self {
            may_be_log: true,
            ..self
        }
    }
}

/// The y axis of a chart.
#[derive(Clone)]
pub(super) enum Scale {
    /// Differences are distances.
    Linear(Range<f64>),
    /// Factors are distances.
    Log(Range<f64>),
}

impl Scale {
    /// An axis for these values with some room around them; none without values.
    pub(super) fn of(values: &[f64], may_be_log: bool) -> Option<Self> {
        let plain = range(values.iter().copied(), 0.0)?;
        if may_be_log && plain.start > 0.0 && plain.end >= FACTOR * plain.start {
            let logs = range(values.iter().map(|value| value.ln()), 0.06)?;
            return Some(Self::Log(logs.start.exp()..logs.end.exp()));
        }
        range(values.iter().copied(), 0.06).map(Self::Linear)
    }

    /// The label at a tick.
    pub(super) fn tick(&self, value: f64) -> String {
        match self {
            Self::Linear(_) => tick(value, &self.key_points(BoldPoints(TICKS))),
            Self::Log(_) => tick(value, &[value]),
        }
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        match self {
            Self::Linear(range) => RangedCoordf64::from(range.clone()).map(value, limit),
            Self::Log(range) => RangedCoordf64::from(range.start.ln()..range.end.ln()).map(&value.ln(), limit),
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match self {
            Self::Linear(range) => RangedCoordf64::from(range.clone()).key_points(hint),
            Self::Log(range) => {
                let (low, high) = (range.start.log10().floor() as i32, range.end.log10().ceil() as i32);
                let decades = high - low;
                // Many decades have one tick each.
                let steps: &[f64] = if decades > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let ticks = (low..=high).flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
                ticks.filter(|tick| range.contains(tick)).collect()
            }
        }
    }

    fn range(&self) -> Range<f64> {
        match self {
            Self::Linear(range) | Self::Log(range) => range.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_far_apart_get_a_logarithmic_axis_where_that_is_asked_for() {
        let values = [0.5, 8.0];
        assert!(matches!(Scale::of(&values, false), Some(Scale::Linear(_))));
        let scale = Scale::of(&values, true).unwrap();
        assert!(matches!(scale, Scale::Log(_)));
        assert_eq!(scale.key_points(BoldPoints(TICKS)), [0.5, 1.0, 2.0, 5.0]);
        let labels: Vec<String> = [0.5, 0.05, 1.0, 20.0].iter().map(|tick| scale.tick(*tick)).collect();
        assert_eq!(labels, ["0.5", "0.05", "1", "20"]);
        // A factor is as far everywhere.
        let at = |value: f64| scale.map(&value, (0, 10_000));
        assert!(((at(1.0) - at(0.5)) - (at(8.0) - at(4.0))).abs() <= 1);
        assert!(matches!(Scale::of(&[-1.0, 8.0], true), Some(Scale::Linear(_))));
        assert!(Scale::of(&[f64::NAN], true).is_none());
    }
}
