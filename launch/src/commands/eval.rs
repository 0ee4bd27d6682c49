//! `interlingua eval`.

use std::path::PathBuf;

use clap::Args;
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_recipes::Recipe;
use interlingua_trainer::train::measurement::{Measured, Measurement, changes, measures};
use interlingua_trainer::train::metrics::EvalRow;
use interlingua_trainer::train::setup::quantization;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::progress::Preparation;
use crate::{answers, layers, output, recipe, scores, style};

/// Measures the tasks of a recipe, and its held-out samples, on the recipe's base or on that with adapters. Nothing is trained,
/// and the output folder is left alone.
///
/// With `[model.quantization]` the base is measured twice, as it is and quantised, and the table shows what that costs each
/// language. Of a pipeline, the first stage that has something to measure counts.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua eval recipes/quickstart.toml --adapter runs/quickstart/adapter\n\n\
    Example: interlingua eval --model path/to/model --tasks tasks.toml --set data.template=chatml\n\
    reads [[eval.tasks]] from tasks.toml. What quantising costs: --set model.quantization.scheme=nf4"
)]
pub(crate) struct Arguments {
    /// The recipe that has the tasks, the model and the held-out samples
    #[arg(value_name = "RECIPE", required_unless_present_any = ["model", "tasks"], conflicts_with_all = ["model", "tasks"])]
    recipe: Option<PathBuf>,
    /// An adapter's folder to put on the model; repeated, each stands on those before it
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Without a recipe, the model: a folder or a hub id
    #[arg(long, value_name = "DIR", requires = "tasks")]
    model: Option<String>,
    /// Without a recipe, a TOML file with the tasks: an `[eval]` table as in a recipe
    #[arg(long, value_name = "FILE", requires = "model")]
    tasks: Option<PathBuf>,
    /// Keeps every answer in this folder, DIR/TASK.jsonl. An evaluation that was interrupted goes on after the answers that are
    /// there
    #[arg(long, value_name = "DIR")]
    save_answers: Option<PathBuf>,
    /// Scores the answers of a folder again; no model is loaded
    #[arg(long, value_name = "DIR", conflicts_with_all = ["save_answers", "adapter"])]
    from_answers: Option<PathBuf>,
}

/// Measures, and prints a table for each task.
///
/// # Errors
/// With exit code 2 when there is nothing to measure, or the recipe, a model, an adapter or data is wrong.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let recipe = measured(arguments, global)?;
    let mut preparation = Preparation::new(global);
    let measurement = Measurement::new(&recipe, &arguments.adapter, &mut |progress| {
        preparation.observe(&progress)
    });
    preparation.finish();
    let measurement = measurement?;
    if let Some(folder) = &arguments.from_answers {
        let scored = Measured {
            rows: measurement.score(folder)?,
            device: "none: scored from answers".to_owned(),
        };
        return show(&recipe, arguments, global, &scored, None);
    }
    let mut quantization = quantization(&recipe);
    if quantization.is_some() && measurement.is_quantised() {
        tracing::warn!(
            "the files of {} are quantised already, so there is nothing to compare them with",
            recipe.model.path
        );
        quantization = None;
    }
    let say = |how: &str| {
        tracing::info!(
            "measuring {}{how}: {}",
            described(&recipe, arguments),
            measurement.names()
        )
    };
    say("");
    let answers = arguments.save_answers.as_deref();
    let plain = measurement.run(None, answers)?;
    let quantized = match quantization {
        Some(quantization) => {
            say(&format!(" in {}", name(quantization)));
            let answers = answers.map(|folder| folder.join("quantized"));
            Some((quantization, measurement.run(Some(quantization), answers.as_deref())?))
        }
        None => None,
    };
    show(&recipe, arguments, global, &plain, quantized.as_ref())
}

