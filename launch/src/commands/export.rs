//! `interlingua export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use interlingua_checkpoints::dtype::Dtype;
use interlingua_recipes::Device;
use interlingua_trainer::export::{MergeBase, MergeReport, merge};
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output;

/// Merges an adapter into its model and writes a Hugging Face folder, in the number format of the model. What was written is
/// loaded again and its logits are compared before the command says done.
#[derive(Args)]
#[command(
    after_help = "Example: interlingua export --model recipes/quickstart/base --adapter runs/quickstart/adapter --merge --out merged"
)]
pub(crate) struct Arguments {
    /// The model: a folder or a hub id
    #[arg(long, value_name = "DIR")]
    model: String,
    /// The adapter's folder; repeated, several are merged one onto the other
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    /// Merge the adapter into the weights, so that no adapter is needed any more
    #[arg(long)]
    merge: bool,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Of an adapter that was trained on a quantised base: the weights to merge it into. The dequantised ones are those that it
    /// was trained on; the original ones are nearer to the model as it was
    #[arg(long, value_name = "WEIGHTS", value_enum, default_value = "dequantized")]
    onto: Onto,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
}

/// The weights to merge into.
#[derive(Clone, Copy, ValueEnum)]
enum Onto {
    Dequantized,
    Original,
}

/// Merges, writes and compares.
///
/// # Errors
/// When model and adapter are wrong or do not fit, the folder cannot be written, or what was written computes something else.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    if !arguments.merge {
        return Err(Failure::usage(
            "What is to be done with the adapter? --merge puts it into the weights.",
        ));
    }
    let base = match arguments.onto {
        Onto::Dequantized => MergeBase::Dequantised,
        Onto::Original => MergeBase::Original,
    };
    let report = merge(
        &arguments.model,
        &arguments.adapter,
        &arguments.out,
        base,
        arguments.device,
    )?;
    let out = arguments.out.display();
    let allowed = allowed(&report);
    if report.max_logit_difference.is_nan() || report.max_logit_difference > allowed {
        return Err(Failure::running(format!(
            "{out} was written, and its logits differ from those of the model with the adapter by up to {:.2e}, where {allowed:.2e} is \
             what rounding to {} explains. Do not use it; try again, and report it if it stays so.",
            report.max_logit_difference,
            report.dtype.name()
        )));
    }
    if global.json {
        output::json(&json!({
            "out": arguments.out, "dtype": report.dtype.name(), "max_logit_difference": report.max_logit_difference,
            "max_logit": report.max_logit, "max_logit_change": report.max_logit_change,
            "max_logit_shift": report.max_logit_shift,
        }))?;
    } else {
        output::line(format!(
            "{out} written in {} and read again: logits within {:.2e} of model and adapter; the adapter changes them by up to {:.2e}",
            report.dtype.name(),
            report.max_logit_difference,
            report.max_logit_change
        ))?;
        if let Some(shift) = report.max_logit_shift {
            output::line(format!(
                "The adapter was trained on a quantised base: the merged logits are within {shift:.2e} of those that it had there"
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// The difference of logits that rounding the weights explains: some units in the last place of the largest logit.
fn allowed(report: &MergeReport) -> f64 {
    let share = match report.dtype {
        Dtype::F32 => 1e-3,
        Dtype::F16 => 1e-2,
        Dtype::BF16 => 5e-2,
    };
    share * report.max_logit.max(1.0)
}
