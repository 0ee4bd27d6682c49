//! Evaluation outside a run: the tasks and held-out samples of a recipe, on its base or on that with adapters; and what
//! quantising the base does to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use interlingua_checkpoints::own_adapter::AnyAdapter;
use interlingua_checkpoints::packed::Quantization;
use interlingua_data::cache;
use interlingua_data::dataset::Dataset;
use interlingua_data::prepare::{Progress, prepare};
use interlingua_recipes::Recipe;
use serde::Serialize;

use super::main_loss::MainLoss;
use super::metrics::EvalRow;
use super::ranks::Deal;
use super::setup::Base;
use crate::collectives::Alone;
use crate::device::{describe, device};
use crate::error::TrainError;
use crate::evaluate::{Answers, Evaluator, HELDOUT, Heldout, Subject, model_fingerprint};

/// Everything to measure, read and tokenised once.
pub struct Measurement<'a> {
    recipe: &'a Recipe,
    adapters: &'a [PathBuf],
    base: Base,
    evaluator: Evaluator,
    heldout: Option<Dataset>,
}

/// What was measured of one model.
#[derive(Clone, Debug)]
pub struct Measured {
    /// A row for the held-out samples, where there are some, and one for each task.
    pub rows: Vec<EvalRow>,
    /// Where it was computed, in words.
    pub device: String,
}

/// Whether a recipe has something to measure: tasks, or held-out samples whose loss needs no reference.
pub fn measures(recipe: &Recipe) -> bool {
    !recipe.eval.tasks.is_empty() || measures_heldout(recipe)
}

fn measures_heldout(recipe: &Recipe) -> bool {
    recipe.data.holdout > 0.0 && !recipe.objective.kind.needs_reference()
}

impl<'a> Measurement<'a> {
    /// Opens the model and the adapters, and reads and tokenises what is measured on. Weights are not read.
    ///
    /// # Errors
    /// When the recipe has nothing to measure, or a model, adapter, device or file is not there or wrong.
    pub fn new(
        recipe: &'a Recipe,
        adapters: &'a [PathBuf],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, TrainError> {
        if !measures(recipe) {
            return Err(TrainError::Setup(nothing_to_measure(recipe)));
        }
        let base = Base::open(recipe)?;
        for path in adapters {
            AnyAdapter::open(path)?;
        }
        device(recipe.model.device)?;
        let tokenizer = base.tokenizer(recipe)?;
        let evaluator = Evaluator::new(recipe, &tokenizer, &base.config)?;
        let heldout = if measures_heldout(recipe) {
            let cache = cache::default_folder();
            prepare(recipe, &tokenizer, base.config.vocab_size, &cache, progress)?.heldout
        } else {
            None
        };
        Ok(Self {
            recipe,
            adapters,
            base,
            evaluator,
            heldout: heldout.filter(|heldout| !heldout.is_empty()),
        })
    }

    /// The names of what is measured, with commas between.
    pub fn names(&self) -> String {
        let heldout = self.heldout.as_ref().map(|_| HELDOUT);
        let tasks = self.recipe.eval.tasks.iter().map(|task| task.name.as_str());
        heldout.into_iter().chain(tasks).collect::<Vec<_>>().join(", ")
    }

    /// Whether the model's files are quantised already.
    pub fn is_quantised(&self) -> bool {
        self.base.config.quantization.is_some()
    }

    /// Scores the answers of a folder again; no model is loaded.
    ///
    /// # Errors
    /// When answers are missing, or belong to other tasks.
    pub fn score(&self, answers: &Path) -> Result<Vec<EvalRow>, TrainError> {
        let kept = Answers {
            folder: answers.to_owned(),
            model: None,
        };
        let subject = Subject {
            model: None,
            at: (0, 0.0),
            answers: Some(&kept),
        };
        self.evaluator.run(subject, None, Deal::new(&Alone, false))
    }

    /// Where answers are kept, with what tells this model from others.
    fn answers(&self, folder: &Path, how: &str) -> Result<Answers, TrainError> {
        let folders: Vec<PathBuf> = std::iter::once(&self.base.path).chain(self.adapters).cloned().collect();
        Ok(Answers {
            folder: folder.to_owned(),
            model: Some(model_fingerprint(&folders, how)?),
        })
    }

