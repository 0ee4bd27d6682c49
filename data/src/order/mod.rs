//! Which samples each step sees: a pure function of recipe and dataset, without any iterator state.
//!
//! Training reads an endless stream of rows: all samples once per epoch (`passes`), or drawn so that languages have the shares that
//! `[data.mix]` asks for (`mixture`). With `B = batch_size × gradient_accumulation × world`, step `s` reads the rows
//! `s·B .. (s + 1)·B`, and micro-batch `m` of rank `r` the `batch_size` rows from `(m·world + r)·batch_size` on. So
//! (batch 8, accumulation 1), (1, 8) and two ranks of batch 4 see the same rows in a step.
//!
//! With `[data.parallel]` a step reads whole groups of translations (`groups`). Its rows are dealt to micro-batches and ranks in the
//! same way, as many micro-batches as they need.

mod classes;
mod curriculum;
mod epochs;
mod fair;
mod groups;
mod membership;
mod mixture;
mod passes;
mod shares;
#[cfg(test)]
mod testing;

use interlingua_recipes::{Length, MixBy, MixUnit, Parallel, Recipe};

use crate::batch::MicroBatch;
use crate::dataset::Dataset;
use crate::error::DataError;
use classes::Classes;
use curriculum::Curriculum;
use groups::Groups;
use mixture::{Clock, Mixture, units_per_epoch};
use passes::Passes;

pub use shares::{Plan, Planned, Share, Shares};

/// Rows, or steps of groups, up to which what a run reads is counted one by one; longer runs are estimated from the part.
const COUNTED_ROWS: u64 = 1 << 18;

/// Rows of a mixture that its fill rate is measured on.
const MEASURED_ROWS: usize = 4096;

/// The order in which training reads a dataset.
#[derive(Debug)]
pub struct Order {
    batch_size: usize,
    gradient_accumulation: usize,
    /// What shares are counted in, and of what.
    unit: MixUnit,
    by: MixBy,
    fill_rate: f64,
    notes: Vec<String>,
    arrangement: Arrangement,
}

#[derive(Debug)]
enum Arrangement {
    Passes(Passes),
    Mixture(Mixture),
    Groups(Groups),
}

/// How samples become rows.
#[derive(Debug, Clone, Copy)]
struct Layout {
    seed: u64,
    shuffle: bool,
    packing: bool,
    max_length: usize,
}

impl Order {
    /// The order that a recipe asks for on so many processes, and the number of its optimizer steps.
    ///
    /// A run of `epochs` ends with them: its last step can be partly filled, and some of its micro-batches empty. In file order
    /// (`shuffle = false`) batches are always full.
    ///
    /// # Errors
    /// When the data is shuffled and a step reads more rows or groups than there are, when a share is asked for of what has no
    /// row, or when no group can be used.
    pub fn for_recipe(recipe: &Recipe, dataset: &Dataset, world: usize) -> Result<(Self, u64), DataError> {
        let mut notes = Vec::new();
        let (arrangement, steps) = if let Some(parallel) = &recipe.data.parallel {
            groups_of(recipe, parallel, dataset, &mut notes)?
        } else if recipe.data.mix.is_active() {
            mixture_of(recipe, dataset, world, &mut notes)?
        } else {
            passes_of(recipe, dataset, world)?
        };
        let order = Order {
            batch_size: recipe.train.batch_size,
            gradient_accumulation: recipe.train.gradient_accumulation,
            unit: recipe.data.mix.unit,
            by: recipe.data.mix.by,
            fill_rate: arrangement.fill_rate(dataset, recipe.data.max_length),
            notes,
            arrangement,
        };
        Ok((order, steps))
    }

    /// What a person should know about what is read, in whole sentences: ratios that were scaled, groups that are left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Rows of one step over all ranks, without `[data.parallel]`.
    fn rows_per_step(&self, world: usize) -> u64 {
        (self.batch_size * self.gradient_accumulation * world) as u64
    }

    /// Share of the places of rows that hold a token: tokens / (rows × `max_length`), of epoch 0, or the first rows of a mixture. What
    /// is left of it costs nothing, as rows are not padded; it says how evenly full they are.
    pub fn fill_rate(&self) -> f64 {
        self.fill_rate
    }

    /// All micro-batches of one rank in one optimizer step, in order: `train.gradient_accumulation` of them, or with `[data.parallel]`
    /// as many as the step's rows need, equally many on every rank. `step` counts from 0. At the end of the run the last ones can be empty.
    pub fn micro_batches(&self, dataset: &Dataset, step: u64, rank: usize, world: usize) -> Vec<MicroBatch> {
        let rows = self.step_rows(step, rank, world);
        rows.iter().map(|rows| micro_batch(dataset, rows)).collect()
    }

