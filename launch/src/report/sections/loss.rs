//! Loss over steps: the total and its parts, and by language, while training and held out.

use std::collections::BTreeSet;

use interlingua_trainer::train::metrics::LanguageLoss;

use super::{band, figure, group, metrics, over_steps, table_of, times};
use crate::exit::Failure;
use crate::report::axis::Axes;
use crate::report::colours::{Colour, LINES, Languages};
use crate::report::lines::Line;
use crate::report::numbers::metric;
use crate::report::page::{Figure, Group};
use crate::report::run::RunFolder;
use crate::report::smoothing::{described, means, windows};

pub(super) fn groups(run: &RunFolder, colours: &Languages) -> Result<Vec<Group>, Failure> {
    let mut figures = vec![total(run)?, parts(run)?, by_language(run, colours)?];
    for (task, rows) in &run.evaluations {
        if times(rows) < 2 {
            continue;
        }
        let lines = over_steps(rows, "loss", colours);
        let title = format!("Loss by language, {task}");
        let table = table_of(&title, "step", &lines);
        let text = "Each mark is one evaluation; nothing is smoothed.";
        figures.push(figure(
            title,
            text,
            Axes::steps(&metric("loss", &metrics(rows))).or_log(),
            &lines,
            &Vec::new(),
            Some(table),
        )?);
    }
    Ok(group(figures, None))
}

fn total(run: &RunFolder) -> Result<Option<Figure>, Failure> {
    let windows = windows(&run.steps, |row| Some((row.loss, 1.0)));
    let lines = [Line::new("total loss", Colour::All, means(&windows))];
    let title = "Training loss, all languages";
    let table = table_of(title, "step", &lines);
    let text = described(&run.steps, None);
    figure(
        title,
        text,
        Axes::steps("total loss").or_log(),
        &lines,
        &band(&windows),
        Some(table),
    )
}

/// The losses that add up to the total, where there are several.
fn parts(run: &RunFolder) -> Result<Option<Figure>, Failure> {
    let names: BTreeSet<&String> = run.steps.iter().flat_map(|row| row.losses.keys()).collect();
    if names.len() < 2 {
        return Ok(None);
    }
    let lines: Vec<Line> = names
        .into_iter()
        .enumerate()
        .map(|(index, name)| {
            let windows = windows(&run.steps, |row| Some((*row.losses.get(name)?, 1.0)));
            Line::new(name, Colour::Line(index % LINES), means(&windows))
        })
        .collect();
    let title = "Parts of the training loss";
    let table = table_of(title, "step", &lines);
    let text = format!("Weights are not applied. {}", described(&run.steps, None));
    figure(
        title,
        text,
        Axes::steps("loss").or_log(),
        &lines,
        &Vec::new(),
        Some(table),
    )
}

fn by_language(run: &RunFolder, colours: &Languages) -> Result<Option<Figure>, Failure> {
    let preferences = run.steps.iter().any(|row| row.rewards.is_some());
    let weight = |loss: &LanguageLoss| if preferences { loss.samples } else { loss.tokens } as f64;
    let languages: BTreeSet<&String> = run.steps.iter().flat_map(|row| row.by_language.keys()).collect();
    let lines: Vec<Line> = languages
        .into_iter()
        .map(|language| {
            let windows = windows(&run.steps, |row| {
                let loss = row.by_language.get(language)?;
                Some((loss.loss, weight(loss)))
            });
            Line::new(language, colours.colour(language), means(&windows))
        })
        .collect();
    let (unit, by) = if preferences {
        ("loss (per pair or sample)", "samples")
    } else {
        ("loss (nats per token)", "supervised tokens")
    };
    let title = "Training loss by language";
    let table = table_of(title, "step", &lines);
    let text = described(&run.steps, Some(by));
    figure(
        title,
        text,
        Axes::steps(unit).or_log(),
        &lines,
        &Vec::new(),
        Some(table),
    )
}
