//! `doctor --collectives`: what ranks say to each other against what they ought to hear, on one device.

use interlingua_recipes::Device;
use interlingua_trainer::collectives::Collectives;
use interlingua_trainer::collectives::check::{CollectiveCheck, collective_checks, one_rank};
use interlingua_trainer::device::device;
use serde_json::json;

use crate::cli::Global;
use crate::distributed;
use crate::exit::{CommandResult, Exit, Failure};
use crate::{logging, output, style};

/// Runs the checks and prints a line for each. A difference is no error; it ends with exit code 1.
///
/// # Errors
/// When the device cannot be used, the ranks cannot be connected, or standard output cannot be written.
pub(super) fn run(wanted: Device, global: &Global) -> CommandResult {
    let placement = distributed::placement()?;
    if placement.world_size == 1 {
        let device = device(wanted)?;
        return check(&*one_rank(&device)?, &device, wanted, global);
    }
    logging::of_rank(placement.rank, global.verbose > 0);
    let group = distributed::start_on(placement.clone(), wanted)
        .map_err(|failure| distributed::before_all_met(&placement, failure))?;
    let checked = device(group.device())
        .map_err(Failure::from)
        .and_then(|device| check(&*group.collectives(), &device, wanted, global));
    group.end(checked)
}

fn check(ranks: &dyn Collectives, device: &burn::tensor::Device, wanted: Device, global: &Global) -> CommandResult {
    let checks = collective_checks(ranks, device);
    let failed = checks.iter().filter(|check| !check.passed()).count();
    // One table is enough where every rank has the same.
    let speaks = ranks.rank() == 0 || failed > 0;
    if speaks && global.json {
        let rows = checks.iter().map(|check| {
            json!({
                "operation": check.name, "case": check.case, "passed": check.passed(),
                "max_difference": check.max_difference, "allowed": check.allowed,
            })
        });
        output::json(&json!({
            "device": wanted.to_string(), "rank": ranks.rank(), "world_size": ranks.world_size(),
            "passed": failed == 0, "checks": rows.collect::<Vec<_>>(),
        }))?;
    } else if speaks {
        for check in &checks {
            output::line(line(check))?;
        }
        output::line(format!(
            "{} of {} checks passed on {wanted}, rank {} of {}",
            checks.len() - failed,
            checks.len(),
            ranks.rank(),
            ranks.world_size()
        ))?;
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

fn line(check: &CollectiveCheck) -> String {
    let verdict = if check.passed() {
        style::paint(style::GOOD, "passed")
    } else {
        style::paint(style::ERROR, "FAILED")
    };
    let CollectiveCheck {
        name,
        case,
        max_difference,
        allowed,
    } = check;
    format!("{verdict}  {name:<15} {case:<36} off by {max_difference:.1e}, {allowed:.0e} allowed")
}