    /// The micro-batch with this number of one rank: `counter` = step × `gradient_accumulation` + micro-step. Past the end of the
    /// run it is empty, and so it is with `[data.parallel]`, whose steps are not all of the same number of micro-batches.
    pub fn micro_batch_at(&self, dataset: &Dataset, counter: u64, rank: usize, world: usize) -> MicroBatch {
        let rows = self.rows_at(counter, rank, world);
        micro_batch(dataset, &rows)
    }

    /// The samples of a step's micro-batches, row by row.
    fn step_rows(&self, step: u64, rank: usize, world: usize) -> Vec<Vec<Vec<u32>>> {
        if let Arrangement::Groups(groups) = &self.arrangement {
            let rows = groups.step(step);
            let turns = rows.chunks(self.batch_size * world);
            let own = |turn: &[u32]| match turn.chunks(self.batch_size).nth(rank) {
                Some(rows) => rows.iter().map(|&sample| vec![sample]).collect(),
                None => Vec::new(),
            };
            return turns.map(own).collect();
        }
        let micro_steps = self.gradient_accumulation as u64;
        (step * micro_steps..(step + 1) * micro_steps)
            .map(|counter| self.rows_at(counter, rank, world))
            .collect()
    }

    fn rows_at(&self, counter: u64, rank: usize, world: usize) -> Vec<Vec<u32>> {
        let batch_size = self.batch_size as u64;
        let first = (counter * world as u64 + rank as u64) * batch_size;
        let rows = first..first + batch_size;
        match &self.arrangement {
            Arrangement::Passes(passes) => passes.rows(rows),
            Arrangement::Mixture(mixture) => mixture.rows(rows),
            Arrangement::Groups(_) => Vec::new(),
        }
    }

    /// What `[data.mix]` asks for at a step, and what was reached since the start of the phase of its schedule, up to and
    /// including the step; none without a mix.
    pub fn shares(&self, step: u64, world: usize) -> Option<Shares> {
        match &self.arrangement {
            Arrangement::Mixture(mixture) => Some(mixture.shares((step + 1) * self.rows_per_step(world))),
            Arrangement::Passes(_) | Arrangement::Groups(_) => None,
        }
    }

    /// What a run of so many steps reads of each language and source. Of a run too long to be counted row by row, what it is
    /// expected to read.
    pub fn plan_shares(&self, dataset: &Dataset, total_steps: u64, world: usize) -> Plan {
        let rows = total_steps * self.rows_per_step(world);
        let mut draws = vec![0.0; dataset.len()];
        let mut asked = Vec::new();
        match &self.arrangement {
            Arrangement::Passes(passes) => draws = passes.draws(rows),
            Arrangement::Mixture(mixture) if rows > COUNTED_ROWS => (draws, asked) = mixture.expected(rows),
            Arrangement::Mixture(mixture) => {
                let rows = mixture.all_rows().take(usize::try_from(rows).unwrap_or(usize::MAX));
                let counted = rows.inspect(|row| row.samples.iter().for_each(|&sample| draws[sample as usize] += 1.0));
                asked = mixture.mean_asked(counted);
            }
            Arrangement::Groups(groups) => {
                let counted = total_steps.min(COUNTED_ROWS);
                let rows = (0..counted).flat_map(|step| groups.step(step));
                rows.for_each(|sample| draws[sample as usize] += total_steps as f64 / counted as f64);
            }
        }
        let mut plan = shares::plan(dataset, &draws, self.unit);
        let classes = match self.by {
            MixBy::Language => &mut plan.languages,
            MixBy::Source => &mut plan.sources,
        };
        for (name, share) in asked {
            classes.entry(name).or_default().asked = Some(share);
        }
        plan
    }
}

impl Arrangement {
    fn fill_rate(&self, dataset: &Dataset, max_length: usize) -> f64 {
        let rows: Vec<Vec<u32>> = match self {
            Self::Passes(passes) => passes.rows(0..passes.rows_per_epoch()),
            Self::Mixture(mixture) => {
                let rows = mixture.all_rows().take(MEASURED_ROWS);
                rows.map(|row| row.samples).collect()
            }
            Self::Groups(groups) => groups.step(0).into_iter().map(|sample| vec![sample]).collect(),
        };
        let samples = rows.iter().flatten();
        let tokens: usize = samples.map(|&sample| dataset.length(sample as usize)).sum();
        tokens as f64 / (rows.len().max(1) * max_length) as f64
    }
}

