//! `interlingua plan RECIPE`.

use std::path::Path;

use clap::{Args, ValueEnum};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype as FileDtype;
use interlingua_checkpoints::hub;
use interlingua_recipes::{Recipe, parse_bytes};
use interlingua_trainer::device::{available_bytes, kind, wanted_gpu};
use interlingua_trainer::memory::current_bytes;
use interlingua_trainer::plan::budget::{Proposal, Proposals};
use interlingua_trainer::plan::scaling::{LATENCY, Scaling, worlds};
use interlingua_trainer::plan::settings::DeviceKind;
use interlingua_trainer::plan::time::{assumed_gpu_rate, measured_cpu_rate};
use interlingua_trainer::plan::{Plan, Planner};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::exit::{CommandResult, Exit, Failure};
use crate::recipe::{self, RecipeArgument};
use crate::{output, plan, preparation, scaling, style, table};

/// Bytes of a tokenizer in memory for each byte of `tokenizer.json`, measured on tokenizers of 2,000 to 100,000 pieces.
const TOKENIZER: u64 = 16;

/// More processes than anybody plans for.
const MOST_PROCESSES: usize = 1 << 20;

/// Predicts what a recipe takes in memory, part by part, and how long a step is, from shapes alone: of the model only config.json
/// is read, of the data nothing. Every row counts as long as the recipe allows.
#[derive(Args)]
#[command(
    after_help = "Examples: interlingua plan recipes/lora-sft.toml --device cuda --budget 8GiB\n          \
                  interlingua plan recipes/ddp-lora.toml --device cuda --world 64 --bandwidth 50GB/s"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArgument,
    /// Say which settings fit into so much memory, such as 4GiB or 2500MB
    #[arg(long, value_name = "SIZE", value_parser = budget)]
    budget: Option<u64>,
    /// Plan for this kind of device, whether it is here or not; without it, for the recipe's
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Plan for one of so many processes that share the run
    #[arg(long, value_name = "N", value_parser = world)]
    world: Option<usize>,
    /// What each process can send while it receives as much, such as 50GB/s, or 400Gb/s in bits: how speed grows with the
    /// number of processes
    #[arg(long, value_name = "RATE", value_parser = scaling::bandwidth, requires = "world")]
    bandwidth: Option<f64>,
    /// Count with a device that multiplies matrices at so many 10¹² operations a second, in place of what was measured or is
    /// assumed
    #[arg(long, value_name = "RATE", value_parser = teraflops)]
    teraflops: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Device {
    /// The processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

fn budget(text: &str) -> Result<u64, String> {
    parse_bytes(text)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "write a size such as 4GiB or 2500MB".to_owned())
}

fn world(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (1..=MOST_PROCESSES).contains(size));
    size.ok_or_else(|| format!("write a number of processes from 1 to {MOST_PROCESSES}"))
}

fn teraflops(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "write a number above 0, such as 330".to_owned())
}

/// A stage with its plan.
struct Planned {
    stage: String,
    planner: Planner,
    plan: Plan,
    proposals: Option<Proposals>,
    scaling: Vec<Scaling>,
}

/// Plans every stage that trains, and prints.
///
/// # Errors
/// When the recipe or the model's config is wrong, or nothing fits into the budget.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let recipe = recipe::load(&arguments.recipe.recipe, global)?;
    let stages = preparation::stages(&recipe)?;
    let stages = stages
        .into_iter()
        .map(|(stage, recipe)| planned(arguments, stage, &recipe));
    let stages = stages.collect::<Result<Vec<_>, Failure>>()?;
    if global.json {
        let stages: Vec<Value> = stages.iter().map(|stage| as_json(stage, arguments.bandwidth)).collect();
        output::json(&json!({ "recipe": recipe.file, "stages": stages }))?;
        return Ok(Exit::Done);
    }
    for stage in &stages {
        print(stage, arguments)?;
    }
    Ok(Exit::Done)
}

