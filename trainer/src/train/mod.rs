//! The run: from a recipe to an adapter or a model, with checkpoints, metrics and evaluation on the way.

pub mod auxiliary;
pub mod batch_losses;
pub mod checkpoint;
pub mod closed_form;
pub mod global_batch;
pub mod loss_scale;
pub mod main_loss;
pub mod measurement;
pub mod memory;
pub mod merge;
pub mod metrics;
pub mod plan;
pub mod ranks;
pub mod reference;
pub mod run;
pub mod selection;
pub mod setup;
pub mod step;
pub mod summary;
pub mod units;
pub mod update;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interlingua_data::prepare::Progress;
use interlingua_recipes::Recipe;

use crate::collectives::{Alone, Collectives};
use crate::error::TrainError;
use crate::plan::Plan;
use metrics::{EvalRow, TrainRow};
use summary::Summary;

/// How a run is started.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Move an existing output folder aside and start anew.
    pub fresh: bool,
    /// The processes that share the run. All of them start it with the same recipe; the first one writes the files.
    pub collectives: Arc<dyn Collectives>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            fresh: false,
            collectives: Arc::new(Alone),
        }
    }
}

/// Set from outside to end a run after the step it is in.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks the run to finish its step, save and leave.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked to.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a run tells whoever watches it.
#[derive(Debug)]
pub enum Event {
    /// Data is being tokenised.
    Preparing(Progress),
    /// A stage of a pipeline begins, counted from 1.
    Stage {
        /// Its name.
        name: String,
        /// Its number.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// What the run will take, before anything is loaded.
    Planned(Box<Plan>),
    /// Everything is loaded; steps begin.
    Started(Started),
    /// A step is done.
    Step(TrainRow),
    /// An evaluation is done.
    Evaluated(EvalRow),
    /// A checkpoint is on disk.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// Something the user should know.
    Note(String),
    /// The run is over and everything is written.
    Finished(Box<Summary>),
}

/// What is known when steps begin.
#[derive(Clone, Debug)]
pub struct Started {
    /// Steps that were done before, by an earlier start.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Numbers of the model, adapter included.
    pub parameters: u64,
    /// Samples to train on, and held out.
    pub samples: (u64, u64),
    /// Share of the packed rows that holds tokens.
    pub fill_rate: f64,
    /// Where it computes, in words.
    pub device: String,
}

/// How a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// They were done before.
    AlreadyFinished,
    /// Stopped from outside, with everything saved.
    Stopped,
}

/// Trains as the recipe says, stage after stage. Goes on from the last checkpoint in the output folder.
pub fn train(
    recipe: &Recipe,
    options: TrainOptions,
    stop: &StopFlag,
    observe: &mut dyn FnMut(Event),
) -> Result<Outcome, TrainError> {
    let collectives = &options.collectives;
    if options.fresh
        && collectives.rank() == 0
        && let Some(moved) = interlingua_checkpoints::run_state::move_aside(&recipe.output)?
    {
        observe(Event::Note(format!("the old output folder is now {}", moved.display())));
    }
    // Nobody looks at the output folder before it has been moved.
    collectives.barrier();
    let stages = recipe.stages()?;
    let count = stages.len();
    let mut last = Outcome::AlreadyFinished;
    for (index, stage) in stages.iter().enumerate() {
        if count > 1 {
            let name = recipe.stage[index].name.clone();
            observe(Event::Stage {
                name,
                number: index + 1,
                count,
            });
        }
        let outcome = match &stage.merge {
            Some(merge) => ranks::first_alone(&**collectives, || merge::run(stage, merge, observe))?,
            None => run::run(stage, collectives, stop, observe)?,
        };
        match outcome {
            Outcome::Stopped => return Ok(Outcome::Stopped),
            Outcome::Finished => last = Outcome::Finished,
            Outcome::AlreadyFinished => {}
        }
    }
    Ok(last)
}
