//! Evaluation: the held-out samples and the tasks of a recipe, during a run or alone.
//!
//! A task becomes `Work` (`work.rs`): numbered items, each of which the model answers by itself. A score is a function of the answers
//! alone, so answers can be dealt to several processes, kept in a file, gone on with after an interruption, and scored again. One
//! file for each kind of task.

mod answers;
mod columns;
mod compare;
mod generate;
mod heldout;
mod likelihood;
mod logit_lens;
mod multiple_choice;
mod parallel;
mod perplexity;
mod pooled;
mod prompts;
mod retrieval;
mod scores;
mod setting;
mod similarity;
mod tokenizer;
mod work;

use std::path::{Path, PathBuf};

use interlingua_checkpoints::config::ModelConfig;
use interlingua_data::DataError;
use interlingua_data::task::{TaskRow, read_task, reread};
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Metric, Recipe, Task, TaskKind};

use crate::error::TrainError;
use crate::models::Model;
use crate::train::metrics::EvalRow;
use crate::train::ranks::Deal;

pub use answers::{Answers, model_fingerprint};
pub use compare::{Compared, Comparison, Judged, SideBySide, WinRate, win_rates};
pub use heldout::{HELDOUT, Heldout};
pub use work::{Answer, Said};

use heldout::heldout_losses;
use setting::Setting;
use work::Work;

/// Everything to evaluate on, read and tokenised once.
pub struct Evaluator {
    setting: Setting,
    tasks: Vec<Prepared>,
}

/// A task, ready to run.
struct Prepared {
    task: Task,
    rows: Vec<TaskRow>,
    work: Box<dyn Work>,
}

/// What an evaluation is of.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model; none to score answers that are there already.
    pub model: Option<&'a Model>,
    /// Steps done, and seconds since the start of the run.
    pub at: (u64, f64),
    /// Where answers are kept.
    pub answers: Option<&'a Answers>,
}

