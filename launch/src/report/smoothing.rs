//! Steps of a run in windows. A window's mean is all the smoothing there is: it hides noise, follows nothing late, and needs no
//! constant; how wide it is stands below each chart.

use interlingua_trainer::train::metrics::TrainRow;

use super::numbers::spoken;
use crate::table;

/// A chart shows at most so many windows.
const MOST: usize = 50;

/// Consecutive steps as one point.
#[derive(Debug, PartialEq)]
pub(super) struct Window {
    /// The mean step, also of those without a value.
    pub(super) step: f64,
    /// The weighted mean of their values.
    pub(super) mean: f64,
    /// Their lowest value.
    pub(super) low: f64,
    /// Their highest value.
    pub(super) high: f64,
}

/// Steps in a window.
pub(super) fn size(steps: &[TrainRow]) -> usize {
    steps.len().div_ceil(MOST).max(1)
}

/// The windows of a run for what has a value and a weight in some of its steps. Values that are no numbers are passed over.
pub(super) fn windows(steps: &[TrainRow], value: impl Fn(&TrainRow) -> Option<(f64, f64)>) -> Vec<Window> {
    let windows = steps.chunks(size(steps)).filter_map(|rows| {
        let values = rows.iter().filter_map(&value);
        let values: Vec<_> = values
            .filter(|(value, weight)| value.is_finite() && *weight > 0.0)
            .collect();
        let weight: f64 = values.iter().map(|(_, weight)| weight).sum();
        (!values.is_empty()).then(|| Window {
            step: rows.iter().map(|row| row.step as f64).sum::<f64>() / rows.len() as f64,
            mean: values.iter().map(|(value, weight)| value * weight).sum::<f64>() / weight,
            low: values.iter().map(|(value, _)| *value).fold(f64::INFINITY, f64::min),
            high: values.iter().map(|(value, _)| *value).fold(f64::NEG_INFINITY, f64::max),
        })
    });
    windows.collect()
}

/// The means of windows as points.
pub(super) fn means(windows: &[Window]) -> Vec<(f64, f64)> {
    windows.iter().map(|window| (window.step, window.mean)).collect()
}

/// A sentence that says what a point is. `weighted`: what steps are weighted by.
pub(super) fn described(steps: &[TrainRow], weighted: Option<&str>) -> String {
    let size = size(steps);
    if size == 1 {
        return "Each point is one step; nothing is smoothed.".to_owned();
    }
    let weighted = weighted.map_or_else(String::new, |by| format!(", weighted by {}", spoken(by)));
    format!(
        "Each point is the mean of {} steps that follow one another{weighted}; nothing else is smoothed.",
        table::count(size as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(count: u64) -> Vec<TrainRow> {
        let row = |step: u64| {
            serde_json::json!({
                "step": step, "time": 0.0, "loss": step as f64, "losses": {}, "tokens": 1, "tokens_total": 1, "grad_norm": null,
                "learning_rate": 0.0, "tokens_per_second": 1.0, "step_seconds": 1.0, "memory_bytes": 0, "by_language": {},
            })
        };
        (1..=count)
            .map(|step| serde_json::from_value(row(step)).unwrap())
            .collect()
    }

    #[test]
    fn a_window_has_the_weighted_mean_of_its_steps_and_their_extremes() {
        let steps = steps(100);
        let windows = windows(&steps, |row| Some((row.loss, if row.step == 2 { 3.0 } else { 1.0 })));
        assert_eq!(windows.len(), 50);
        assert_eq!(
            windows[0],
            Window {
                step: 1.5,
                mean: (1.0 + 3.0 * 2.0) / 4.0,
                low: 1.0,
                high: 2.0
            }
        );
        assert!(described(&steps, Some("tokens")).contains("mean of 2 steps"));
    }

    #[test]
    fn a_short_run_is_drawn_step_by_step_and_gaps_stay_gaps() {
        let steps = steps(3);
        let windows = windows(&steps, |row| match row.step {
            1 => Some((f64::NAN, 1.0)),
            2 => None,
            _ => Some((row.loss, 1.0)),
        });
        assert_eq!(means(&windows), [(3.0, 3.0)]);
        assert!(described(&steps, None).contains("nothing is smoothed"));
    }
}
