//! Which data each step reads: the order of the main data, the data of auxiliary losses, and how the two alternate.

use std::collections::BTreeMap;

use interlingua_data::dataset::Dataset;
use interlingua_data::order::{Order, Plan, Share};
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{Length, ObjectiveKind, Recipe};

use super::auxiliary::AuxiliaryLoss;
use super::step::{RankData, StepData};
use super::units::Units;
use crate::error::TrainError;

/// Which data each step of a run reads.
pub struct DataPlan {
    /// None when there is no main loss.
    order: Option<Order>,
    units: Units,
    /// Whether a step reads whole groups, so many micro-batches as they fill.
    in_groups: bool,
    notes: Vec<String>,
    /// This process among those that share the steps, and how many they are.
    rank: usize,
    world: usize,
    /// Whether some loss compares samples over all ranks.
    compares: bool,
    /// Optimizer steps of the run.
    pub total_steps: u64,
}

impl DataPlan {
    /// That of a recipe on its data, for a model of so many blocks, as one of `world` processes sees it.
    ///
    /// # Errors
    /// When the data has not enough rows for a step, when a share is asked for of what has none, when no group can be used,
    /// or when an auxiliary loss has no data or no such layer.
    pub fn of(
        recipe: &Recipe,
        blocks: usize,
        data: &Prepared,
        (rank, world): (usize, usize),
    ) -> Result<Self, TrainError> {
        let units = Units::of(recipe);
        let (passes, mut notes) = AuxiliaryLoss::check(recipe, blocks, data, world)?;
        let mut auxiliary = recipe.objective.auxiliary.iter();
        let in_batch = auxiliary.any(|auxiliary| auxiliary.kind.compares_samples());
        let compares = world > 1 && (in_batch || recipe.objective.kind == ObjectiveKind::Kto);
        let closed_form = recipe.adapter.is_closed_form();
        if closed_form || !recipe.objective.reads_main_data() {
            let total_steps = match closed_form {
                true => 0,
                false => steps_without_main(recipe, passes, data)?,
            };
            return Ok(Self {
                order: None,
                units,
                in_groups: false,
                notes,
                rank,
                world,
                compares,
                total_steps,
            });
        }
        // Steps count all units; the order of the main data counts those that read it.
        let mut main = recipe.clone();
        if let Length::Steps(steps) = recipe.train.length() {
            main.train.steps = Some(units.main_steps_in(steps).max(1));
        }
        let (order, main_steps) = Order::for_recipe(&main, &data.train, world)?;
        let total_steps = match recipe.train.length() {
            Length::Steps(steps) => steps,
            Length::Tokens(_) | Length::Epochs(_) => units.steps_for(main_steps),
        };
        notes.extend_from_slice(order.notes());
        Ok(Self {
            order: Some(order),
            units,
            in_groups: recipe.data.parallel.is_some(),
            notes,
            rank,
            world,
            compares,
            total_steps,
        })
    }

    /// What a person should know about what is read, in whole sentences.
    pub fn notes(&self) -> impl Iterator<Item = String> + '_ {
        self.notes.iter().cloned()
    }

    /// What the whole run reads of each language and source of the main data.
    pub fn shares_of_the_run(&self, train: &Dataset) -> Plan {
        let steps = self.units.main_steps_in(self.total_steps);
        let order = self.order.as_ref();
        order
            .map(|order| order.plan_shares(train, steps, self.world))
            .unwrap_or_default()
    }

    /// Share of the places of packed rows that hold a token; 1 without main data.
    pub fn fill_rate(&self) -> f64 {
        self.order.as_ref().map_or(1.0, Order::fill_rate)
    }

    /// Shares asked and reached at a step, counted from 0; empty when the recipe asks for none.
    pub fn shares(&self, step: u64) -> BTreeMap<String, Share> {
        let main_step = self.units.main_steps_in(step + 1).checked_sub(1);
        let shares = main_step.and_then(|step| self.order.as_ref()?.shares(step, self.world));
        shares.map(|shares| shares.by).unwrap_or_default()
    }

    /// What this process reads in a step, counted from 0: micro-batches of the main loss, and those of auxiliary losses with data of
    /// their own; and the same of all processes, where a loss compares their samples.
    pub fn step(&self, train: &Dataset, auxiliary: &[AuxiliaryLoss], step: u64) -> StepData {
        let own = self.of_rank(train, auxiliary, step, self.rank);
        let ranks = 0..if self.compares { self.world } else { 0 };
        StepData {
            all: ranks.map(|rank| self.of_rank(train, auxiliary, step, rank)).collect(),
            own,
        }
    }

    fn of_rank(&self, train: &Dataset, auxiliary: &[AuxiliaryLoss], step: u64, rank: usize) -> RankData {
        let (counters, world) = (self.units.main(step), self.world);
        let main = match &self.order {
            None => Vec::new(),
            Some(_) if counters.is_empty() => Vec::new(),
            Some(order) if self.in_groups => {
                order.micro_batches(train, self.units.main_steps_before(step), rank, world)
            }
            Some(order) => counters
                .into_iter()
                .map(|counter| order.micro_batch_at(train, counter, rank, world))
                .collect(),
        };
        let auxiliary = auxiliary.iter().enumerate();
        RankData {
            main,
            auxiliary: auxiliary
                .map(|(index, loss)| loss.units(&self.units.auxiliary(index, step), rank, world))
                .collect(),
        }
    }
}

/// Steps of a run without a main loss: its epochs are those of the longest of its sources. `passes`: micro-batches of one
/// pass over the source of each auxiliary loss.
fn steps_without_main(recipe: &Recipe, passes: Vec<u64>, data: &Prepared) -> Result<u64, TrainError> {
    let micro_steps = recipe.train.gradient_accumulation as u64;
    let per_epoch = passes.into_iter().max().unwrap_or(0) as f64 / micro_steps as f64;
    Ok(match recipe.train.length() {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => ((epochs * per_epoch).ceil() as u64).max(1),
        Length::Tokens(tokens) => {
            let sources = data.auxiliary.values();
            let all: u64 = sources
                .map(|source| {
                    (0..source.len())
                        .map(|sample| source.length(sample) as u64)
                        .sum::<u64>()
                })
                .sum();
            ((tokens as f64 / all.max(1) as f64 * per_epoch).ceil() as u64).max(1)
        }
    })
}
