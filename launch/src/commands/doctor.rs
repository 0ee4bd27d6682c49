//! `interlingua doctor`: what this machine has and lacks for each device, and what to do.

mod collectives;
mod kernels;
mod nvidia;

use std::path::{Path, PathBuf};

use clap::Args;
use interlingua_recipes::Device;
use interlingua_trainer::memory::host_bytes;
use serde::Serialize;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::{machine, output, style, table};

/// Less free space than this beside the output is worth a warning, in bytes.
const LITTLE_SPACE: u64 = 2 << 30;
/// Less free memory than this is worth a warning, in bytes.
const LITTLE_MEMORY: u64 = 2 << 30;

/// Says what this machine has and lacks for each device, and what to do about it.
#[derive(Args)]
#[command(after_help = "Example: interlingua doctor --output runs\n\n\
    Example: interlingua doctor --kernels --device cuda:0\n\n\
    Example: interlingua doctor --collectives --device cuda:0")]
pub(crate) struct Arguments {
    /// The folder that runs will be written to
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
    /// Compare each kernel with its reference in plain tensor operations instead; exit code 1 when one differs
    #[arg(long, group = "compared")]
    kernels: bool,
    /// Compare what processes say to each other with what they ought to hear instead: on one process, or on all that a launcher such
    /// as mpirun has started; exit code 1 when one differs
    #[arg(long, group = "compared")]
    collectives: bool,
    /// The device on which they are compared: auto, cpu, cuda or cuda:N, tch or tch:cuda
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "compared")]
    device: Device,
}

/// One thing looked at.
#[derive(Serialize)]
struct Check {
    /// `cpu`, `cuda`, `tch` or `folders`.
    area: &'static str,
    name: String,
    good: bool,
    found: String,
    /// What to do, when it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Looks at the machine and prints what it found. Something missing is a finding, not a failure.
///
/// # Errors
/// When the device of `--kernels` or `--collectives` cannot be used, or standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    if arguments.kernels {
        return kernels::run(arguments.device, global);
    }
    if arguments.collectives {
        return collectives::run(arguments.device, global);
    }
    let mut checks = cpu();
    checks.extend(nvidia::cuda());
    checks.extend(nvidia::libtorch());
    checks.extend(folders(&arguments.output));
    let usable = |area: &str| checks.iter().filter(|check| check.area == area).all(|check| check.good);
    let there = |device: &&str| match *device {
        "cpu" => true,
        // On a CPU it computes whatever GPUs there are.
        "tch" => cfg!(feature = "tch"),
        device => usable(device),
    };
    let devices: Vec<&str> = ["cpu", "cuda", "tch"].into_iter().filter(there).collect();
    if global.json {
        let version = env!("CARGO_PKG_VERSION");
        output::json(&serde_json::json!({ "version": version, "devices": devices, "checks": checks }))?;
        return Ok(Exit::Done);
    }
    output::line(format!(
        "interlingua {}, devices that can be used: {}",
        env!("CARGO_PKG_VERSION"),
        devices.join(", ")
    ))?;
    let mut area = "";
    for check in &checks {
        if check.area != area {
            area = check.area;
            output::line(format!("\n{}", style::paint(style::TITLE, area)))?;
        }
        let mark = if check.good {
            style::paint(style::GOOD, "ok")
        } else {
            style::paint(style::WARNING, "--")
        };
        output::line(format!("  {mark}  {:<18} {}", check.name, check.found))?;
        if let Some(advice) = &check.advice {
            output::line(format!("      {:<18} {advice}", ""))?;
        }
    }
    Ok(Exit::Done)
}

fn check(area: &'static str, name: &str, good: bool, found: String, advice: &str) -> Check {
    Check {
        area,
        name: name.to_owned(),
        good,
        found,
        advice: (!good).then(|| advice.to_owned()),
    }
}

fn cpu() -> Vec<Check> {
    let features = machine::simd_features();
    let fast = features.contains(&"avx2") || features.contains(&"neon");
    let memory = host_bytes();
    let available = memory.map_or(0, |memory| memory.available);
    let memory = memory.map_or_else(
        || "unknown".to_owned(),
        |memory| {
            format!(
                "{} available of {}",
                table::bytes(memory.available),
                table::bytes(memory.total)
            )
        },
    );
    vec![
        check("cpu", "processor", true, machine::processor(), ""),
        check("cpu", "cores", true, machine::cores().to_string(), ""),
        check(
            "cpu",
            "vector units",
            fast,
            if features.is_empty() {
                "none known".to_owned()
            } else {
                features.join(", ")
            },
            "Without AVX2 or NEON, training works and is several times slower.",
        ),
        check(
            "cpu",
            "memory",
            available >= LITTLE_MEMORY,
            memory,
            "Choose a small model, lower data.max_length and train.batch_size, or set memory.recompute = \"block\".",
        ),
    ]
}

fn folders(output: &Path) -> Vec<Check> {
    let cache = interlingua_data::cache::default_folder();
    [("token cache", cache), ("output", output.to_owned())]
        .into_iter()
        .map(|(name, folder)| {
            let space = machine::free_space(&folder);
            let writable = machine::is_writable(&folder);
            let free = space.map_or_else(
                || "free space unknown".to_owned(),
                |free| format!("{} free", table::bytes(free)),
            );
            let advice = if writable {
                "Little space is left: delete old runs or caches, or choose another folder."
            } else {
                "This folder cannot be written: choose another, or change its permissions."
            };
            let good = writable && space.is_none_or(|free| free >= LITTLE_SPACE);
            check("folders", name, good, format!("{} ({free})", folder.display()), advice)
        })
        .collect()
}
