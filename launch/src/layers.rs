//! What a task measured at each layer: a row for each layer, a column for each metric, the best layer marked.

use interlingua_trainer::train::metrics::EvalRow;

use crate::table::Table;

/// The series that stands for all languages.
const MEAN: &str = "mean";

/// Metrics of which less is better.
const LESS_IS_BETTER: [&str; 1] = ["lens_loss"];

/// A task's means over languages at each layer, with an empty line before them; no text where nothing was measured by layer.
pub(crate) fn text(row: &EvalRow) -> String {
    let columns: Vec<(&str, &[f64])> = row
        .layers
        .iter()
        .filter_map(|(metric, series)| Some((metric.as_str(), &series.get(MEAN)?[..])))
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let names = columns.iter().map(|(metric, _)| metric.replace('_', " "));
    let mut table = Table::new(std::iter::once("layer".to_owned()).chain(names));
    let layers = columns.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
    for layer in 0..layers {
        let cells = columns.iter().map(|(metric, values)| cell(metric, values, layer));
        table.row(std::iter::once(layer.to_string()).chain(cells));
    }
    format!("\n{}\n* best layer of the mean over languages\n", table.render())
}

fn cell(metric: &str, values: &[f64], layer: usize) -> String {
    let better = |one: f64, other: f64| {
        if LESS_IS_BETTER.contains(&metric) {
            one < other
        } else {
            one > other
        }
    };
    match values.get(layer).copied().filter(|value| value.is_finite()) {
        None => "-".to_owned(),
        Some(own) => {
            let is_best = !values.iter().any(|other| better(*other, own));
            format!("{own:.4}{}", if is_best { "*" } else { "" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_layer_of_each_metric_is_marked() {
        let layers = serde_json::json!({
            "cka": { "mean": [null, 0.5, 0.25], "sw": [null, 0.5, 0.25] },
            "lens_loss": { "mean": [3.0, 2.0, 1.5], "sw": [3.0, 2.0, 1.0], "en": [3.0, 2.0, 2.0] },
        });
        let row = serde_json::json!({
            "step": 0, "time": 0.0, "task": "layers", "by_language": {}, "mean": {}, "gap": {}, "layers": layers,
        });
        let shown = text(&serde_json::from_value(row).unwrap());
        let plain = anstream::adapter::strip_str(&shown).to_string();
        let lines: Vec<Vec<&str>> = plain.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["layer", "cka", "lens", "loss"]);
        assert_eq!(lines[2], ["0", "-", "3.0000"]);
        assert_eq!(lines[3], ["1", "0.5000*", "2.0000"]);
        assert_eq!(lines[4], ["2", "0.2500", "1.5000*"]);
        assert_eq!(text(&EvalRow::default()), "");
    }
}
