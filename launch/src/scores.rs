//! What was measured, a table for each task: a row for each language, a column for each metric.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_trainer::train::measurement::{Change, Changes};
use interlingua_trainer::train::metrics::EvalRow;

use crate::table::Table;

/// The order of the metrics; others follow by name.
const FIRST: [&str; 3] = ["loss", "perplexity", "bits_per_byte"];

/// The numbers of a task, each with its interval where it has one, with their mean and the gap between languages.
pub(crate) fn table(row: &EvalRow) -> Table {
    let number = |value: &f64| format!("{value:.4}");
    let metrics = metrics(&row.by_language);
    let headers = metrics.iter().map(|metric| metric.replace('_', " "));
    let items = (!row.items.is_empty()).then(|| "items".to_owned());
    let mut table = Table::new(std::iter::once("language".to_owned()).chain(items).chain(headers));
    let count = |language: &str| row.items.get(language).map_or_else(String::new, u64::to_string);
    let mut put = |name: &str, values: &BTreeMap<String, f64>| {
        let items = (!row.items.is_empty()).then(|| count(name));
        let cells = metrics.iter().map(|metric| {
            let Some(value) = values.get(*metric) else {
                return "-".to_owned();
            };
            match row.intervals.get(name).and_then(|intervals| intervals.get(*metric)) {
                Some([low, high]) => format!("{value:.4} ({low:.3}–{high:.3})"),
                None => number(value),
            }
        });
        table.row(std::iter::once(name.to_owned()).chain(items).chain(cells));
    };
    row.by_language
        .iter()
        .for_each(|(language, values)| put(language, values));
    if row.by_language.len() > 1 {
        put("mean", &row.mean);
        put("gap", &row.gap);
    }
    table
}

/// What is about all languages of a task together, as a sentence; none where nothing is.
pub(crate) fn across(row: &EvalRow) -> Option<String> {
    let size = row.by_language.len().min(3);
    let numbers = [
        (format!("consistency (s = {size})"), row.consistency),
        ("ac3".to_owned(), row.ac3),
        ("mlc".to_owned(), row.mlc),
        ("gini".to_owned(), row.gini),
    ];
    let known = numbers
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {:.4}", value?)));
    let known: Vec<String> = known.collect();
    (!known.is_empty()).then(|| format!("across languages: {}", known.join(", ")))
}

/// How the numbers of a task changed: before, after, difference.
pub(crate) fn table_of_changes(changes: &Changes) -> Table {
    let cell = |change: &Change| {
        let Change {
            before,
            after,
            difference,
        } = change;
        format!("{before:.4} → {after:.4}  {difference:+.4}")
    };
    let (numbers, mean) = (&changes.by_language, &changes.mean);
    let metrics = metrics(numbers);
    let headers = metrics.iter().map(|metric| metric.replace('_', " "));
    let mut table = Table::new(std::iter::once("language".to_owned()).chain(headers));
    let mean = (numbers.len() > 1).then_some(("mean", mean));
    let languages = numbers.iter().map(|(language, numbers)| (language.as_str(), numbers));
    for (language, numbers) in languages.chain(mean) {
        let cells = metrics
            .iter()
            .map(|metric| numbers.get(*metric).map_or_else(|| "-".to_owned(), cell));
        table.row(std::iter::once(language.to_owned()).chain(cells));
    }
    table
}

/// All metrics of a task in the order of their columns.
fn metrics<T>(numbers: &BTreeMap<String, BTreeMap<String, T>>) -> Vec<&str> {
    let all: BTreeSet<&str> = numbers.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let known = FIRST.into_iter().filter(|metric| all.contains(metric));
    let others = all.iter().copied().filter(|metric| !FIRST.contains(metric));
    known.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use interlingua_trainer::train::measurement::changes;

    use super::*;

    fn row(loss: f64) -> EvalRow {
        let numbers = |loss: f64| serde_json::json!({ "bits_per_byte": 2.0, "loss": loss, "perplexity": loss.exp() });
        serde_json::from_value(serde_json::json!({
            "step": 0, "time": 0.0, "task": "questions", "by_language": { "en": numbers(1.0), "sw": numbers(loss) },
            "mean": numbers((1.0 + loss) / 2.0), "gap": { "loss": loss - 1.0 },
        }))
        .unwrap()
    }

    fn lines(table: &Table) -> Vec<String> {
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        plain
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn a_task_has_a_row_for_each_language_and_their_mean_and_gap() {
        assert_eq!(
            lines(&table(&row(2.0))),
            [
                "language loss perplexity bits per byte",
                "en 1.0000 2.7183 2.0000",
                "sw 2.0000 7.3891 2.0000",
                "mean 1.5000 4.4817 2.0000",
                "gap 1.0000 - -",
            ]
        );
    }

    #[test]
    fn changes_show_before_after_and_difference() {
        let changes = changes(&[row(2.0)], &[row(1.75)]);
        let lines = lines(&table_of_changes(&changes[0]));
        assert!(lines[2].starts_with("sw 2.0000 → 1.7500 -0.2500"), "{lines:?}");
        assert!(lines[3].starts_with("mean 1.5000 → 1.3750 -0.1250"), "{lines:?}");
    }
}
