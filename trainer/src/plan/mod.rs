//! The memory plan: what a run takes by part, and how long a step is, from shapes alone. Nothing is loaded.
//!
//! Parts are those that a person can do something about. Each is given at its own highest moment; these moments differ, so
//! `total`, the highest moment of all together, can be less than their sum. How much each operation keeps for its backward pass
//! stands in [`block`], the moments of a step in [`moments`], what the numbers of parameters are in [`shapes`]. Where several
//! processes share a run, a plan is of one of them: [`shares`] has what it holds, [`scaling`] how fast all of them are.

pub mod block;
pub mod budget;
pub mod moments;
mod plain;
pub mod scaling;
pub mod settings;
pub mod shapes;
pub mod shares;
#[cfg(test)]
mod tests;
pub mod time;
pub mod weights;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype as FileDtype;
use interlingua_recipes::{Recipe, Recompute};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use settings::{DataFacts, DeviceKind, Settings};
use shapes::Shapes;

/// What a run takes. Bytes, and seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// On the device.
    pub device: DeviceMemory,
    /// In host memory, memory-mapped files apart. On a CPU it is on top of the device's, which is host memory too.
    pub host: HostMemory,
    /// Estimate of an optimizer step.
    pub step_seconds: f64,
    /// What the plan is for.
    pub of: Subject,
}

/// What a plan is for: the keys of the recipe that it depends on most, as they would be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// `cpu` or `cuda`.
    pub device: String,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub gradient_accumulation: usize,
    /// Tokens of a micro-batch, at most.
    pub tokens: u64,
    /// `none` or `block`.
    pub recompute: String,
    /// `none`, `activations` or `weights`.
    pub offload: String,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Processes that share the run, where there are several: then the plan is of one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world_size: Option<usize>,
    /// What each of several processes holds: `ddp`, `zero1` or `zero3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
}

/// Bytes on the device by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// The model's weights, and those of a reference.
    pub weights: u64,
    /// The adapter's.
    pub adapter: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// The optimizer's moments.
    pub optimizer: u64,
    /// What is kept of each block's input.
    pub block_inputs: u64,
    /// Graphs of blocks, and what one block holds while it computes.
    pub activations: u64,
    /// A chunk of logits with its gradient.
    pub logits: u64,
    /// Buffers of operations, and what a step reads.
    pub workspace: u64,
    /// The highest moment.
    pub total: u64,
}

/// Bytes in host memory by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// Tokenizer and data.
    pub data: u64,
    /// Block inputs that live here.
    pub block_inputs: u64,
    /// Weights that live here; those in a memory-mapped file count nothing.
    pub weights: u64,
    /// All of them.
    pub total: u64,
}

impl DeviceMemory {
    /// The parts with their names in `plan.json`.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("adapter", self.adapter),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("block_inputs", self.block_inputs),
            ("activations", self.activations),
            ("logits", self.logits),
            ("workspace", self.workspace),
        ]
    }

    /// The largest part with its name.
    pub fn largest(&self) -> (&'static str, u64) {
        let parts = self.parts();
        parts.into_iter().max_by_key(|(_, bytes)| *bytes).unwrap_or(("", 0))
    }
}

impl Plan {
    /// What `memory_bytes` will show at most: the device's memory; on a CPU all of it, since there it is one.
    pub fn peak(&self) -> u64 {
        if self.of.device == DeviceKind::Cpu.name() {
            self.device.total + self.host.total
        } else {
            self.device.total
        }
    }
}

/// Plans a recipe's run, as often as one likes under other settings.
#[derive(Clone, Debug)]
pub struct Planner {
    /// The recipe's settings.
    pub settings: Settings,
    config: ModelConfig,
    shapes: Shapes,
}

impl Planner {
    /// For a recipe of one stage and the shape of its model, on a kind of device. `data`: what is known of the data, where it is
    /// tokenised; without it, every row is as long as the recipe allows.
    ///
    /// # Errors
    /// When a pattern of the recipe is none, or its adapter does not fit the model.
    pub fn new(
        recipe: &Recipe,
        config: &ModelConfig,
        file: FileDtype,
        device: DeviceKind,
        data: Option<DataFacts>,
    ) -> Result<Self, TrainError> {
        let settings = Settings::of(recipe, config, file, device, data);
        let languages = data.map_or_else(|| languages(recipe), |data| data.languages);
        let shapes = Shapes::of(recipe, config, languages)?;
        Ok(Self {
            settings,
            config: config.clone(),
            shapes,
        })
    }

    /// Numbers that are trained.
    pub fn trainable_parameters(&self) -> u64 {
        self.shapes.trained_elements()
    }

    /// The plan under the recipe's settings.
    pub fn plan(&self) -> Plan {
        self.under(&self.settings)
    }

    /// The plan under other settings.
    pub fn under(&self, settings: &Settings) -> Plan {
        let (device, host) = moments::memory(&self.config, &self.shapes, settings);
        let has_others = settings.world > 1;
        Plan {
            device,
            host,
            step_seconds: time::step_seconds(&self.config, &self.shapes, settings),
            of: Subject {
                device: settings.device.name().to_owned(),
                batch_size: settings.rows,
                gradient_accumulation: settings.accumulation,
                tokens: settings.tokens(),
                recompute: if settings.recompute { "block" } else { "none" }.to_owned(),
                offload: settings.offload.name().to_owned(),
                trainable_parameters: self.trainable_parameters(),
                world_size: has_others.then_some(settings.world),
                strategy: has_others.then(|| settings.strategy.name().to_owned()),
            },
        }
    }

    /// Decides what `recompute = "auto"` means: graphs are kept where they fit into the budget or, without one, into the memory
    /// that is available; where neither is known, they are kept. Weights that processes share are gone before the backward pass,
    /// and graphs with them. Set the number of processes before.
    pub fn decide(&mut self, wanted: Recompute, budget: Option<u64>, available: Option<u64>) {
        self.settings.recompute = match wanted {
            _ if self.settings.spreads_blocks() => true,
            Recompute::None => false,
            Recompute::Block => true,
            Recompute::Auto => {
                let keeping = Settings {
                    recompute: false,
                    ..self.settings.clone()
                };
                let limit = budget.or(available);
                limit.is_some_and(|limit| self.under(&keeping).peak() > limit)
            }
        };
    }
}

/// The languages that a recipe names, at least one.
fn languages(recipe: &Recipe) -> usize {
    let mut named: Vec<&str> = recipe
        .data
        .sources
        .iter()
        .filter_map(|source| source.lang.as_deref())
        .collect();
    named.sort_unstable();
    named.dedup();
    named.len().max(1)
}
