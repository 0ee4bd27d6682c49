//! `metrics.jsonl`: one row per line, appended as the run goes; on resume, rows after the checkpoint are cut.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use interlingua_checkpoints::atomic::write_atomically;
use interlingua_data::order::Share;
use interlingua_recipes::Metric;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::TrainError;

/// Loss, tokens and samples of one language in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LanguageLoss {
    /// Mean loss per supervised token; of preferences per pair or sample.
    pub loss: f64,
    /// Supervised tokens.
    pub tokens: u64,
    /// Sequences, pairs or groups of options.
    pub samples: u64,
    /// Rewards of preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

/// Implicit rewards of a step's preferences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Mean reward of the chosen, or desirable, answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<f64>,
    /// Mean reward of the rejected, or undesirable, answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<f64>,
    /// Their difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Share of the pairs whose chosen answer has the higher reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainRow {
    /// 1 is the first.
    pub step: u64,
    /// Seconds since the start of the run.
    pub time: f64,
    /// The total.
    pub loss: f64,
    /// Its parts by name, weights not applied.
    pub losses: BTreeMap<String, f64>,
    /// Supervised tokens.
    pub tokens: u64,
    /// All tokens.
    pub tokens_total: u64,
    /// Global l2 norm of the gradients before clipping; not a number, `null` in the file, in a skipped step.
    #[serde(deserialize_with = "null_as_nan")]
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of any kind per second.
    pub tokens_per_second: f64,
    /// Duration of the step.
    pub step_seconds: f64,
    /// Peak of our allocations so far, bytes.
    pub memory_bytes: u64,
    /// What the loss was multiplied by, where gradients are computed in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Steps of the run so far that changed nothing because gradients overflowed, this one included; in f16 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// Rewards, where preferences are trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
    /// Shares asked and reached, where the recipe asks for any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<String, Share>,
    /// By language.
    pub by_language: BTreeMap<String, LanguageLoss>,
}

/// JSON has no word for what is not a number but `null`.
fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Keys are text in JSON, and in a row that has a `kind` serde leaves them so.
fn by_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<usize, f64>, D::Error> {
    let sizes = BTreeMap::<String, f64>::deserialize(deserializer)?;
    let sizes = sizes
        .into_iter()
        .map(|(size, value)| Ok((size.parse().map_err(D::Error::custom)?, value)));
    sizes.collect()
}

/// Values at each layer, by metric and series.
type Layers = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// The same for values by layer.
fn nulls_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Layers, D::Error> {
    let layers = BTreeMap::<String, BTreeMap<String, Vec<Option<f64>>>>::deserialize(deserializer)?;
    let values = |values: Vec<Option<f64>>| values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect();
    let series = |series: BTreeMap<String, Vec<Option<f64>>>| {
        let series = series.into_iter();
        series.map(|(name, list)| (name, values(list))).collect()
    };
    Ok(layers
        .into_iter()
        .map(|(metric, list)| (metric, series(list)))
        .collect())
}

/// One evaluation task at one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Steps done; 0 is before the first.
    pub step: u64,
    /// Seconds since the start of the run.
    pub time: f64,
    /// Name of the task.
    pub task: String,
    /// Metric by name, by language.
    pub by_language: BTreeMap<String, BTreeMap<String, f64>>,
    /// Mean over languages, by metric.
    pub mean: BTreeMap<String, f64>,
    /// How far the other languages are behind the anchor on average, by metric: positive where they are worse. Without the anchor
    /// the largest difference between two languages.
    pub gap: BTreeMap<String, f64>,
    /// What it is over, by language.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub items: BTreeMap<String, u64>,
    /// 95 % bootstrap intervals by metric, by language.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<String, BTreeMap<String, [f64; 2]>>,
    /// Mean share of items answered the same over all subsets of three languages, or of two where there are no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<f64>,
    /// Harmonic mean of mean accuracy and `consistency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ac3: Option<f64>,
    /// Mean share of items answered the same in two languages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlc: Option<f64>,
    /// `consistency` by the size of the subsets.
    #[serde(default, deserialize_with = "by_size", skip_serializing_if = "BTreeMap::is_empty")]
    pub consistency_by_size: BTreeMap<usize, f64>,
    /// `ac3` by the size of the subsets.
    #[serde(default, deserialize_with = "by_size", skip_serializing_if = "BTreeMap::is_empty")]
    pub ac3_by_size: BTreeMap<usize, f64>,
    /// How unequally the tokenizer's costs are spread over the languages: 0 where all pay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gini: Option<f64>,
    /// By metric, and by language, direction or "mean": the value at each of `hidden_states.0` to `.L`; not a number, `null` in the
    /// file, where it is not defined.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nulls_as_nan"
    )]
    pub layers: Layers,
    /// By language: the share of each expert in each block, as its tokens were routed; blocks without experts are empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub experts: BTreeMap<String, Vec<Vec<f64>>>,
    /// A few prompts with what the model answered and what was expected; not written to the file.
    #[serde(skip)]
    pub examples: Vec<Example>,
}