fn passes_of(recipe: &Recipe, dataset: &Dataset, world: usize) -> Result<(Arrangement, u64), DataError> {
    let passes = Passes::new(dataset, layout(recipe, dataset));
    let (rows, wanted) = (passes.rows_per_epoch(), rows_per_step(recipe, world));
    if recipe.data.shuffle && rows < wanted {
        return Err(DataError::BatchTooLarge {
            wanted,
            batch_size: recipe.train.batch_size,
            gradient_accumulation: recipe.train.gradient_accumulation,
            world,
            samples: dataset.len(),
            rows,
        });
    }
    let steps = |rows: u64| rows.div_ceil(wanted).max(1);
    let (passes, steps) = match recipe.train.length() {
        Length::Steps(steps) => (passes, steps),
        Length::Tokens(tokens) => {
            let rows = passes.rows_for_tokens(tokens);
            (passes, steps(rows))
        }
        Length::Epochs(epochs) => {
            let rows = passes.rows_in(epochs);
            (passes.ending_after(epochs), steps(rows))
        }
    };
    Ok((Arrangement::Passes(passes), steps))
}

fn mixture_of(
    recipe: &Recipe,
    dataset: &Dataset,
    world: usize,
    notes: &mut Vec<String>,
) -> Result<(Arrangement, u64), DataError> {
    let mix = &recipe.data.mix;
    let classes = Classes::new(dataset, mix);
    let curriculum = Curriculum::new(&classes, mix, notes)?;
    let per_step = rows_per_step(recipe, world);
    let clock = match recipe.train.length() {
        Length::Steps(steps) => Clock::Rows(steps * per_step),
        Length::Tokens(tokens) => Clock::Tokens(tokens),
        Length::Epochs(epochs) => {
            let units = epochs * units_per_epoch(&classes, mix) as f64;
            Clock::Units(units.round().max(1.0) as u64)
        }
    };
    let mixture = Mixture::new(dataset, classes, curriculum, (mix.unit, clock), layout(recipe, dataset));
    let rows = match clock {
        Clock::Rows(rows) => rows,
        Clock::Tokens(tokens) => mixture.rows_for_tokens(tokens),
        Clock::Units(units) => mixture.rows_for_units(units),
    };
    Ok((Arrangement::Mixture(mixture), rows.div_ceil(per_step).max(1)))
}

fn groups_of(
    recipe: &Recipe,
    parallel: &Parallel,
    dataset: &Dataset,
    notes: &mut Vec<String>,
) -> Result<(Arrangement, u64), DataError> {
    let groups = Groups::new(dataset, parallel, (recipe.seed, recipe.data.shuffle), notes)?;
    let (groups, steps) = match recipe.train.length() {
        Length::Steps(steps) => (groups, steps),
        Length::Tokens(tokens) => {
            let (mut read, mut steps) = (0, 0);
            while read < tokens {
                let rows = groups.step(steps).into_iter();
                read += rows
                    .map(|sample| dataset.length(sample as usize) as u64)
                    .sum::<u64>()
                    .max(1);
                steps += 1;
            }
            (groups, steps)
        }
        Length::Epochs(epochs) => {
            let steps = groups.steps_for_epochs(epochs);
            (groups.ending_after(epochs), steps)
        }
    };
    Ok((Arrangement::Groups(groups), steps))
}

/// How many rows, or steps, hold so many tokens or units, when `counted` of them hold `read`.
fn estimate(wanted: u64, read: u64, counted: u64) -> u64 {
    (wanted as f64 * counted as f64 / read.max(1) as f64).ceil() as u64
}

fn rows_per_step(recipe: &Recipe, world: usize) -> u64 {
    (recipe.train.batch_size * recipe.train.gradient_accumulation * world) as u64
}

/// How a recipe's samples become rows. Preferences, and samples of several sequences, are never packed: then each row is one sample.
fn layout(recipe: &Recipe, dataset: &Dataset) -> Layout {
    let several = |sample| dataset.parts(sample).nth(1).is_some();
    Layout {
        seed: recipe.seed,
        shuffle: recipe.data.shuffle,
        packing: recipe.data.packing && !recipe.objective.kind.is_preference() && !(0..dataset.len()).any(several),
        max_length: recipe.data.max_length,
    }
}

fn micro_batch(dataset: &Dataset, rows: &[Vec<u32>]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for row in rows {
        batch.rows += 1;
        for &sample in row {
            batch.push_sample(dataset, sample as usize);
        }
    }
    batch
}
