//! The memory plan of a run: made before the model is loaded, checked against the budget, and kept in the output folder.

use std::path::Path;

use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::write::pretty;
use interlingua_data::dataset::Dataset;
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{BlockInputs, Offload, Recipe};

use super::ranks::{numbers, on_this_host};
use super::setup::{Base, spreads};
use crate::collectives::Collectives;
use crate::device::{available_bytes, kind};
use crate::engine::keeping::Keeping;
use crate::error::TrainError;
use crate::memory::{current_bytes, set_budget};
use crate::plan::settings::{DataFacts, DeviceKind};
use crate::plan::{Plan, Planner};

/// Name of the plan in an output folder.
const PLAN: &str = "plan.json";

/// What a plan reads of the data.
pub fn facts(data: &Prepared) -> DataFacts {
    let tokens = |dataset: &Dataset| (0..dataset.len()).map(|sample| dataset.length(sample) as u64).sum();
    let train = &data.train;
    DataFacts {
        longest: (0..train.len()).map(|sample| train.length(sample)).max().unwrap_or(0),
        tokens: tokens(train),
        languages: train.languages().len(),
        heldout_tokens: data.heldout.as_ref().map_or(0, tokens),
    }
}

/// Plans a run whose tokenizer and data are in memory, and decides what `memory.recompute = "auto"` means for it.
///
/// # Errors
/// When a pattern of the recipe is none, its adapter does not fit the model, or the plan does not fit into `memory.budget`.
pub fn planner(
    recipe: &Recipe,
    base: &Base,
    data: &Prepared,
    collectives: &dyn Collectives,
) -> Result<Planner, TrainError> {
    let device = kind(recipe.model.device);
    let mut planner = Planner::new(recipe, &base.config, base.dtype(), device, Some(facts(data)))?;
    planner.settings.held = current_bytes();
    planner.settings.world = collectives.world_size();
    let budget = recipe.memory.budget_bytes();
    let mut available = available_bytes(recipe.model.device);
    if device == DeviceKind::Cpu {
        // What is held is allocated already.
        available = available.map(|available| available / on_this_host(collectives) as u64 + planner.settings.held);
    }
    planner.decide(recipe.memory.recompute, budget, available);
    // All processes do the same.
    let recompute = numbers(collectives, u64::from(planner.settings.recompute));
    // A kept graph would hold weights that came together from all processes.
    planner.settings.recompute = recompute.contains(&1) || spreads(recipe, collectives);
    if let Some(budget) = budget {
        planner.check(budget)?;
    }
    Ok(planner)
}

/// Caps what this process allocates at the recipe's budget, where its device is the CPU; a stage without a budget has no cap.
pub fn cap(recipe: &Recipe) {
    let budget = recipe.memory.budget_bytes();
    let budget = budget.filter(|_| kind(recipe.model.device) == DeviceKind::Cpu);
    set_budget(budget.unwrap_or(u64::MAX));
}

/// What forward passes keep for the backward pass, as the recipe and the plan say.
pub fn keeping(recipe: &Recipe, planner: &Planner) -> Keeping {
    Keeping {
        recompute: planner.settings.recompute,
        half: recipe.memory.block_inputs == BlockInputs::Bf16,
        offload: recipe.memory.offload == Offload::Activations,
    }
}

/// Writes the plan into an output folder.
///
/// # Errors
/// When it cannot be written.
pub fn write(plan: &Plan, output: &Path) -> Result<(), TrainError> {
    let json = serde_json::to_value(plan).map_err(|source| TrainError::Encode {
        what: "the memory plan",
        source,
    })?;
    Ok(write_atomically(&output.join(PLAN), pretty(&json)?.as_bytes())?)
}

/// The plan of an output folder, where there is one.
pub fn read(output: &Path) -> Option<Plan> {
    serde_json::from_str(&std::fs::read_to_string(output.join(PLAN)).ok()?).ok()
}
