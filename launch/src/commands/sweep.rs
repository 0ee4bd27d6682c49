//! `interlingua sweep RECIPE --grid KEY=V1,V2`.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use interlingua_recipes::Recipe;
use interlingua_trainer::train::summary::Summary;
use interlingua_trainer::train::{Outcome, TrainOptions};
use serde_json::json;

use crate::cli::Global;
use crate::commands::train::{train, word};
use crate::exit::{CommandResult, Exit, Failure};
use crate::grid::{self, Axis, Point};
use crate::recipe::RecipeArgument;
use crate::table::{self, Table};
use crate::watch::Watch;
use crate::{output, signals};

/// Trains once per point of a grid, into OUTPUT/sweep/POINT, with one table at the end. Goes on where it was interrupted.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua sweep recipes/quickstart.toml --grid optimizer.learning_rate=1e-3,2e-3 --grid adapter.rank=4,8"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
    /// A key of the recipe and its values; with several, every combination is run
    #[arg(long, value_name = "KEY=V1,V2", required = true, value_parser = grid::parse_axis)]
    grid: Vec<Axis>,
}

/// One finished point.
struct Row {
    point: Point,
    outcome: Outcome,
    /// None while the run has not come to its end.
    summary: Option<Summary>,
}

/// Runs the points in order. All of their recipes are checked before the first starts.
///
/// # Errors
/// When a point's recipe is wrong, or a run fails.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let base = crate::recipe::load(&arguments.recipe.recipe, global)?;
    if !base.stage.is_empty() {
        return Err(Failure::usage(
            "A recipe with stages cannot be swept. Sweep the recipe of one stage.",
        ));
    }
    let recipes = grid::points(&arguments.grid)
        .into_iter()
        .map(|point| Ok((load(arguments, global, &base, &point)?, point)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let stop = signals::stop_flag()?;
    let mut rows = Vec::new();
    for (recipe, point) in recipes {
        let mut watch = Watch::new(global, &point.name, recipe.train.log_every);
        let outcome = train(&recipe, TrainOptions::default(), &stop, &mut watch)?;
        rows.push(Row {
            summary: Summary::read(&recipe.output),
            point,
            outcome,
        });
        if outcome == Outcome::Stopped {
            break;
        }
    }
    let stopped = rows.iter().any(|row| row.outcome == Outcome::Stopped);
    rows.sort_by(|one, other| loss(one, None).total_cmp(&loss(other, None)));
    if global.json {
        let points = rows.iter().map(|row| {
            let settings: serde_json::Map<_, _> = row.point.settings.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
            json!({ "point": row.point.name, "settings": settings, "outcome": word(row.outcome), "loss": Some(loss(row, None)).filter(|loss| loss.is_finite()), "summary": row.summary })
        });
        output::json(&json!({ "points": points.collect::<Vec<_>>(), "finished": !stopped }))?;
    } else {
        output::line(format!("\n{}", render(&rows)))?;
    }
    Ok(if stopped { Exit::Stopped } else { Exit::Done })
}

/// The recipe of a point.
fn load(arguments: &Arguments, global: &Global, base: &Recipe, point: &Point) -> Result<Recipe, Failure> {
    let set = point.settings.iter().map(|(key, value)| format!("{key}={value}"));
    let overrides: Vec<String> = global.set.iter().cloned().chain(set).collect();
    let mut recipe = Recipe::load(&arguments.recipe.recipe, &overrides).map_err(Failure::usage)?;
    recipe.output = base.output.join("sweep").join(&point.name);
    Ok(recipe)
}

/// The final losses of a run by language, and over all: those of the first evaluation task that measures them, else those of the
/// training data over the last tenth of the run.
fn losses(summary: &Summary) -> (f64, BTreeMap<&str, f64>) {
    let evaluated = summary
        .evaluations
        .values()
        .map(|evaluation| &evaluation.last)
        .find(|row| row.mean.contains_key("loss"));
    if let Some(row) = evaluated {
        let languages = row
            .by_language
            .iter()
            .filter_map(|(language, numbers)| Some((language.as_str(), *numbers.get("loss")?)));
        return (row.mean["loss"], languages.collect());
    }
    let trained = &summary.by_language;
    let tokens: u64 = trained.values().map(|numbers| numbers.tokens).sum();
    let sum: f64 = trained
        .values()
        .map(|numbers| numbers.loss * numbers.tokens as f64)
        .sum();
    (
        sum / tokens as f64,
        trained
            .iter()
            .map(|(language, numbers)| (language.as_str(), numbers.loss))
            .collect(),
    )
}

/// The final loss, of one language or over all; infinite where there is none, so that it sorts last.
fn loss(row: &Row, language: Option<&str>) -> f64 {
    let Some((all, languages)) = row.summary.as_ref().map(losses) else {
        return f64::INFINITY;
    };
    let loss = language.map_or(Some(all), |language| languages.get(language).copied());
    loss.filter(|loss| loss.is_finite()).unwrap_or(f64::INFINITY)
}

/// The share of the run that the recipe of a point asks for in a language, and the share that it has.
fn share(row: &Row, language: &str) -> (Option<f64>, Option<f64>) {
    let shares = row.summary.as_ref().map(|summary| &summary.shares.languages);
    let share = shares.and_then(|shares| shares.get(language));
    (share.and_then(|share| share.asked), share.map(|share| share.reached))
}

/// Whether the points ask for different shares of a language.
fn share_varies(rows: &[Row], language: &str) -> bool {
    let mut asked = rows
        .iter()
        .filter(|row| row.summary.is_some())
        .map(|row| share(row, language).0);
    let first = asked.next();
    asked.any(|share| Some(share) != first)
}

/// A row for each point, the lowest loss first, with a column for the loss of each language, and one before it for the share that the
/// run has of the language, where that is what the points differ in.
fn render(rows: &[Row]) -> String {
    let summaries = rows.iter().filter_map(|row| row.summary.as_ref());
    let languages: BTreeSet<&str> = summaries.flat_map(|summary| losses(summary).1.into_keys()).collect();
    let languages: Vec<(&str, bool)> = languages
        .into_iter()
        .map(|language| (language, share_varies(rows, language)))
        .collect();
    let headers = languages.iter().flat_map(|&(language, varies)| {
        let share = varies.then(|| format!("{language} share"));
        share.into_iter().chain([language.to_owned()])
    });
    let mut table = Table::new(["point", "loss"].map(str::to_owned).into_iter().chain(headers));
    for row in rows {
        let number = |language| table::decimal(Some(loss(row, language)).filter(|loss| loss.is_finite()));
        let name = if row.outcome == Outcome::Stopped {
            format!("{} (stopped)", row.point.name)
        } else {
            row.point.name.clone()
        };
        let cells = languages.iter().flat_map(|&(language, varies)| {
            let share = varies.then(|| table::percent(share(row, language).1));
            share.into_iter().chain([number(Some(language))])
        });
        table.row([name, number(None)].into_iter().chain(cells));
    }
    table.render()
}
