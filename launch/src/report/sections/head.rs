//! What there is to know about a run in short, and what happened on the way.

use std::time::Duration;

use indicatif::FormattedDuration;
use interlingua_recipes::Recipe;

use crate::inspect;
use crate::report::page::Table;
use crate::report::run::RunFolder;
use crate::table;

/// More languages than this are counted only; all of them stand in the tables.
const LANGUAGES: usize = 24;

/// Name and value.
pub(super) fn facts(run: &RunFolder) -> Vec<(&'static str, String)> {
    let summary = &run.summary;
    let mut facts = Vec::new();
    if let Some(recipe) = &run.recipe {
        facts.push(("Model", recipe.model.path.clone()));
        facts.push(("Trains", inspect::trains(&recipe.adapter)));
        facts.push(("Objective", objective(recipe)));
    }
    let languages = run.languages();
    facts.push((
        "Languages",
        match languages.len() {
            0 => "none named".to_owned(),
            count if count <= LANGUAGES => format!("{count}: {}", languages.join(", ")),
            count => count.to_string(),
        },
    ));
    let ending = match (summary.finished, summary.stopped_early) {
        (_, true) => "ended by early stopping",
        (true, _) => "finished",
        _ => "not finished",
    };
    facts.push(("Steps", format!("{} ({ending})", table::count(summary.steps))));
    let seconds = Duration::from_secs_f64(summary.wall_seconds.max(0.0));
    facts.push(("Time", format!("{} (h:min:s)", FormattedDuration(seconds))));
    if !run.steps.is_empty() {
        let tokens = format!(
            "{}, of them {} supervised",
            table::count(summary.tokens_total),
            table::count(summary.tokens)
        );
        facts.push(("Tokens trained on", tokens));
        facts.push((
            "Speed",
            format!(
                "{} tokens per second",
                table::count(summary.tokens_per_second.round() as u64)
            ),
        ));
    }
    if summary.peak_memory_bytes > 0 {
        facts.push(("Memory at its highest", table::bytes(summary.peak_memory_bytes)));
    }
    if let Some(skipped) = run.steps.last().and_then(|row| row.skipped_steps) {
        facts.push(("Steps skipped because gradients overflowed", table::count(skipped)));
    }
    if let Some(recipe) = &run.recipe {
        facts.push(("Seed", recipe.seed.to_string()));
    }
    facts
}

/// The objective and the losses beside it.
fn objective(recipe: &Recipe) -> String {
    let auxiliary = recipe.objective.auxiliary.iter();
    let names = auxiliary.map(|auxiliary| format!(" + {} × {}", auxiliary.weight(), auxiliary.kind.name()));
    std::iter::once(recipe.objective.kind.name().to_owned())
        .chain(names)
        .collect()
}

/// The events, where there were any.
pub(super) fn events(run: &RunFolder) -> Option<Table> {
    let mut table = Table::new("what happened on the way", ["step", "seconds", "event"]);
    for event in &run.events {
        table.rows.push(vec![
            table::count(event.step),
            format!("{:.1}", event.time),
            event.event.clone(),
        ]);
    }
    table.prose = true;
    (!table.rows.is_empty()).then_some(table)
}
