//! Scores by language out of additive statistics, with intervals; means and gaps across languages.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_metrics::bootstrap::{RESAMPLES, interval};
use interlingua_metrics::statistics::{Metric, score};
use interlingua_recipes::Task;

use super::columns::{Column, Statistics, columns};
use super::work::Answer;
use crate::engine::routing::ExpertUse;
use crate::train::metrics::EvalRow;

/// Metrics of which less is better.
const LESS_IS_BETTER: [&str; 6] = ["loss", "perplexity", "bits_per_byte", "fertility", "parity", "empty"];

/// Seed of the resamples: the same answers have the same intervals.
pub(super) const SEED: u64 = 0;

/// What the mean over languages is called among the intervals, and the mean over all series among those by layer.
pub(super) const MEAN: &str = "mean";

/// The scores of a task.
pub(super) struct Scores {
    row: EvalRow,
}

impl Scores {
    /// As a row of `metrics.jsonl`.
    pub(super) fn row(self, task: &str, step: u64, time: f64) -> EvalRow {
        EvalRow {
            task: task.to_owned(),
            step,
            time,
            ..self.row
        }
    }
}

/// Scores that are being added up.
pub(super) struct Scoring {
    anchor: String,
    /// What is known so far; numbers that are about all languages are put in as they are.
    pub(super) row: EvalRow,
}

impl Scoring {
    pub(super) fn new(anchor: &str) -> Self {
        Self {
            anchor: anchor.to_owned(),
            row: EvalRow::default(),
        }
    }

    /// The scores of all metrics of a task's answers.
    pub(super) fn of(task: &Task, answers: &[Answer]) -> Self {
        let mut scoring = Self::new(&task.anchor);
        columns(task, answers).iter().for_each(|column| scoring.put(column));
        scoring
    }

    /// A metric by language, out of the statistics of its items.
    pub(super) fn add(&mut self, name: &'static str, items: &Statistics, metric: impl Metric + Send + 'static) {
        self.put(&Column::of_items(name, items, metric));
    }

    /// The scores of a metric, with their intervals. Items that are there in several languages are drawn together.
    pub(super) fn put(&mut self, column: &Column) {
        let Column {
            name,
            by_language,
            groups,
            rule,
            ..
        } = column;
        for (language, statistics) in by_language {
            self.set(language, name, score(statistics, rule));
            self.row.items.insert((*language).to_owned(), statistics.len() as u64);
            self.put_interval(language, name, interval(statistics, rule, SEED, RESAMPLES));
        }
        if by_language.len() > 1 && !groups.is_empty() {
            self.put_interval(MEAN, name, interval(groups, &column.mean(), SEED, RESAMPLES));
        }
    }

    /// Values at each layer by language or direction, and their mean over those that have one.
    pub(super) fn add_layers(&mut self, name: &str, mut series: BTreeMap<String, Vec<f64>>) {
        let layers = series.values().map(Vec::len).max().unwrap_or_default();
        let at = |layer: usize| {
            let values = series.values().filter_map(|values| values.get(layer).copied());
            mean(values.filter(|value| value.is_finite()))
        };
        let means: Vec<f64> = (0..layers).map(at).collect();
        if layers > 0 {
            series.insert(MEAN.to_owned(), means);
            self.row.layers.insert(name.to_owned(), series);
        }
    }

    /// How a language's tokens were routed, where they were.
    pub(super) fn set_experts(&mut self, language: &str, used: &ExpertUse) {
        if let Some(entropy) = used.entropy() {
            self.set(language, "expert_entropy", entropy);
            self.row.experts.insert(language.to_owned(), used.shares());
        }
    }

    /// A number of a language that has no statistics.
    pub(super) fn set(&mut self, language: &str, name: &str, value: f64) {
        // JSON cannot say what is not finite.
        if value.is_finite() {
            let metrics = self.row.by_language.entry(language.to_owned()).or_default();
            metrics.insert(name.to_owned(), value);
        }
    }

    pub(super) fn put_interval(&mut self, language: &str, name: &str, interval: Option<[f64; 2]>) {
        if let Some(interval) = interval.filter(|ends| ends.iter().all(|end| end.is_finite())) {
            let intervals = self.row.intervals.entry(language.to_owned()).or_default();
            intervals.insert(name.to_owned(), interval);
        }
    }

    /// Puts means and gaps over languages in.
    pub(super) fn finish(mut self) -> Scores {
        let row = &mut self.row;
        let names: BTreeSet<&String> = row.by_language.values().flat_map(BTreeMap::keys).collect();
        for name in names {
            let values: Vec<(bool, f64)> = row
                .by_language
                .iter()
                .filter_map(|(language, metrics)| Some((*language == self.anchor, *metrics.get(name)?)))
                .collect();
            row.mean
                .insert(name.clone(), mean(values.iter().map(|(_, value)| *value)));
            row.gap
                .insert(name.clone(), gap(&values, LESS_IS_BETTER.contains(&name.as_str())));
        }
        Scores { row: self.row }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// How far the others are behind the anchor; without one the largest difference.
fn gap(values: &[(bool, f64)], less_is_better: bool) -> f64 {
    let anchor = values.iter().find(|(is_anchor, _)| *is_anchor);
    match anchor {
        Some((_, anchor)) if values.len() > 1 => {
            let others = mean(
                values
                    .iter()
                    .filter(|(is_anchor, _)| !is_anchor)
                    .map(|(_, value)| *value),
            );
            if less_is_better {
                others - anchor
            } else {
                anchor - others
            }
        }
        _ => {
            let largest = values.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
            largest - values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_others_lack_to_the_anchor() {
        let with = [(true, 0.8), (false, 0.5), (false, 0.4)];
        assert!((gap(&with, false) - 0.35).abs() < 1e-12);
        assert!((gap(&with, true) + 0.35).abs() < 1e-12);
        let without = [(false, 0.5), (false, 0.4)];
        assert!((gap(&without, true) - 0.1).abs() < 1e-12);
        assert_eq!(gap(&[(true, 0.8)], false), 0.0);
    }
}
