//! Two models on the same items: the difference of each metric, its interval, and whether chance explains it; and their answers side
//! by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use interlingua_metrics::bootstrap::{Paired, RESAMPLES, interval, paired};
use interlingua_metrics::side_by_side::{self, Judgment};
use interlingua_metrics::statistics::{Metric, Ratio, score};
use serde::{Deserialize, Serialize};

use super::answers::{Header, read_any};
use super::columns::{Column, columns};
use super::scores::{MEAN, SEED};
use super::work::{Answer, Said};
use crate::error::TrainError;

/// One metric of one task in one language, of two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The task.
    pub task: String,
    /// The language; `mean` for the mean over languages.
    pub language: String,
    /// The metric.
    pub metric: &'static str,
    /// How many items both answered.
    pub items: usize,
    /// Score of the first model.
    pub first: f64,
    /// Score of the second one.
    pub second: f64,
    /// Second minus first.
    pub difference: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// How often a difference as large comes by chance where the models are alike: paired approximate randomisation.
    pub p_value: f64,
}

/// The answers of two models to a task.
struct Both {
    header: Header,
    first: Vec<Answer>,
    second: Vec<Answer>,
}

/// The answers that two models gave to the same items.
pub struct Compared {
    tasks: Vec<Both>,
}

/// An item with the answers of two models, in the order in which a judge reads them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SideBySide {
    /// The task.
    pub task: String,
    /// The item's number in the task.
    pub number: usize,
    /// Its language.
    pub language: String,
    /// What was asked.
    pub prompt: String,
    /// The answer that is read first.
    pub first: String,
    /// The other one.
    pub second: String,
    /// Whether the first answer is that of the second model. Not for the judge.
    pub swapped: bool,
}

impl Compared {
    /// Reads the answers in two folders, of the tasks that both have.
    ///
    /// # Errors
    /// When a folder or file cannot be read or is damaged, no task is in both, or the items of a task differ.
    pub fn open(first: &Path, second: &Path) -> Result<Self, TrainError> {
        let names = |folder: &Path| -> Result<BTreeSet<std::ffi::OsString>, TrainError> {
            let entries = std::fs::read_dir(folder).map_err(|source| TrainError::io(folder, source))?;
            let files = entries.filter_map(Result::ok).map(|entry| entry.file_name());
            Ok(files
                .filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "jsonl"))
                .collect())
        };
        let (in_first, in_second) = (names(first)?, names(second)?);
        let mut tasks = Vec::new();
        for name in in_first.intersection(&in_second) {
            let (header, of_first) = read_any(&first.join(name))?;
            let (other, of_second) = read_any(&second.join(name))?;
            if header.task.kind != other.task.kind || header.task.measures != other.task.measures {
                return Err(differ(first, second, name, "the tasks differ"));
            }
            let key = |answer: &Answer| (answer.number, answer.language.clone(), answer.id.clone());
            if !of_first.iter().map(key).eq(of_second.iter().map(key)) {
                return Err(differ(
                    first,
                    second,
                    name,
                    "the items differ, or one of the two is not finished",
                ));
            }
            tasks.push(Both {
                header,
                first: of_first,
                second: of_second,
            });
        }
        if tasks.is_empty() {
            return Err(TrainError::Setup(format!(
                "{} and {} have no file of answers in common. Write them with `interlingua eval --save-answers DIR`, or eval.save_answers",
                first.display(),
                second.display()
            )));
        }
        Ok(Self { tasks })
    }

    /// The difference of every metric.
    pub fn comparisons(&self) -> Vec<Comparison> {
        self.tasks.iter().flat_map(of_task).collect()
    }

    /// The tasks that have no items to compare, as those about a tokenizer.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        let tasks = self
            .tasks
            .iter()
            .filter(|both| columns(&both.header.task, &both.first).is_empty());
        tasks.map(|both| both.header.task.name.as_str())
    }

    /// The texts that both wrote, each pair in both orders, for people or models to judge.
    pub fn side_by_side(&self) -> Vec<SideBySide> {
        let of_task = |both: &Both| {
            let pairs = both.first.iter().zip(&both.second);
            let rows = pairs.filter_map(|(first, second)| match (&first.said, &second.said) {
                (Said::Text { prompt, output, .. }, Said::Text { output: other, .. }) => {
                    let row = |swapped: bool| SideBySide {
                        task: both.header.task.name.clone(),
                        number: first.number,
                        language: first.language.clone(),
                        prompt: prompt.clone(),
                        first: if swapped { other } else { output }.clone(),
                        second: if swapped { output } else { other }.clone(),
                        swapped,
                    };
                    Some([row(false), row(true)])
                }
                _ => None,
            });
            rows.flatten().collect::<Vec<_>>()
        };
        self.tasks.iter().flat_map(of_task).collect()
    }
}

