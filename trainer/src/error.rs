//! What can go wrong in training, generation and export.

use std::path::{Path, PathBuf};

use interlingua_checkpoints::CheckpointError;
use interlingua_data::DataError;
use interlingua_recipes::RecipeError;

/// An error of the trainer. Messages say what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data is wrong.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model, adapter or checkpoint is wrong, or cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device is not there.
    #[error("{0}")]
    Device(String),
    /// The processes of a run cannot be connected.
    #[error("{0}")]
    Collectives(String),
    /// Recipe, model and output folder do not fit together.
    #[error("{0}")]
    Setup(String),
    /// The loss or a gradient is not a finite number.
    #[error(
        "step {step}: the {what} is not a finite number. Languages of the batch: {languages}. Samples: {samples}. \
         Nothing that was saved has been changed. Lower optimizer.learning_rate, or look at these samples"
    )]
    NotFinite {
        /// The optimizer step, 1 is the first.
        step: u64,
        /// Loss or gradient.
        what: &'static str,
        /// Languages of the step's batch.
        languages: String,
        /// Samples of the step's batch.
        samples: String,
    },
    /// What a model says of an item of a task is not a finite number.
    #[error(
        "evaluation, item {item} in {language}: what the model computes are not finite numbers. Its weights are damaged, or \
         overflow in this number format: try model.dtype = \"f32\""
    )]
    Evaluation {
        /// The item.
        item: String,
        /// Its language.
        language: String,
    },
    /// A file of the run cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A value cannot be written as JSON.
    #[error("{what} cannot be written as JSON: {source}")]
    Encode {
        /// What it is.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// Something failed after the run had started.
    #[error(transparent)]
    Running(Box<TrainError>),
}

impl TrainError {
    /// A file of the run that cannot be read or written.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// The same error, marked as one of a run that had started.
    pub fn while_running(self) -> Self {
        match self {
            Self::Running(_) => self,
            other => Self::Running(Box::new(other)),
        }
    }

    /// The process's exit code: 2 when nothing was started, 1 when it failed while running.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Running(_) | Self::NotFinite { .. } => 1,
            _ => 2,
        }
    }
}
