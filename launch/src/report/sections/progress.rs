//! Metrics of tasks over steps, but for losses, which have their own section.

use super::{figure, group, metrics, over_steps, table_of, times};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::Languages;
use crate::report::numbers::{better, metric, title};
use crate::report::page::Group;
use crate::report::run::RunFolder;

/// What is drawn as loss.
const OF_THE_LOSS: [&str; 2] = ["loss", "perplexity"];

pub(super) fn groups(run: &RunFolder, colours: &Languages) -> Result<Vec<Group>, Failure> {
    let mut figures = Vec::new();
    // Two evaluations are the section before this one.
    for (task, rows) in run.evaluations.iter().filter(|(_, rows)| times(rows) > 2) {
        for name in metrics(rows).into_iter().filter(|name| !OF_THE_LOSS.contains(name)) {
            let lines = over_steps(rows, name, colours);
            let title = title(name, task);
            let table = table_of(&title, "step", &lines);
            let drawn = figure(
                title,
                better(name),
                Axes::steps(&metric(name, &metrics(rows))),
                &lines,
                &Vec::new(),
                Some(table),
            )?;
            figures.push(drawn);
        }
    }
    Ok(group(figures, None))
}