impl EvalRow {
    /// What early stopping waits for: a number across languages, or the mean over languages; none where the task does not have it.
    pub fn value_of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Consistency => self.consistency,
            Metric::Ac3 => self.ac3,
            Metric::Mlc => self.mlc,
            Metric::Gap => MAIN.iter().find_map(|name| self.gap.get(*name)).copied(),
            other => self.mean.get(other.name()).copied(),
        }
    }
}

/// The metrics that a task is about, before others that it has.
const MAIN: [&str; 9] = [
    "accuracy",
    "exact_match",
    "f1",
    "intent_accuracy",
    "label_f1",
    "chrf",
    "bleu",
    "retrieval",
    "loss",
];

/// A prompt, the model's answer and the expected one.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its language.
    pub language: String,
    /// What the user asked.
    pub prompt: String,
    /// What the model answered.
    pub answer: String,
    /// What was expected.
    pub reference: String,
}

/// Something worth a line: a resume, a checkpoint, a warning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Steps done.
    pub step: u64,
    /// Seconds since the start of the run.
    pub time: f64,
    /// What happened.
    pub event: String,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Row {
    /// An optimizer step.
    Train(TrainRow),
    /// An evaluation.
    Eval(EvalRow),
    /// An event.
    Event(EventRow),
}

impl Row {
    /// The step it belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Self::Train(row) => row.step,
            Self::Eval(row) => row.step,
            Self::Event(row) => row.step,
        }
    }

    /// Seconds since the start of the run.
    pub fn time(&self) -> f64 {
        match self {
            Self::Train(row) => row.time,
            Self::Eval(row) => row.time,
            Self::Event(row) => row.time,
        }
    }
}

/// The open file, and the rows that were in it.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Seconds that earlier starts of this run took.
    pub time_before: f64,
}

impl Metrics {
    /// Opens the file of an output folder for a run that goes on after `step`: rows of later steps are cut, as is a last
    /// line that a killed process left unfinished.
    pub fn open(output: &Path, step: u64) -> Result<(Self, Vec<Row>), TrainError> {
        let path = output.join("metrics.jsonl");
        let rows: Vec<Row> = read_rows(&path)?
            .into_iter()
            .filter(|row| row.step() <= step && (step > 0))
            .collect();
        let mut text = String::new();
        for row in &rows {
            text.push_str(&line(row)?);
        }
        write_atomically(&path, text.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| TrainError::io(&path, source))?;
        let time_before = rows.iter().map(Row::time).fold(0.0, f64::max);
        Ok((
            Self {
                path,
                file,
                time_before,
            },
            rows,
        ))
    }

    /// All rows that are in the file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Vec<Row>, TrainError> {
        read_rows(&self.path)
    }

    /// Appends one row, whole.
    pub fn write(&mut self, row: &Row) -> Result<(), TrainError> {
        let line = line(row)?;
        self.file
            .write_all(line.as_bytes())
            .map_err(|source| TrainError::io(&self.path, source))
    }
}

/// The rows of a metrics file; none when there is no file. A line that cannot be read, such as the last one of a killed
/// process, ends the reading.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, TrainError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(TrainError::io(path, source)),
    }
}

fn line(row: &Row) -> Result<String, TrainError> {
    let text = serde_json::to_string(row).map_err(|source| TrainError::Encode {
        what: "a metrics row",
        source,
    })?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_with_all_of_its_numbers_is_read_as_it_was_written() {
        let numbers = BTreeMap::from([("accuracy".to_owned(), 0.5)]);
        let sizes = BTreeMap::from([(2, 0.5), (10, 0.25)]);
        let row = Row::Eval(EvalRow {
            step: 3,
            task: "questions".to_owned(),
            by_language: BTreeMap::from([("sw".to_owned(), numbers.clone())]),
            mean: numbers,
            items: BTreeMap::from([("sw".to_owned(), 8)]),
            intervals: BTreeMap::from([("sw".to_owned(), BTreeMap::from([("accuracy".to_owned(), [0.25, 0.75])]))]),
            consistency: Some(0.5),
            consistency_by_size: sizes.clone(),
            ac3_by_size: sizes,
            layers: BTreeMap::from([("cka".to_owned(), BTreeMap::from([("sw".to_owned(), vec![0.5, 1.0])]))]),
            ..EvalRow::default()
        });
        let text = line(&row).unwrap();
        assert!(text.contains(r#""consistency_by_size":{"2":0.5,"10":0.25}"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