fn show(
    recipe: &Recipe,
    arguments: &Arguments,
    global: &Global,
    plain: &Measured,
    quantized: Option<&(Quantization, Measured)>,
) -> CommandResult {
    if global.json {
        output::json(&as_json(recipe, arguments, plain, quantized))?;
    } else {
        print(plain, quantized)?;
    }
    Ok(Exit::Done)
}

/// The recipe to measure: that of the file or of its first stage with something to measure, or one made of the file of tasks.
fn measured(arguments: &Arguments, global: &Global) -> Result<Recipe, Failure> {
    match (&arguments.recipe, &arguments.model, &arguments.tasks) {
        (Some(file), ..) => {
            let recipe = recipe::load(file, global)?;
            let stages = recipe.stages().map_err(Failure::usage)?;
            let found = stages
                .into_iter()
                .find(|stage| stage.merge.is_none() && measures(stage));
            Ok(found.unwrap_or(recipe))
        }
        (None, Some(model), Some(tasks)) => Recipe::load_tasks(tasks, model, &global.set).map_err(Failure::usage),
        _ => Err(Failure::usage(
            "What is to be measured? Name a recipe, or a model and a file of tasks: --model DIR --tasks FILE.",
        )),
    }
}

/// The model and what is put on it, in words.
fn described(recipe: &Recipe, arguments: &Arguments) -> String {
    let adapters = arguments.adapter.iter();
    let adapters = adapters.map(|adapter| format!(" with {}", adapter.display()));
    std::iter::once(recipe.model.path.clone()).chain(adapters).collect()
}

/// A quantisation in words.
fn name(quantization: Quantization) -> String {
    let scheme = match quantization.scheme {
        Scheme::Nf4 { block, double: true } => format!("NF4 in blocks of {block}, double"),
        Scheme::Nf4 { block, double: false } => format!("NF4 in blocks of {block}"),
        Scheme::Int8 => "int8".to_owned(),
    };
    if quantization.head {
        format!("{scheme}, with the head")
    } else {
        scheme
    }
}

fn as_json(
    recipe: &Recipe,
    arguments: &Arguments,
    plain: &Measured,
    quantized: Option<&(Quantization, Measured)>,
) -> Value {
    let rows = |rows: &[EvalRow]| -> Value {
        // A step and a time belong to runs.
        let row = |row: &EvalRow| {
            let mut row = json!(row);
            row.as_object_mut()
                .map(|row| ["step", "time"].map(|key| row.shift_remove(key)));
            row
        };
        rows.iter().map(row).collect()
    };
    let mut result = json!({
        "model": recipe.model.path, "adapters": arguments.adapter, "device": plain.device, "tasks": rows(&plain.rows),
    });
    if let Some((quantization, measured)) = quantized {
        result["quantization"] = json!(quantization);
        result["quantized"] = rows(&measured.rows);
        result["damage"] = json!(changes(&plain.rows, &measured.rows));
    }
    result
}

fn print(plain: &Measured, quantized: Option<&(Quantization, Measured)>) -> Result<(), Failure> {
    let title = |task: &str| style::paint(style::TITLE, task);
    match quantized {
        None => {
            for row in &plain.rows {
                output::line(format!(
                    "{}\n{}\n{}{}",
                    title(&row.task),
                    scores::table(row).render(),
                    scores::across(row).map_or_else(String::new, |across| format!("{across}\n")),
                    layers::text(row)
                ))?;
            }
        }
        Some((quantization, measured)) => {
            output::line(format!(
                "Before and after quantising to {}, and the difference\n",
                name(*quantization)
            ))?;
            for task in changes(&plain.rows, &measured.rows) {
                let table = scores::table_of_changes(&task).render();
                output::line(format!("{}\n{table}\n", title(&task.task)))?;
            }
        }
    }
    let last = quantized.map_or(plain, |(_, measured)| measured);
    for row in &last.rows {
        let before = plain
            .rows
            .iter()
            .find(|plain| plain.task == row.task && quantized.is_some());
        for example in answers::of(before, row) {
            output::line(format!("{example}\n"))?;
        }
    }
    Ok(())
}
