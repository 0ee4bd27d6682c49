//! Scores by language out of additive statistics, with intervals; means and gaps across languages.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_metrics::bootstrap::{RESAMPLES, interval};
use interlingua_metrics::statistics::{MeanOver, Metric, across, score};

use super::columns::{Column, columns};
use super::work::Answer;
use crate::train::metrics::EvalRow;
use interlingua_recipes::Task;

/// Metrics of which less is better.
const LESS_IS_BETTER: [&str; 5] = ["loss", "perplexity", "bits_per_byte", "fertility", "parity"];

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

/// Statistics of items, each with its answer.
pub(super) type Statistics<'a> = Vec<(&'a Answer, Vec<f64>)>;

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
        for Column { name, items, rule } in columns(task, answers) {
            scoring.add(name, &items, &rule);
        }
        scoring
    }

    /// A metric by language, out of the statistics of its items.
    pub(super) fn add(&mut self, name: &str, items: &Statistics, metric: &(impl Metric + Clone)) {
        let mut by_language = BTreeMap::<&str, Vec<Vec<f64>>>::new();
        for (answer, statistics) in items {
            let of_language = by_language.entry(&answer.language).or_default();
            of_language.push(statistics.clone());
        }
        let width = items.first().map_or(0, |(_, statistics)| statistics.len());
        let languages: Vec<&&str> = by_language.keys().collect();
        let of_group = |group: &BTreeMap<&str, &[f64]>| {
            let statistics: Vec<Option<&[f64]>> = languages
                .iter()
                .map(|language| group.get(**language).copied())
                .collect();
            across(&statistics, width)
        };
        let groups: Vec<Vec<f64>> = shared(items).values().map(of_group).collect();
        self.put(name, &by_language, &groups, width, metric);
    }

    /// A metric by language, where all languages have the same items in the same order.
    pub(super) fn add_aligned(
        &mut self,
        name: &str,
        by_language: &BTreeMap<&str, Vec<Vec<f64>>>,
        metric: &(impl Metric + Clone),
    ) {
        let count = by_language.values().map(Vec::len).min().unwrap_or_default();
        let first = by_language.values().find_map(|statistics| statistics.first());
        let width = first.map_or(0, Vec::len);
        let of_item = |item: usize| {
            let statistics = by_language.values().map(|statistics| Some(&statistics[item][..]));
            across(&statistics.collect::<Vec<_>>(), width)
        };
        let groups: Vec<Vec<f64>> = (0..count).map(of_item).collect();
        self.put(name, by_language, &groups, width, metric);
    }

    /// `groups`: the statistics of each item in all languages, one after another, of `width` numbers each. Items that are there in
    /// several languages are drawn together.
    fn put(
        &mut self,
        name: &str,
        by_language: &BTreeMap<&str, Vec<Vec<f64>>>,
        groups: &[Vec<f64>],
        width: usize,
        metric: &(impl Metric + Clone),
    ) {
        for (language, statistics) in by_language {
            self.set(language, name, score(statistics, metric));
            self.row.items.insert((*language).to_owned(), statistics.len() as u64);
            self.put_interval(language, name, interval(statistics, metric, SEED, RESAMPLES));
        }
        if by_language.len() > 1 && !groups.is_empty() {
            let metric = MeanOver {
                metric: metric.clone(),
                width,
            };
            self.put_interval(MEAN, name, interval(groups, &metric, SEED, RESAMPLES));
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

/// The statistics of each item that says what the same item in other languages shares, by language.
fn shared<'a>(items: &'a Statistics) -> BTreeMap<&'a str, BTreeMap<&'a str, &'a [f64]>> {
    let mut shared = BTreeMap::<&str, BTreeMap<&str, &[f64]>>::new();
    for (answer, statistics) in items {
        let Some(group) = &answer.group else {
            return BTreeMap::new();
        };
        shared.entry(group).or_default().insert(&answer.language, statistics);
    }
    shared
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
