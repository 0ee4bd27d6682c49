//! What fits into a budget: the largest batch at the recipe's length, and the longest sequence.

use interlingua_recipes::{Offload, Strategy};

use super::settings::{DeviceKind, Settings};
use super::{Plan, Planner};
use crate::error::TrainError;

/// The shortest sequence that is worth training on, in tokens.
const SHORTEST: usize = 64;

/// Settings that fit, with their plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// What to use.
    pub settings: Settings,
    /// What that takes.
    pub plan: Plan,
}

/// What fits into a budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposals {
    /// The largest batch at the recipe's length, with as many samples a step as the recipe says; none when not even one row
    /// of that length fits.
    pub largest_batch: Option<Proposal>,
    /// The longest sequences, one row at a time.
    pub longest: Proposal,
}

impl Planner {
    /// What fits into so many bytes, with no more recomputation and offloading than that needs.
    ///
    /// # Errors
    /// When not even one short sequence does.
    pub fn fit(&self, budget: u64) -> Result<Proposals, TrainError> {
        let ladder = self.ladder();
        let Some(longest) = self.longest(&ladder, budget) else {
            let smallest = self.smallest(&ladder);
            let (part, bytes) = smallest.device.largest();
            return Err(TrainError::Setup(format!(
                "{} are too little for this recipe: one sequence of {} tokens takes {} ({part}: {}), with recompute = \"{}\" and \
                 offload = \"{}\"; use a smaller or quantised model, a smaller adapter, or a budget of at least {}",
                in_words(budget),
                SHORTEST.min(self.settings.length),
                in_words(smallest.peak()),
                in_words(bytes),
                smallest.of.recompute,
                smallest.of.offload,
                in_words(smallest.peak()),
            )));
        };
        Ok(Proposals {
            largest_batch: self.largest_batch(&ladder, budget),
            longest,
        })
    }

    /// Ways to spend less memory and more time, the quickest one first; those that the recipe asks for are never taken back.
    fn ladder(&self) -> Vec<Settings> {
        let mut ladder = vec![self.settings.clone()];
        let mut step = |change: &dyn Fn(&mut Settings) -> bool| {
            let mut next = ladder[ladder.len() - 1].clone();
            if change(&mut next) {
                ladder.push(next);
            }
        };
        step(&|next| !std::mem::replace(&mut next.recompute, true));
        step(&|next| std::mem::replace(&mut next.block_input_number, 2) != 2);
        step(&|next| {
            let offloads = next.device == DeviceKind::Cuda && next.offload == Offload::None;
            if offloads {
                next.offload = Offload::Activations;
            }
            offloads
        });
        step(&|next| {
            // Processes that keep pieces of the weights keep them on their devices.
            let offloads = next.strategy != Strategy::Zero3 && next.offload != Offload::Weights;
            if offloads {
                next.offload = Offload::Weights;
            }
            offloads
        });
        ladder
    }

    fn fits(&self, settings: &Settings, budget: u64) -> bool {
        self.under(settings).peak() <= budget
    }

    fn proposal(&self, settings: Settings) -> Proposal {
        let plan = self.under(&settings);
        Proposal { settings, plan }
    }

    /// The first way under which the recipe's own batch fits; else the one with the largest batch.
    fn largest_batch(&self, ladder: &[Settings], budget: u64) -> Option<Proposal> {
        let samples = self.settings.rows * self.settings.accumulation;
        let fitting = |way: &Settings| {
            let batches = (1..=samples).rev().filter(|rows| samples.is_multiple_of(*rows));
            let mut batches = batches.map(|rows| way.with_rows(rows, self.settings.length));
            batches.find(|settings| self.fits(settings, budget))
        };
        let mut best: Option<Settings> = None;
        for settings in ladder.iter().filter_map(fitting) {
            if best.as_ref().is_none_or(|best| settings.rows > best.rows) {
                best = Some(settings);
            }
            if best.as_ref().is_some_and(|best| best.rows >= self.settings.rows) {
                break;
            }
        }
        best.map(|settings| self.proposal(settings))
    }

    /// The longest sequences that fit, one row at a time: the first way that reaches what the model was made for, else the one
    /// that reaches furthest.
    fn longest(&self, ladder: &[Settings], budget: u64) -> Option<Proposal> {
        let most = self.config.max_position_embeddings.max(self.settings.length);
        let mut best: Option<Settings> = None;
        for way in ladder {
            // What is known of the data says nothing about longer sequences.
            let way = Settings {
                row_tokens: usize::MAX,
                all_tokens: u64::MAX,
                ..way.clone()
            };
            let at = |length: usize| way.with_rows(1, length);
            let shortest = SHORTEST.min(self.settings.length);
            if !self.fits(&at(shortest), budget) {
                continue;
            }
            let (mut fits, mut too_long) = (shortest, most + 1);
            while too_long - fits > 1 {
                let middle = fits + (too_long - fits) / 2;
                if self.fits(&at(middle), budget) {
                    fits = middle;
                } else {
                    too_long = middle;
                }
            }
            if best.as_ref().is_none_or(|best| fits > best.length) {
                best = Some(at(fits));
            }
            if fits == most {
                break;
            }
        }
        best.map(|settings| self.proposal(settings))
    }

    /// The plan of one short sequence under the way that takes least.
    fn smallest(&self, ladder: &[Settings]) -> Plan {
        let shortest = SHORTEST.min(self.settings.length);
        let plans = ladder.iter().map(|way| self.under(&way.with_rows(1, shortest)));
        plans.min_by_key(Plan::peak).unwrap_or_else(|| self.plan())
    }

    /// Checks the plan against a budget.
    ///
    /// # Errors
    /// When it does not fit, naming the largest part and what would fit.
    pub fn check(&self, budget: u64) -> Result<(), TrainError> {
        let plan = self.plan();
        if plan.peak() <= budget {
            return Ok(());
        }
        let proposals = self.fit(budget)?;
        let (part, bytes) = plan.device.largest();
        let proposal = proposals.largest_batch.unwrap_or(proposals.longest);
        Err(TrainError::Setup(format!(
            "memory.budget is {}, but this run is planned to take {}, most of it for {part} ({}); these settings would take {}: {}",
            in_words(budget),
            in_words(plan.peak()),
            in_words(bytes),
            in_words(proposal.plan.peak()),
            self.changes(&proposal.settings).join(" ")
        )))
    }

    /// What to add to the command line to run under these settings.
    pub fn changes(&self, to: &Settings) -> Vec<String> {
        let from = &self.settings;
        let mut changes = Vec::new();
        let mut change = |key: &str, differs: bool, value: String| {
            if differs {
                changes.push(format!("--set {key}={value}"));
            }
        };
        change("train.batch_size", to.rows != from.rows, to.rows.to_string());
        let accumulation = to.accumulation.to_string();
        change(
            "train.gradient_accumulation",
            to.accumulation != from.accumulation,
            accumulation,
        );
        change("data.max_length", to.length != from.length, to.length.to_string());
        change("memory.recompute", to.recompute != from.recompute, "block".to_owned());
        let block_inputs = to.block_input_number != from.block_input_number;
        change("memory.block_inputs", block_inputs, "bf16".to_owned());
        change(
            "memory.offload",
            to.offload != from.offload,
            to.offload.name().to_owned(),
        );
        changes
    }
}

/// A number of bytes in binary units.
pub fn in_words(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_048_576 => (1u64 << 10, "KiB"),
        1_048_576..1_073_741_824 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{:.2} {name}", bytes as f64 / unit as f64)
}