fn planned(arguments: &Arguments, stage: String, recipe: &Recipe) -> Result<Planned, Failure> {
    let folder = hub::resolve_config(&recipe.model.path).map_err(Failure::usage)?;
    let (config, _) = ModelConfig::read(&folder).map_err(Failure::usage)?;
    let device = match arguments.device {
        Some(Device::Cpu) => DeviceKind::Cpu,
        Some(Device::Cuda) => DeviceKind::Cuda,
        None => kind(recipe.model.device),
    };
    let file = config.dtype.unwrap_or(FileDtype::F32);
    let mut planner = Planner::new(recipe, &config, file, device, None)?;
    planner.settings.held = current_bytes() + TOKENIZER * file_bytes(&folder.join("tokenizer.json"));
    planner.settings.world = arguments.world.unwrap_or(1);
    planner.settings.rate = match (arguments.teraflops, device) {
        (Some(teraflops), _) => 1e12 * teraflops,
        (None, DeviceKind::Cpu) => measured_cpu_rate(),
        (None, DeviceKind::Cuda) => assumed_gpu_rate(wanted_gpu(recipe.model.device).map(|gpu| gpu.capability)),
    };
    let budget = arguments.budget.or_else(|| recipe.memory.budget_bytes());
    // Of a device that is only planned for, nothing is known.
    let is_here = kind(recipe.model.device) == device;
    let available = available_bytes(recipe.model.device).filter(|_| is_here);
    // What the run would do by itself, which does not know of the budget asked about here.
    planner.decide(recipe.memory.recompute, recipe.memory.budget_bytes(), available);
    Ok(Planned {
        stage,
        plan: planner.plan(),
        proposals: budget.map(|budget| planner.fit(budget)).transpose()?,
        scaling: arguments.bandwidth.map_or_else(Vec::new, |bandwidth| {
            let sizes = worlds(planner.settings.world).into_iter();
            sizes.map(|world| planner.scaling(world, bandwidth)).collect()
        }),
        planner,
    })
}

/// The size of a file; 0 when there is none.
fn file_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

fn as_json(stage: &Planned, bandwidth: Option<f64>) -> Value {
    let proposal = |proposal: &Proposal| {
        json!({
            "set": stage.planner.changes(&proposal.settings), "max_length": proposal.settings.length, "plan": proposal.plan,
        })
    };
    let mut json = json!({ "stage": stage.stage, "plan": stage.plan });
    if let Some(proposals) = &stage.proposals {
        json["largest_batch"] = json!(proposals.largest_batch.as_ref().map(proposal));
        json["longest"] = proposal(&proposals.longest);
    }
    if let Some(bandwidth) = bandwidth {
        json["scaling"] = json!({ "bandwidth": bandwidth, "latency": LATENCY, "processes": stage.scaling });
    }
    json
}

fn print(stage: &Planned, arguments: &Arguments) -> Result<(), Failure> {
    if !stage.stage.is_empty() {
        output::line(style::paint(style::TITLE, &format!("\nstage {}", stage.stage)))?;
    }
    let of = &stage.plan.of;
    output::line(format!("{}\n", plan::table(&stage.plan).render()))?;
    if let (Some(world), Some(strategy)) = (of.world_size, &of.strategy) {
        output::line(format!("for each of {world} processes with strategy = \"{strategy}\""))?;
    }
    output::line(format!(
        "{} parameters are trained; micro-batches of at most {} tokens, {} a step; recompute = \"{}\", offload = \"{}\"",
        table::count(of.trainable_parameters),
        table::count(of.tokens),
        of.gradient_accumulation,
        of.recompute,
        of.offload,
    ))?;
    let basis = match of.device.as_str() {
        _ if arguments.teraflops.is_some() => "at the rate that was named",
        "cpu" => "at the rate of matrix products that was measured just now",
        _ => "an estimate: what such GPUs usually reach",
    };
    output::line(format!(
        "about {} a step ({basis})",
        indicatif::HumanDuration(std::time::Duration::from_secs_f64(stage.plan.step_seconds))
    ))?;
    if let Some(bandwidth) = arguments.bandwidth {
        output::line(format!(
            "\nevery process has micro-batches of the recipe's size, sends {}/s while it receives as much, and waits {:.0} µs for \
             each round of messages, which is assumed:\n{}",
            indicatif::DecimalBytes(bandwidth as u64),
            1e6 * LATENCY,
            scaling::table(&stage.scaling).render()
        ))?;
    }
    let Some(proposals) = &stage.proposals else {
        return Ok(());
    };
    let show = |what: &str, proposal: &Proposal| {
        let changes = stage.planner.changes(&proposal.settings);
        let changes = if changes.is_empty() {
            "the recipe as it is".to_owned()
        } else {
            changes.join(" ")
        };
        output::line(format!("{what}: {} with {changes}", table::bytes(proposal.plan.peak())))
    };
    match &proposals.largest_batch {
        Some(proposal) => show("\nlargest batch that fits at the recipe's length", proposal)?,
        None => output::line("\nno sequence of the recipe's length fits")?,
    }
    show("longest sequences that fit, one at a time", &proposals.longest)
}
