//! `doctor --kernels`: each kernel against its reference in plain tensor operations, on one device.

use interlingua_recipes::Device;
use interlingua_trainer::device::device;
use interlingua_trainer::ops::check::{KernelCheck, kernel_checks};
use serde_json::json;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::{output, style};

/// Runs the checks and prints a line for each. A difference is no error; it ends with exit code 1.
///
/// # Errors
/// When the device cannot be used, or standard output cannot be written.
pub(super) fn run(wanted: Device, global: &Global) -> CommandResult {
    let device = device(wanted).map_err(Failure::from)?;
    let checks = kernel_checks(&device);
    let failed = checks.iter().filter(|check| !check.passed()).count();
    if global.json {
        let rows = checks.iter().map(|check| {
            json!({
                "kernel": check.name, "case": check.case, "passed": check.passed(),
                "max_difference": check.max_difference, "allowed": check.allowed,
            })
        });
        output::json(&json!({
            "device": wanted.to_string(), "passed": failed == 0, "checks": rows.collect::<Vec<_>>(),
        }))?;
    } else {
        for check in &checks {
            output::line(line(check))?;
        }
        output::line(format!(
            "{} of {} checks passed on {wanted}",
            checks.len() - failed,
            checks.len()
        ))?;
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

fn line(check: &KernelCheck) -> String {
    let verdict = if check.passed() {
        style::paint(style::GOOD, "passed")
    } else {
        style::paint(style::ERROR, "FAILED")
    };
    let KernelCheck {
        name,
        case,
        max_difference,
        allowed,
    } = check;
    format!("{verdict}  {name:<22} {case:<40} off by {max_difference:.1e}, {allowed:.0e} allowed")
}
