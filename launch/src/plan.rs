//! A memory plan for people: the table of a command, and the lines of a run.

use interlingua_trainer::plan::Plan;

use crate::table::{self, Table};

/// A row for each part, on the device and in host memory.
pub(crate) fn table(plan: &Plan) -> Table {
    let mut table = Table::new(["part", plan.of.device.as_str(), "host"]);
    let host = |part: &str| match part {
        "weights" => plan.host.weights,
        "block_inputs" => plan.host.block_inputs,
        _ => 0,
    };
    let cell = |bytes: u64| {
        if bytes == 0 {
            "-".to_owned()
        } else {
            table::bytes(bytes)
        }
    };
    for (part, bytes) in plan.device.parts() {
        table.row([part.replace('_', " "), cell(bytes), cell(host(part))]);
    }
    table.row(["tokenizer, data".to_owned(), "-".to_owned(), cell(plan.host.data)]);
    table.row([
        "highest moment".to_owned(),
        cell(plan.device.total),
        cell(plan.host.total),
    ]);
    table
}

/// The total in a line.
pub(crate) fn headline(plan: &Plan) -> String {
    let of = &plan.of;
    let shared = match (of.world_size, &of.strategy) {
        (Some(world), Some(strategy)) => format!(" for each of {world} processes ({strategy})"),
        _ => String::new(),
    };
    format!(
        "memory planned{shared}: {} on {} with recompute = \"{}\"",
        table::bytes(plan.peak()),
        of.device,
        of.recompute
    )
}

/// The total, and the parts that matter, largest first.
pub(crate) fn line(plan: &Plan) -> String {
    let mut parts: Vec<(&str, u64)> = plan.device.parts().into_iter().collect();
    parts.push(("tokenizer and data", plan.host.data));
    let least = plan.peak() / 100;
    parts.retain(|(_, bytes)| *bytes > least);
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(part, bytes)| format!("{} {}", part.replace('_', " "), table::bytes(bytes)))
        .collect();
    format!("{} ({})", headline(plan), parts.join(", "))
}

/// How much a run took beside what was planned; none where nothing was counted.
pub(crate) fn measured(plan: &Plan, peak: u64) -> Option<String> {
    (peak > 0).then(|| {
        let share = 100.0 * (peak as f64 / plan.peak().max(1) as f64 - 1.0);
        format!(
            "memory at its highest: {}; planned: {} ({share:+.1} %)",
            table::bytes(peak),
            table::bytes(plan.peak())
        )
    })
}
