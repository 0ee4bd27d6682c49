//! Numbers and the names of metrics, for people.

use crate::table;

/// A number with as many decimals as its size asks for.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "–".to_owned()
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else if size >= 1e-3 || size == 0.0 {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

/// A number that may not be there.
pub(super) fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number)
}

/// A difference, with its sign.
pub(super) fn difference(before: Option<f64>, after: Option<f64>) -> String {
    match before.zip(after) {
        Some((before, after)) if (after - before).is_finite() => {
            let text = number(after - before);
            if text.starts_with('-') {
                text
            } else {
                format!("+{text}")
            }
        }
        _ => "–".to_owned(),
    }
}

/// The label at a tick of an axis, with the decimals that all of its ticks need.
pub(super) fn tick(value: f64, ticks: &[f64]) -> String {
    let largest = ticks.iter().fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
    if largest > 0.0 && largest < 1e-3 {
        return format!("{value:.1e}");
    }
    let fits = |decimals: &i32| {
        let whole = |tick: &f64| {
            let scaled = tick * 10f64.powi(*decimals);
            (scaled - scaled.round()).abs() < 1e-6
        };
        ticks.iter().all(whole)
    };
    let decimals = (0..9).find(fits).unwrap_or(9) as usize;
    if decimals == 0 && value >= 10_000.0 {
        return table::count(value.round() as u64);
    }
    let text = format!("{value:.decimals$}");
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

/// A place on an axis of steps or layers, which windows may leave between whole numbers.
pub(super) fn place(value: f64) -> String {
    if value.fract() == 0.0 {
        table::count(value as u64)
    } else {
        format!("{value:.1}")
    }
}

/// The label at a tick of an axis of whole numbers; none between them.
pub(super) fn whole_tick(value: f64) -> String {
    if value < 0.0 || (value - value.round()).abs() > 1e-6 {
        return String::new();
    }
    table::count(value.round() as u64)
}

/// A metric with its unit, for an axis. `measured`: all metrics of its task. A loss without perplexity is one of preferences, and
/// not per token.
pub(super) fn metric(name: &str, measured: &[&str]) -> String {
    let unit = match name {
        "loss" if measured.contains(&"perplexity") => "nats per token",
        "chrf" | "bleu" => "0 to 100",
        "fertility" => "tokens per word",
        _ if is_share(name) => "0 to 1",
        _ => return spoken(name),
    };
    format!("{} ({unit})", spoken(name))
}

/// Whether a metric is a share from 0 to 1.
fn is_share(name: &str) -> bool {
    matches!(name, "accuracy" | "exact_match" | "fidelity" | "mlc")
        || name.contains("f1")
        || name.ends_with("_accuracy")
        || name.starts_with("retrieval")
}

/// A metric as people write it.
pub(super) fn spoken(name: &str) -> String {
    match name {
        "chrf" => "chrF++".to_owned(),
        "bleu" => "BLEU".to_owned(),
        "cka" => "linear CKA".to_owned(),
        "mlc" => "MLC".to_owned(),
        _ => name.replace('_', " "),
    }
}

/// The title of a chart of a task's metric.
pub(super) fn title(metric: &str, task: &str) -> String {
    let name = spoken(metric);
    let mut letters = name.chars();
    // chrF++ keeps its small letter.
    let first = letters.next().filter(|_| metric != "chrf");
    first.map_or_else(
        || format!("{name}, {task}"),
        |first| format!("{}{}, {task}", first.to_uppercase(), letters.as_str()),
    )
}

/// What is better, where that is so for every task.
pub(super) fn better(name: &str) -> &'static str {
    match name {
        "loss" | "perplexity" | "bits_per_byte" => "Lower is better.",
        "chrf" | "bleu" => "Higher is better.",
        _ if is_share(name) => "Higher is better.",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_decimals_that_they_need() {
        assert_eq!(number(0.25), "0.2500");
        assert_eq!(number(1234.56), "1234.6");
        assert_eq!(number(0.000_02), "2.00e-5");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(difference(Some(1.0), Some(1.5)), "+0.5000");
        assert_eq!(difference(Some(1.5), Some(1.0)), "-0.5000");
        assert_eq!(difference(None, Some(1.0)), "–");
    }

    #[test]
    fn ticks_differ_from_one_another() {
        assert_eq!(tick(0.2, &[0.0, 0.2, 0.4]), "0.2");
        assert_eq!(tick(0.2, &[0.15, 0.2, 0.25]), "0.20");
        assert_eq!(tick(0.000_15, &[0.000_1, 0.000_15]), "1.5e-4");
        assert_eq!(tick(20_000.0, &[0.0, 20_000.0]), "20,000");
        assert_eq!(tick(-0.0, &[-1.0, 0.0, 1.0]), "0");
        assert_eq!(whole_tick(2.5), "");
        assert_eq!(whole_tick(1500.0), "1,500");
    }
}