    /// Loads the model, quantised or as it is, measures it and lets it go. `answers`: the folder that answers are kept in, and where
    /// those that are there already are not asked for again.
    ///
    /// # Errors
    /// When the weights cannot be read, an adapter does not fit, or a task fails.
    pub fn run(&self, quantization: Option<Quantization>, answers: Option<&Path>) -> Result<Measured, TrainError> {
        let model = &self.recipe.model;
        let how = format!(
            "{quantization:?} {:?} {:?} {}",
            model.dtype, model.init, self.recipe.seed
        );
        let kept = answers.map(|folder| self.answers(folder, &how)).transpose()?;
        kept.as_ref().map_or(Ok(()), |kept| self.evaluator.check(kept))?;
        let model = self.base.load_with_adapters(self.recipe, self.adapters, quantization)?;
        let heldout = self.heldout.as_ref().map(|data| Heldout {
            data,
            main: MainLoss::of(&self.recipe.objective),
            reference: None,
        });
        let subject = Subject {
            model: Some(&model),
            at: (0, 0.0),
            answers: kept.as_ref(),
        };
        let alone = Deal::new(&Alone, false);
        let rows = rayon::scope(|_| self.evaluator.run(subject, heldout, alone));
        Ok(Measured {
            rows: rows.map_err(TrainError::while_running)?,
            device: describe(&model.device, model.dtype),
        })
    }
}

fn nothing_to_measure(recipe: &Recipe) -> String {
    let reason = if recipe.data.holdout > 0.0 {
        format!(
            "held-out samples of the objective {:?} are compared with a reference, which a run measures while it trains",
            recipe.objective.kind.name()
        )
    } else {
        "data.holdout is 0".to_owned()
    };
    format!(
        "{}: there is nothing to measure: it has no [[eval.tasks]], and {reason}. Add a task",
        recipe.file.display()
    )
}

/// A number before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
    /// After, less before.
    pub difference: f64,
}

/// How the numbers of a task changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changes {
    /// Name of the task.
    pub task: String,
    /// Metric by name, by language.
    pub by_language: BTreeMap<String, BTreeMap<String, Change>>,
    /// Of the means over languages, by metric.
    pub mean: BTreeMap<String, Change>,
}

/// What changed from one measurement to another of the same tasks.
pub fn changes(before: &[EvalRow], after: &[EvalRow]) -> Vec<Changes> {
    let pairs = before.iter().filter_map(|before| {
        let after = after.iter().find(|after| after.task == before.task)?;
        Some((before, after))
    });
    let by_language = |before: &EvalRow, after: &EvalRow| {
        let languages = before.by_language.iter().filter_map(|(language, before)| {
            let after = after.by_language.get(language)?;
            Some((language.clone(), of_metrics(before, after)))
        });
        languages.collect()
    };
    let changes = pairs.map(|(before, after)| Changes {
        task: before.task.clone(),
        by_language: by_language(before, after),
        mean: of_metrics(&before.mean, &after.mean),
    });
    changes.collect()
}

fn of_metrics(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, Change> {
    let metrics = before.iter().filter_map(|(metric, before)| {
        let (before, after) = (*before, *after.get(metric)?);
        let difference = after - before;
        Some((
            metric.clone(),
            Change {
                before,
                after,
                difference,
            },
        ))
    });
    metrics.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: &str, numbers: &[(&str, f64)]) -> EvalRow {
        let by_language = numbers
            .iter()
            .map(|(language, loss)| (language.to_string(), BTreeMap::from([("loss".to_owned(), *loss)])));
        let mean = numbers.iter().map(|(_, loss)| loss).sum::<f64>() / numbers.len() as f64;
        EvalRow {
            step: 0,
            time: 0.0,
            task: task.to_owned(),
            by_language: by_language.collect(),
            mean: BTreeMap::from([("loss".to_owned(), mean)]),
            ..EvalRow::default()
        }
    }

    /// What one side lacks, such as a value that is not finite, is left out.
    #[test]
    fn changes_are_those_of_the_same_task_language_and_metric() {
        let before = [row("a", &[("en", 1.0), ("sw", 2.0)]), row("b", &[("en", 3.0)])];
        let after = [row("b", &[("en", 2.5)]), row("a", &[("sw", 2.25)])];
        let found = changes(&before, &after);
        let change = |before: f64, after: f64, difference: f64| Change {
            before,
            after,
            difference,
        };
        assert_eq!((found[0].task.as_str(), found[1].task.as_str()), ("a", "b"));
        assert_eq!(found[0].by_language.len(), 1);
        assert_eq!(found[0].by_language["sw"]["loss"], change(2.0, 2.25, 0.25));
        assert_eq!(found[0].mean["loss"], change(1.5, 2.25, 0.75));
        assert_eq!(found[1].by_language["en"]["loss"], change(3.0, 2.5, -0.5));
    }
}
