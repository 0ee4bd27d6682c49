//! `summary.json`: the totals of a run, counted from the rows of `metrics.jsonl`, so that resumed runs are counted whole.

use std::collections::BTreeMap;
use std::path::Path;

use interlingua_checkpoints::atomic::write_atomically;
use interlingua_data::order::Plan;
use serde::{Deserialize, Serialize};

use super::metrics::{EvalRow, LanguageLoss, Rewards, Row};
use crate::error::TrainError;

/// Totals of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether the run reached its end.
    pub finished: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Optimizer steps.
    pub steps: u64,
    /// Supervised tokens.
    pub tokens: u64,
    /// All tokens.
    pub tokens_total: u64,
    /// Tokens of any kind per second of training.
    pub tokens_per_second: f64,
    /// Peak memory, bytes.
    pub peak_memory_bytes: u64,
    /// Seconds, starts that were interrupted included.
    pub wall_seconds: f64,
    /// Loss of the last step.
    pub loss: f64,
    /// Tokens and samples of the run by language, with the mean loss of the last tenth of its steps.
    pub by_language: BTreeMap<String, LanguageLoss>,
    /// Shares asked and reached over the run, and how often samples were seen, by language and source.
    #[serde(default)]
    pub shares: Plan,
    /// Rewards of the last step's preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
    /// Each loss of the last step by name, weights not applied.
    #[serde(default)]
    pub losses: BTreeMap<String, f64>,
    /// The first and the last evaluation of each task.
    pub evaluations: BTreeMap<String, FirstAndLast>,
}

/// The first and the last evaluation of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstAndLast {
    /// Before the first step.
    pub first: EvalRow,
    /// After the last one.
    pub last: EvalRow,
}

impl Summary {
    /// Counts the rows of a run.
    pub fn of_rows(rows: &[Row], finished: bool, stopped_early: bool) -> Self {
        let trained: Vec<_> = rows
            .iter()
            .filter_map(|row| match row {
                Row::Train(row) => Some(row),
                _ => None,
            })
            .collect();
        let mut by_language = BTreeMap::<String, LanguageLoss>::new();
        let tail = trained.len() - trained.len().div_ceil(10);
        let mut weighted = BTreeMap::<&str, (f64, u64)>::new();
        for (index, row) in trained.iter().enumerate() {
            for (language, loss) in &row.by_language {
                let total = by_language.entry(language.clone()).or_default();
                total.tokens += loss.tokens;
                total.samples += loss.samples;
                total.rewards = loss.rewards.or(total.rewards);
                if index >= tail {
                    let sum = weighted.entry(language).or_default();
                    sum.0 += loss.loss * loss.tokens as f64;
                    sum.1 += loss.tokens;
                }
            }
        }
        for (language, (sum, tokens)) in weighted {
            if let Some(total) = by_language.get_mut(language) {
                total.loss = sum / (tokens as f64).max(1.0);
            }
        }
        let mut evaluations = BTreeMap::<String, FirstAndLast>::new();
        for row in rows {
            if let Row::Eval(row) = row {
                let entry = evaluations.entry(row.task.clone());
                entry
                    .and_modify(|known| known.last = row.clone())
                    .or_insert_with(|| FirstAndLast {
                        first: row.clone(),
                        last: row.clone(),
                    });
            }
        }
        let seconds: f64 = trained.iter().map(|row| row.step_seconds).sum();
        let tokens_total: u64 = trained.iter().map(|row| row.tokens_total).sum();
        Self {
            finished,
            stopped_early,
            steps: trained.last().map_or(0, |row| row.step),
            tokens: trained.iter().map(|row| row.tokens).sum(),
            tokens_total,
            tokens_per_second: if seconds > 0.0 {
                tokens_total as f64 / seconds
            } else {
                0.0
            },
            peak_memory_bytes: trained.iter().map(|row| row.memory_bytes).max().unwrap_or(0),
            wall_seconds: rows.iter().map(Row::time).fold(0.0, f64::max),
            loss: trained.last().map_or(0.0, |row| row.loss),
            by_language,
            shares: Plan::default(),
            rewards: trained.last().and_then(|row| row.rewards),
            losses: trained.last().map(|row| row.losses.clone()).unwrap_or_default(),
            evaluations,
        }
    }

    /// Writes it into an output folder.
    pub fn write(&self, output: &Path) -> Result<(), TrainError> {
        let json = serde_json::to_value(self).map_err(|source| TrainError::Encode {
            what: "the summary",
            source,
        })?;
        let text = interlingua_checkpoints::write::pretty(&json)?;
        Ok(write_atomically(&output.join("summary.json"), text.as_bytes())?)
    }

    /// Removes that of an output folder, where there is one.
    pub fn remove(output: &Path) -> Result<(), TrainError> {
        let path = output.join("summary.json");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(&path, source)),
            _ => Ok(()),
        }
    }

    /// Reads that of an output folder, where there is one.
    pub fn read(output: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(output.join("summary.json")).ok()?).ok()
    }
}
