//! `interlingua train RECIPE`.

use clap::Args;
use interlingua_recipes::{AdapterKind, Recipe, Route};
use interlingua_trainer::train::summary::Summary;
use interlingua_trainer::train::{Outcome, StopFlag, TrainOptions};
use serde_json::json;

use crate::cli::Global;
use crate::distributed::{self, Group};
use crate::exit::{CommandResult, Exit, Failure};
use crate::recipe::{self, RecipeArgument};
use crate::watch::Watch;
use crate::{launcher, learnt, logging, output, preparation, report, signals, style};

/// Trains, saves, and exports the adapter at the end. Goes on from the last checkpoint in the output folder by itself.
///
/// SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 finish the step, save and end with exit code 75; the same command then goes on.
#[derive(Args)]
#[command(after_help = "Example: interlingua train recipes/quickstart.toml --set train.steps=50")]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
    /// Start anew: the old output folder is moved to NAME.old-N first, never deleted
    #[arg(long)]
    fresh: bool,
}

/// Trains, stage after stage where the recipe has some. One of several processes finds its place among them by itself.
///
/// # Errors
/// When the recipe, the data or the model is wrong, or the run fails.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let placement = distributed::placement()?;
    if placement.world_size > 1 {
        logging::of_rank(placement.rank, global.verbose > 0);
    }
    let started = recipe::load(&arguments.recipe.recipe, global)
        .and_then(|recipe| Ok((distributed::start(placement.clone(), &recipe)?, recipe)));
    let (group, recipe) = started.map_err(|failure| distributed::before_all_met(&placement, failure))?;
    launcher::follow(placement.rank, group.emergency());
    let result = work(arguments, recipe, global, &group);
    group.end(result)
}

/// The part of one process.
fn work(arguments: &Arguments, mut recipe: Recipe, global: &Global, group: &Group) -> CommandResult {
    if recipe.model.device != group.device() {
        let mut settings = global.set.clone();
        settings.push(format!("model.device={}", group.device()));
        recipe = Recipe::load(&arguments.recipe.recipe, &settings).map_err(Failure::usage)?;
    }
    // The result of a pipeline is that of its last stage.
    let last = recipe
        .stages()
        .map_err(Failure::usage)?
        .pop()
        .unwrap_or_else(|| recipe.clone());
    let stop = signals::stop_flag()?;
    group.once_per_host(|| preparation::fill_cache(&recipe, global))?;
    let mut watch = Watch::new(global, "", recipe.train.log_every);
    let options = TrainOptions {
        fresh: arguments.fresh,
        collectives: group.collectives(),
    };
    let outcome = train(&recipe, options, &stop, &mut watch)?;
    if group.is_first() {
        if global.json {
            let result =
                json!({ "outcome": word(outcome), "output": recipe.output, "summary": Summary::read(&last.output) });
            output::json(&result)?;
        } else {
            print(&recipe, &last, outcome, &watch)?;
        }
    }
    Ok(if outcome == Outcome::Stopped {
        Exit::Stopped
    } else {
        Exit::Done
    })
}

/// One run, watched, with its report at the end.
///
/// # Errors
/// With exit code 2 when nothing was started, 1 when it failed while running.
pub(crate) fn train(
    recipe: &Recipe,
    options: TrainOptions,
    stop: &StopFlag,
    watch: &mut Watch,
) -> Result<Outcome, Failure> {
    let is_first = options.collectives.rank() == 0;
    let result = interlingua_trainer::train::train(recipe, options, stop, &mut |event| watch.observe(event));
    watch.finish();
    let outcome = result?;
    if outcome == Outcome::Finished && is_first {
        // The run is done whether or not it can be drawn.
        if let Err(failure) = report::write(&recipe.output, None) {
            tracing::warn!("there is no report: {}", failure.message);
        }
    }
    Ok(outcome)
}

/// How a run ended, in one word.
pub(crate) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Finished => "finished",
        Outcome::AlreadyFinished => "already-finished",
        Outcome::Stopped => "stopped",
    }
}

/// What a person sees at the end.
fn print(recipe: &Recipe, last: &Recipe, outcome: Outcome, watch: &Watch) -> Result<(), Failure> {
    let folder = recipe.output.display();
    match outcome {
        Outcome::AlreadyFinished => output::line(format!(
            "The run in {folder} was already finished. Raise train.steps or train.epochs to go on, or add --fresh to start anew."
        )),
        Outcome::Stopped => output::line(format!(
            "Stopped, with everything saved in {folder}. Run the same command to go on."
        )),
        Outcome::Finished => {
            if let Some(summary) = Summary::read(&last.output) {
                output::line(format!("\n{}", learnt::table(&summary).render()))?;
            }
            for example in watch.examples() {
                output::line(format!("\n{example}"))?;
            }
            let readers = match last.adapter.kind {
                AdapterKind::Lora | AdapterKind::Dora => "PEFT and --adapter",
                AdapterKind::Bottleneck | AdapterKind::Steering | AdapterKind::None => "--adapter",
            };
            let what = match last.adapter.route {
                Route::Language => "a folder for each language, each",
                Route::None => "the adapter,",
            };
            let adapter = format!("{what} for {readers}");
            let results = [
                ("adapter", adapter.as_str()),
                ("model", "the model, a Hugging Face folder"),
            ];
            for (name, what) in results {
                let path = last.output.join(name);
                if path.is_dir() {
                    output::line(format!(
                        "\n{}  {what}",
                        style::paint(style::TITLE, &path.display().to_string())
                    ))?;
                }
            }
            let page = recipe.output.join(report::FILE);
            if page.is_file() {
                output::line(format!(
                    "\n{}  losses and scores as a page",
                    style::paint(style::TITLE, &page.display().to_string())
                ))?;
            }
            Ok(())
        }
    }
}
