//! `interlingua verify MODEL_DIR REFERENCE.safetensors`.

use std::path::PathBuf;

use clap::Args;
use interlingua_recipes::{Device, Dtype};
use interlingua_trainer::train::setup::load_for_inference;
use interlingua_trainer::verify::{Comparison, Tolerance, verify};
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::{model, output, style};

/// Runs the reference's `input_ids` through a model and compares `logits`, `hidden_states.N` and `loss` with the reference's.
///
/// Passes when |a - b| <= atol + rtol * |b| for every element, padded positions left out. Computes in f32 unless --dtype says otherwise.
#[derive(Args)]
#[command(after_help = "Example: interlingua verify path/to/model reference.safetensors\n\n\
    Exit code 0 only when every tensor passes, 1 when one does not.")]
pub(crate) struct Arguments {
    /// The model: a folder or a hub id
    #[arg(value_name = "MODEL_DIR")]
    model: String,
    /// The reference: input_ids [batch, seq], attention_mask, logits, hidden_states.N, labels, loss
    reference: PathBuf,
    /// An adapter's folder to put on the model; repeated, each stands on those before it
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Absolute tolerance
    #[arg(long, default_value_t = 1e-4)]
    atol: f64,
    /// Relative tolerance
    #[arg(long, default_value_t = 1e-3)]
    rtol: f64,
    /// What to compute in: f32, bf16, f16, or auto for the model's own
    #[arg(long, default_value = "f32", value_parser = model::parse_dtype)]
    dtype: Dtype,
    /// Where to compute: auto, cpu, cuda or cuda:N, tch or tch:cuda
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
}

/// Compares, and prints a line for each tensor.
///
/// # Errors
/// When the model or the reference cannot be read. A difference is no error; it ends with exit code 1.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let (model, _) = load_for_inference(
        &arguments.model,
        &arguments.adapter,
        arguments.dtype,
        arguments.device,
        None,
    )?;
    let tolerance = Tolerance {
        atol: arguments.atol,
        rtol: arguments.rtol,
    };
    let comparisons = verify(&model, &arguments.reference, tolerance)?;
    let passed = comparisons.iter().all(passes);
    if global.json {
        let tensors = comparisons.iter().map(|comparison| {
            json!({
                "tensor": comparison.tensor, "passed": passes(comparison), "max_abs": comparison.max_abs,
                "max_rel": comparison.max_rel, "mean_abs": comparison.mean_abs, "beyond": comparison.beyond,
            })
        });
        output::json(&json!({
            "passed": passed, "atol": arguments.atol, "rtol": arguments.rtol, "tensors": tensors.collect::<Vec<_>>(),
        }))?;
    } else {
        let width = comparisons
            .iter()
            .map(|comparison| comparison.tensor.len())
            .max()
            .unwrap_or_default();
        for comparison in &comparisons {
            output::line(line(comparison, width))?;
        }
    }
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn passes(comparison: &Comparison) -> bool {
    comparison.beyond == 0
}

fn line(comparison: &Comparison, width: usize) -> String {
    let Comparison {
        tensor,
        max_abs,
        max_rel,
        mean_abs,
        beyond,
    } = comparison;
    let verdict = if passes(comparison) {
        style::paint(style::GOOD, "passed")
    } else {
        style::paint(style::ERROR, "FAILED")
    };
    let numbers = format!("max abs {max_abs:.2e}  max rel {max_rel:.2e}  mean abs {mean_abs:.2e}");
    let beyond = if *beyond == 0 {
        String::new()
    } else {
        format!("  {beyond} elements beyond the tolerance")
    };
    format!("{verdict}  {tensor:<width$}  {numbers}{beyond}")
}