impl Evaluator {
    /// Reads and tokenises the recipe's tasks.
    ///
    /// # Errors
    /// When a file is missing, a row is wrong, a prompt cannot be filled in, or a task's languages have different items.
    pub fn new(recipe: &Recipe, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self, TrainError> {
        let setting = Setting::new(recipe, tokenizer, config);
        let mut tasks: Vec<Prepared> = Vec::new();
        for task in &recipe.eval.tasks {
            // What another task translates has the same fields before that.
            let rows = match tasks
                .iter()
                .find(|source| Some(&source.task.name) == task.from.as_ref())
            {
                Some(source) => source.rows.clone(),
                None => read_task(task, recipe.data.on_bad_row)?,
            };
            let rows = match &task.from {
                Some(_) => rows
                    .into_iter()
                    .map(|row| reread(task, &row, row.values.clone()))
                    .collect::<Result<_, DataError>>()?,
                None => rows,
            };
            tasks.push(Prepared {
                work: prepare(&setting, task, &rows)?,
                task: task.clone(),
                rows,
            });
        }
        Ok(Self { setting, tasks })
    }

    /// Checks answers that are kept already: that they are of these tasks and this model.
    ///
    /// # Errors
    /// When a file belongs to something else, or is damaged.
    pub fn check(&self, kept: &Answers) -> Result<(), TrainError> {
        // What reads another task's answers has other items than it seems to have.
        let mut tasks = self.tasks.iter().filter(|prepared| prepared.task.from.is_none());
        tasks.try_for_each(|prepared| answers::check(&prepared.task, &*prepared.work, kept))
    }

    /// Evaluates the model: held-out samples first, then the tasks in their order. `deal`: the processes that share the work, and
    /// all get the same rows.
    ///
    /// # Errors
    /// When answers cannot be read or written, or a model's numbers are none.
    pub fn run(&self, subject: Subject, heldout: Option<Heldout>, deal: Deal) -> Result<Vec<EvalRow>, TrainError> {
        let (step, time) = subject.at;
        let mut rows = Vec::new();
        if let (Some(model), Some(heldout)) = (subject.model, heldout.filter(|heldout| !heldout.data.is_empty())) {
            let scores = heldout_losses(model, &self.setting.tokenizer, heldout, deal)?;
            rows.push(scores.row(HELDOUT, step, time));
        }
        let mut translated: Vec<(String, Vec<TaskRow>)> = Vec::new();
        for prepared in &self.tasks {
            let Prepared { task, work, .. } = prepared;
            let again;
            let work = match &task.from {
                None => work,
                Some(from) => {
                    let rows = translated.iter().find(|(name, _)| name == from);
                    let rows = rows.map(|(_, rows)| rows.iter().map(|row| reread(task, row, row.values.clone())));
                    let rows = rows.into_iter().flatten().collect::<Result<Vec<_>, DataError>>()?;
                    again = prepare(&self.setting, task, &rows)?;
                    &again
                }
            };
            let answers = answers::answered(task, &**work, subject.model, subject.answers, deal)?;
            if !task.translate.is_empty() {
                translated.push((task.name.clone(), generate::translated(task, &prepared.rows, &answers)?));
            }
            rows.push(work.score(&answers).row(&task.name, step, time));
        }
        Ok(rows)
    }
}

/// Makes a task's rows ready to be answered.
fn prepare(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Box<dyn Work>, TrainError> {
    Ok(match task.kind {
        TaskKind::Perplexity => Box::new(perplexity::Perplexity::new(setting, task, rows)?),
        TaskKind::MultipleChoice => Box::new(multiple_choice::MultipleChoice::new(setting, task, rows)?),
        TaskKind::Generate => Box::new(generate::Generate::new(setting, task, rows)?),
        TaskKind::Retrieval => Box::new(retrieval::Retrieval::new(setting, task, rows)?),
        TaskKind::Similarity => Box::new(similarity::Similarity::new(setting, task, rows)?),
        TaskKind::LogitLens => Box::new(logit_lens::LogitLens::new(setting, task, rows)?),
        TaskKind::Tokenizer => Box::new(tokenizer::Tokenization::new(setting, task, rows)?),
    })
}

/// Where a run keeps the answers of the evaluation at a step.
pub fn answers_of_step(output: &Path, step: u64) -> PathBuf {
    output.join("answers").join(format!("step-{step}"))
}

/// Removes the answers of a run behind its last evaluation that counts: it goes on from there, and its weights or tasks may become
/// others.
///
/// # Errors
/// When a folder cannot be removed.
pub fn remove_answers_after(output: &Path, last: Option<u64>) -> Result<(), TrainError> {
    let Ok(entries) = std::fs::read_dir(output.join("answers")) else {
        return Ok(());
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of_step = name.strip_prefix("step-").and_then(|number| number.parse::<u64>().ok());
        if of_step.is_some_and(|of_step| last.is_none_or(|last| of_step > last)) {
            std::fs::remove_dir_all(&path).map_err(|source| TrainError::io(&path, source))?;
        }
    }
    Ok(())
}

/// Whether a value of a metric is better than the best so far.
pub fn improves(metric: Metric, value: f64, best: Option<f64>) -> bool {
    best.is_none_or(|best| {
        if metric.higher_is_better() {
            value > best
        } else {
            value < best
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_behind_the_step_that_a_run_goes_on_from_are_removed() {
        let output = tempfile::tempdir().unwrap();
        remove_answers_after(output.path(), None).unwrap();
        for step in [0, 20, 40] {
            std::fs::create_dir_all(answers_of_step(output.path(), step)).unwrap();
        }
        std::fs::create_dir_all(output.path().join("answers/mine")).unwrap();
        remove_answers_after(output.path(), Some(20)).unwrap();
        let left = |name: &str| output.path().join("answers").join(name).exists();
        let steps = ["step-0", "step-20", "step-40", "mine"];
        assert_eq!(steps.map(left), [true, true, false, true]);
        remove_answers_after(output.path(), None).unwrap();
        assert_eq!(steps.map(left), [false, false, false, true]);
    }
}
