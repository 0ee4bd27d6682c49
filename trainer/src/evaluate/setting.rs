//! What all tasks of a recipe share.

use interlingua_checkpoints::config::ModelConfig;
use interlingua_data::DataError;
use interlingua_data::task::TaskRow;
use interlingua_data::tokenize::SampleTokenizer;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Data, Recipe, Source, Task};

use crate::error::TrainError;

/// Tokenizer, template and shape of the model.
pub(super) struct Setting {
    pub(super) tokenizer: Tokenizer,
    pub(super) config: ModelConfig,
    pub(super) on_bad_row: interlingua_recipes::BadRow,
    data: Data,
}

impl Setting {
    pub(super) fn new(recipe: &Recipe, tokenizer: &Tokenizer, config: &ModelConfig) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            config: config.clone(),
            on_bad_row: recipe.data.on_bad_row,
            data: recipe.data.clone(),
        }
    }

    /// Longest text in tokens.
    pub(super) fn max_length(&self) -> usize {
        self.data.max_length
    }

    /// What makes tokens of a task's rows.
    pub(super) fn tokenize(&self, task: &Task) -> Result<SampleTokenizer, DataError> {
        let mut data = self.data.clone();
        data.sources = vec![Source::new(&task.name, &task.path, task.format)];
        SampleTokenizer::new(&self.tokenizer, &data, self.config.vocab_size)
    }
}

/// What is wrong with a row of a task.
pub(super) fn wrong(task: &Task, row: &TaskRow, problem: &str) -> TrainError {
    TrainError::Setup(format!("eval task `{}`, {}: {problem}", task.name, row.sample.place))
}
