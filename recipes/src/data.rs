//! `[data]`: what is learnt from, and how it becomes batches.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mix::Mix;
use crate::parallel::Parallel;
use crate::source::Source;

/// What is learnt from, and how it becomes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Longest sequence in tokens.
    #[schemars(range(min = 2))]
    pub max_length: usize,
    /// What happens to a longer sequence.
    pub truncate: Truncate,
    /// Put several sequences in one row of max_length tokens. Each sees itself alone, and its positions start at 0.
    pub packing: bool,
    /// How messages become text: "auto" (the tokenizer's own template), the name of a built-in one such as "chatml" or
    /// "llama3", or a .jinja file (relative to the recipe file).
    #[schemars(length(min = 1))]
    pub template: String,
    /// Which tokens carry loss.
    pub train_on: TrainOn,
    /// Draw the rows in random order. false: file order, over and over; batches are always full.
    pub shuffle: bool,
    /// What happens at a row that cannot be read.
    pub on_bad_row: BadRow,
    /// Share of the rows kept for evaluation: whole groups, so that no translation leaks.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub holdout: f64,
    /// The files to learn from.
    pub sources: Vec<Source>,
    /// The share of each language, or source.
    pub mix: Mix,
    /// Batches of groups of equivalent samples, in place of single rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Parallel")]
    pub parallel: Option<Parallel>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            max_length: 1024,
            truncate: Truncate::Right,
            packing: true,
            template: "auto".to_owned(),
            train_on: TrainOn::Assistant,
            shuffle: true,
            on_bad_row: BadRow::Fail,
            holdout: 0.0,
            sources: Vec::new(),
            mix: Mix::default(),
            parallel: None,
        }
    }
}

/// What happens to a sequence longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Truncate {
    /// Its end is cut off.
    Right,
    /// It is left out, and counted.
    Drop,
}

/// Which tokens carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// What the assistant says, with its end-of-turn token.
    Assistant,
    /// All tokens.
    All,
}

/// What happens at a row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BadRow {
    /// The run ends, naming file and line.
    Fail,
    /// The row is left out, reported and counted.
    Skip,
}