fn differ(first: &Path, second: &Path, name: &std::ffi::OsStr, why: &str) -> TrainError {
    TrainError::Setup(format!(
        "{} and {} cannot be compared: {why}",
        first.join(name).display(),
        second.join(name).display()
    ))
}

fn of_task(both: &Both) -> Vec<Comparison> {
    let task = &both.header.task;
    let pairs = columns(task, &both.first).into_iter().zip(columns(task, &both.second));
    pairs
        .flat_map(|(first, second)| of_metric(&task.name, &first, &second))
        .collect()
}

fn of_metric(task: &str, first: &Column, second: &Column) -> Vec<Comparison> {
    let languages = first.by_language.iter();
    let mut comparisons: Vec<Comparison> = languages
        .filter_map(|(language, of_first)| {
            let of_second = second.by_language.get(language)?;
            compared((task, language, first.name), of_first, of_second, &first.rule)
        })
        .collect();
    if first.by_language.len() > 1 && !first.groups.is_empty() {
        let place = (task, MEAN, first.name);
        comparisons.extend(compared(place, &first.groups, &second.groups, &first.mean()));
    }
    comparisons
}

/// Whether statistics are of the same items and things: those of labels are not where the two models gave other labels.
fn comparable(first: &[Vec<f64>], second: &[Vec<f64>]) -> bool {
    first.iter().map(Vec::len).eq(second.iter().map(Vec::len))
}

/// None where there is nothing to compare.
fn compared(
    (task, language, metric): (&str, &str, &'static str),
    first: &[Vec<f64>],
    second: &[Vec<f64>],
    rule: &impl Metric,
) -> Option<Comparison> {
    let Paired {
        difference,
        low,
        high,
        p_value,
    } = comparable(first, second).then(|| paired(second, first, rule, SEED, RESAMPLES))??;
    Some(Comparison {
        task: task.to_owned(),
        language: language.to_owned(),
        metric,
        items: first.len(),
        first: score(first, rule),
        second: score(second, rule),
        difference,
        interval: [low, high],
        p_value,
    })
}

/// A row that a judge has seen.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Judged {
    /// What was judged.
    #[serde(flatten)]
    pub row: SideBySide,
    /// `first`, `second` or `tie`.
    pub judgment: Judgment,
}

/// How often the second model wins in one language of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WinRate {
    /// The task.
    pub task: String,
    /// The language.
    pub language: String,
    /// Items that were judged in both orders.
    pub items: usize,
    /// Wins of the second model over the first; a tie is half a win, and so is a pair whose two orders disagree.
    pub win_rate: f64,
    /// Its 95 % interval; none with fewer than two items.
    pub interval: Option<[f64; 2]>,
}

/// The win rates that judgments give. Items that were judged in one order only count nothing.
pub fn win_rates(judged: &[Judged]) -> Vec<WinRate> {
    let mut items = BTreeMap::<(&str, &str, usize), [Option<Judgment>; 2]>::new();
    for Judged { row, judgment } in judged {
        let item = items.entry((&row.task, &row.language, row.number)).or_default();
        item[usize::from(row.swapped)] = Some(*judgment);
    }
    let mut by_language = BTreeMap::<(&str, &str), Vec<Vec<f64>>>::new();
    for ((task, language, _), orders) in items {
        // The second model's answer comes first in the swapped order.
        if let [Some(plain), Some(swapped)] = orders {
            let statistics = by_language.entry((task, language)).or_default();
            statistics.push(side_by_side::item(swapped, plain));
        }
    }
    let rates = by_language.into_iter().map(|((task, language), items)| WinRate {
        task: task.to_owned(),
        language: language.to_owned(),
        items: items.len(),
        win_rate: score(&items, &Ratio),
        interval: interval(&items, &Ratio, SEED, RESAMPLES),
    });
    rates.collect()
}
