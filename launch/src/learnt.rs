//! What each language has learnt: the table at the end of a run, out of its summary.

use std::collections::BTreeSet;

use interlingua_trainer::train::metrics::EvalRow;
use interlingua_trainer::train::summary::Summary;

use crate::table::{self, Table};

/// The metrics that are shown; the others follow from these and stand in `metrics.jsonl`.
pub(crate) const METRICS: [&str; 8] = [
    "loss",
    "exact_match",
    "accuracy",
    "margin",
    "f1",
    "intent_accuracy",
    "chrf",
    "retrieval",
];

/// A row for each language: samples and supervised tokens trained on, the share asked and reached where the recipe asks for
/// one, rewards of the last step's preferences, and each metric before and after.
pub(crate) fn table(summary: &Summary) -> Table {
    let columns = columns(summary);
    let mut headers = vec!["language".to_owned(), "samples".to_owned(), "tokens".to_owned()];
    let shares = &summary.shares.languages;
    let mixed = shares.values().any(|share| share.asked.is_some());
    if mixed {
        headers.extend(["asked", "reached"].map(str::to_owned));
    }
    let rewarded = summary.by_language.values().any(|trained| trained.rewards.is_some());
    if rewarded {
        headers.push("reward margin".to_owned());
    }
    headers.extend(columns.iter().map(|(task, metric)| {
        let alone = columns.iter().filter(|(_, other)| other == metric).count() == 1;
        let metric = metric.replace('_', " ");
        if alone { metric } else { format!("{task} {metric}") }
    }));
    let mut table = Table::new(headers);
    for language in languages(summary) {
        let trained = summary.by_language.get(language).copied().unwrap_or_default();
        let mut counts = vec![
            language.to_owned(),
            table::count(trained.samples),
            table::count(trained.tokens),
        ];
        if mixed {
            let share = shares.get(language);
            counts.push(table::percent(share.and_then(|share| share.asked)));
            counts.push(table::percent(share.map(|share| share.reached)));
        }
        if rewarded {
            counts.push(table::decimal(trained.rewards.and_then(|rewards| rewards.margin)));
        }
        let changes = columns.iter().map(|(task, metric)| {
            let evaluation = &summary.evaluations[*task];
            let number = |row: &EvalRow| {
                row.by_language
                    .get(language)
                    .and_then(|numbers| numbers.get(*metric))
                    .copied()
            };
            change(
                number(&evaluation.first),
                number(&evaluation.last),
                evaluation.first.step == evaluation.last.step,
            )
        });
        table.row(counts.into_iter().chain(changes));
    }
    if !columns.is_empty() {
        let mut blank = vec!["mean".to_owned(), String::new(), String::new()];
        blank.extend(vec![String::new(); 2 * usize::from(mixed) + usize::from(rewarded)]);
        let means = columns.iter().map(|(task, metric)| {
            let evaluation = &summary.evaluations[*task];
            let number = |row: &EvalRow| row.mean.get(*metric).copied();
            change(
                number(&evaluation.first),
                number(&evaluation.last),
                evaluation.first.step == evaluation.last.step,
            )
        });
        table.row(blank.into_iter().chain(means));
    }
    table
}

/// `2.310 → 0.840`, or one number when it was measured once.
fn change(first: Option<f64>, last: Option<f64>, once: bool) -> String {
    if once || (first.is_none() && last.is_none()) {
        return table::decimal(last);
    }
    format!("{} → {}", table::decimal(first), table::decimal(last))
}

/// All that were trained on or measured.
fn languages(summary: &Summary) -> BTreeSet<&str> {
    let measured = summary
        .evaluations
        .values()
        .flat_map(|evaluation| evaluation.last.by_language.keys());
    summary.by_language.keys().chain(measured).map(String::as_str).collect()
}

/// The (task, metric) pairs that were measured.
fn columns(summary: &Summary) -> Vec<(&str, &'static str)> {
    let has = |row: &EvalRow, metric: &str| row.by_language.values().any(|numbers| numbers.contains_key(metric));
    let pairs = METRICS.iter().flat_map(|metric| {
        let tasks = summary
            .evaluations
            .iter()
            .filter(|(_, evaluation)| has(&evaluation.last, metric));
        tasks.map(|(task, _)| (task.as_str(), *metric))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_has_its_numbers_before_and_after() {
        let row = |step: u64, loss: f64| {
            serde_json::json!({
                "step": step, "time": 1.0, "task": "held-out", "by_language": { "sw": { "loss": loss, "perplexity": 3.0 } },
                "mean": { "loss": loss }, "gap": {},
            })
        };
        let summary: Summary = serde_json::from_value(serde_json::json!({
            "finished": true, "stopped_early": false, "steps": 3, "tokens": 40, "tokens_total": 50, "tokens_per_second": 1.0,
            "peak_memory_bytes": 1, "wall_seconds": 1.0, "loss": 0.5,
            "by_language": { "ar": { "loss": 0.4, "tokens": 1500, "samples": 7 } },
            "evaluations": { "held-out": { "first": row(0, 2.31), "last": row(3, 0.84) } },
        }))
        .unwrap();
        let plain = anstream::adapter::strip_str(&table(&summary).render()).to_string();
        let lines: Vec<&str> = plain.lines().map(str::trim_end).collect();
        assert!(lines[0].ends_with("loss") && !plain.contains("perplexity"), "{plain}");
        assert!(
            lines[1].starts_with("ar") && lines[1].contains("1,500") && lines[1].ends_with("  -"),
            "{plain}"
        );
        assert!(
            lines[2].starts_with("sw") && lines[2].ends_with("2.310 → 0.840"),
            "{plain}"
        );
        assert!(lines[3].starts_with("mean"), "{plain}");
    }
}
