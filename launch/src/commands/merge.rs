//! `interlingua merge`.

use std::path::PathBuf;

use clap::Args;
use interlingua_checkpoints::merge::{Combination, Kind, Merge, Method, Options, check_out};
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::{output, table};

/// Merges model folders into a model folder, or adapter folders into an adapter folder. One tensor of each is in memory at a time.
/// Config, tokenizer and number format are those of the first.
///
/// linear: the weighted mean. slerp: spherical interpolation between two; the weight of the second is t. ties: of what each model
/// learnt beyond the base, the largest entries are kept, and those of the elected sign averaged. dare-ties: entries are kept at
/// random and made larger, then summed by elected sign. docs/merge.md has the formulas.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    interlingua merge --method slerp --out runs/merged runs/a/model runs/b/model\n  \
    interlingua merge --method ties --base models/base --density 0.2 --out runs/merged runs/a/model runs/b/model runs/c/model\n  \
    interlingua merge --method linear --weights 0.7,0.3 --out runs/merged runs/task/adapter runs/align/adapter")]
pub(crate) struct Arguments {
    /// The models (folders or hub ids), or the adapter folders, two or more
    #[arg(value_name = "DIR", required = true)]
    inputs: Vec<PathBuf>,
    /// linear, slerp, ties or dare-ties
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// A weight for each, separated by commas, in the order of the folders; divided by their sum [default: all alike]
    #[arg(long, value_name = "W,W", value_delimiter = ',', allow_hyphen_values = true)]
    weights: Option<Vec<f64>>,
    /// The model that all started from: what ties and dare-ties of models need
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Share of entries that is kept [default: 0.2 for ties, 0.5 for dare-ties]
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// What ties and dare-ties multiply the merged difference by [default: 1]
    #[arg(long, value_name = "NUMBER")]
    scale: Option<f64>,
    /// Where the randomness of dare-ties comes from
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    seed: u64,
    /// Of adapters: exact adds up their updates, and their ranks; entry-wise merges A with A and B with B and needs equal ranks
    /// [default: exact for linear, else entry-wise]
    #[arg(long, value_name = "WAY")]
    combination: Option<Combination>,
    /// The folder to write; it must be empty, or not there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Checks everything, then merges.
///
/// # Errors
/// With exit code 2 when the folders do not fit together and nothing was written, 1 when writing fails.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let options = Options {
        method: arguments.method,
        weights: arguments.weights.clone(),
        density: arguments.density,
        scale: arguments.scale,
        seed: arguments.seed,
        combination: arguments.combination,
    };
    check_out(&arguments.out).map_err(Failure::usage)?;
    let merge = Merge::open(&arguments.inputs, arguments.base.as_deref(), &options).map_err(Failure::usage)?;
    merge.notes().iter().for_each(|note| tracing::warn!("{note}"));
    let report = merge.write(&arguments.out).map_err(Failure::running)?;
    let settings = merge.settings();
    let kind = match report.kind {
        Kind::Models => "model",
        Kind::Adapters => "adapter",
    };
    if global.json {
        let parents = arguments.inputs.iter().zip(&settings.weights).zip(&report.distances);
        let parents: Vec<_> = parents
            .map(|((path, weight), distance)| json!({ "path": path, "weight": weight, "distance": distance }))
            .collect();
        let (density, scale) = (settings.density, settings.scale);
        let task_vectors = settings.method.has_base();
        output::json(&json!({
            "out": arguments.out, "kind": kind, "method": settings.method.name(), "weights": settings.weights,
            "density": task_vectors.then_some(density), "scale": task_vectors.then_some(scale),
            "tensors": report.tensors, "parents": parents,
        }))?;
        return Ok(Exit::Done);
    }
    let mut table = table::Table::new(["parent", "weight", "relative distance"]);
    for ((path, weight), distance) in arguments.inputs.iter().zip(&settings.weights).zip(&report.distances) {
        table.row([
            path.display().to_string(),
            format!("{weight:.4}"),
            format!("{distance:.4}"),
        ]);
    }
    output::line(table.render())?;
    output::line(format!(
        "{} written: {} of {} tensors, {}",
        arguments.out.display(),
        if kind == "model" { "a model" } else { "an adapter" },
        table::count(report.tensors as u64),
        settings.describe()
    ))?;
    Ok(Exit::Done)
}
