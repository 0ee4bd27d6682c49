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
    #[arg(value_name = "DIR")]
    inputs: Vec<PathBuf>,
    /// linear, slerp, ties or dare-ties
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// A weight for each, in the order of the folders, with commas or spaces between; divided by their sum [default: all alike]
    #[arg(long, value_name = "W,W", num_args = 1.., allow_negative_numbers = true)]
    weights: Vec<String>,
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
    let (weights, inputs) = weights_and_inputs(&arguments.weights, &arguments.inputs)?;
    let options = Options {
        method: arguments.method,
        weights: (!arguments.weights.is_empty()).then_some(weights),
        density: arguments.density,
        scale: arguments.scale,
        seed: arguments.seed,
        combination: arguments.combination,
    };
    check_out(&arguments.out).map_err(Failure::usage)?;
    let merge = Merge::open(&inputs, arguments.base.as_deref(), &options).map_err(Failure::usage)?;
    merge.notes().iter().for_each(|note| tracing::warn!("{note}"));
    let report = merge.write(&arguments.out).map_err(Failure::running)?;
    let settings = merge.settings();
    let kind = match report.kind {
        Kind::Models => "model",
        Kind::Adapters => "adapter",
    };
    if global.json {
        let parents = inputs.iter().zip(&settings.weights).zip(&report.distances);
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
    for ((path, weight), distance) in inputs.iter().zip(&settings.weights).zip(&report.distances) {
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

/// Weights with spaces between them take the folders that follow for more of their kind: what is no number is a folder.
fn weights_and_inputs(weights: &[String], inputs: &[PathBuf]) -> Result<(Vec<f64>, Vec<PathBuf>), Failure> {
    let mut numbers = Vec::new();
    let mut folders = Vec::new();
    for text in weights {
        let parts: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse::<f64>()).collect();
        match parts {
            Ok(parts) => numbers.extend(parts),
            Err(_) => folders.push(PathBuf::from(text)),
        }
    }
    match (folders.is_empty(), inputs.is_empty()) {
        (true, _) => Ok((numbers, inputs.to_vec())),
        (false, true) => Ok((numbers, folders)),
        (false, false) => Err(Failure::usage(format!(
            "Some folders stand behind --weights ({}) and some elsewhere, so that their order is not clear. Write all of them at the end, \
             behind --out.",
            folders[0].display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_may_have_commas_or_spaces_and_folders_behind_them() {
        let read = |weights: &[&str], inputs: &[&str]| {
            let weights: Vec<String> = weights.iter().map(ToString::to_string).collect();
            let inputs: Vec<PathBuf> = inputs.iter().map(PathBuf::from).collect();
            weights_and_inputs(&weights, &inputs)
        };
        let folders = vec![PathBuf::from("a"), PathBuf::from("b")];
        let expected = (vec![0.7, 0.3], folders);
        assert_eq!(read(&["0.7,0.3"], &["a", "b"]).unwrap(), expected);
        assert_eq!(read(&["0.7", "0.3"], &["a", "b"]).unwrap(), expected);
        assert_eq!(read(&["0.7", "0.3", "a", "b"], &[]).unwrap(), expected);
        assert!(
            read(&["0.7", "0.3", "a"], &["b"])
                .unwrap_err()
                .message
                .contains("order")
        );
    }
}
