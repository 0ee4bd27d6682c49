//! The resolved recipe: what the rest of the program reads.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::adapter::Adapter;
use crate::build::Build;
use crate::data::Data;
use crate::distributed::Distributed;
use crate::document::{Document, LENGTHS};
use crate::error::{Finding, Problem, RecipeError};
use crate::eval::Eval;
use crate::merge::MergeStage;
use crate::model::Model;
use crate::objective::Objective;
use crate::optimizer::Optimizer;
use crate::quantization::Quantization;
use crate::reference::Reference;
use crate::schedule::Schedule;
use crate::stage::{self, Stage};
use crate::train::{Memory, Train};
use crate::{keys, paths, resume, rules};

/// A fine-tuning run of Interlingua.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where all randomness comes from: data order, dropout, new weights.
    #[serde(default = "seed")]
    pub seed: u64,
    /// The folder that the run writes into (relative to the recipe file).
    #[schemars(with = "String", length(min = 1))]
    pub output: PathBuf,
    /// The model to start from.
    #[serde(default)]
    pub model: Model,
    /// The adapter to train. Absent: base weights are trained.
    #[serde(default = "Adapter::none")]
    pub adapter: Adapter,
    /// What is learnt from, and how it becomes batches.
    #[serde(default)]
    pub data: Data,
    /// What is minimised.
    #[serde(default)]
    pub objective: Objective,
    /// The frozen model that preference objectives compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Reference")]
    pub reference: Option<Reference>,
    /// How gradients change weights.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: Schedule,
    /// How long, in what batches, which weights, and how often to save and evaluate.
    #[serde(default)]
    pub train: Train,
    /// What is kept in memory.
    #[serde(default)]
    pub memory: Memory,
    /// How several processes share the run.
    #[serde(default)]
    pub distributed: Distributed,
    /// What is measured at step 0, every train.eval_every steps, and at the end.
    #[serde(default)]
    pub eval: Eval,
    /// A pipeline: one run per stage, with the stage's keys laid over the rest of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage: Vec<Stage>,
    /// Set for a stage that merges what earlier stages trained, and trains nothing itself: see [`Recipe::stages`].
    #[serde(skip)]
    pub merge: Option<MergeStage>,
    /// The recipe file, as given.
    #[serde(skip)]
    pub file: PathBuf,
}

fn seed() -> u64 {
    42
}

impl Recipe {
    /// Reads a recipe file, lays the overrides (`a.b=value`, list elements by index) over it, checks everything, and
    /// fills in the defaults. Files that the recipe names are not looked at.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or holds wrong keys or values; all of those are reported together.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::parse(&read_text(path)?, path, overrides)
    }

    /// Reads a file of evaluation tasks, for a model and without a run: an `[eval]` table, or its content alone. Keys that say how
    /// tasks are read and computed, such as `data.template` and `model.dtype`, may stand beside it; sources, stages and adapters
    /// of a whole recipe are passed over. Files that the tasks name are not looked at.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or holds wrong keys or values; all of those are reported together.
    pub fn load_tasks(path: &Path, model: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let text = read_text(path).map_err(|error| match error {
            RecipeError::Missing { file } => RecipeError::MissingTasks { file },
            other => other,
        })?;
        let mut document = Document::parse(&text, path, &[])?;
        document.put_into("tasks", "eval");
        document.lay_over_all(overrides)?;
        let mut table = document.table.clone();
        table
            .entry("output")
            .or_insert_with(|| Value::String("evaluation".to_owned()));
        table.retain(|key, _| !["adapter", "stage"].contains(&key));
        if let Some(Value::Table(data)) = table.get_mut("data") {
            data.retain(|key, _| !["sources", "holdout", "mix", "parallel"].contains(&key));
        }
        let located = |finding| document.problem(finding);
        fail_if_any(keys::check(&table).into_iter().map(located).collect())?;
        paths::resolve(&mut table, &paths::folder_of(path));
        let mut recipe = Self::read(table, path).map_err(|finding| invalid(vec![located(finding)]))?;
        model.clone_into(&mut recipe.model.path);
        fail_if_any(rules::check_tasks(&recipe).into_iter().map(located).collect())?;
        Ok(recipe)
    }

    /// The same for a text in memory, which stands for the content of `file`.
    ///
    /// # Errors
    /// As [`Recipe::load`], without those of reading the file.
    pub fn parse(text: &str, file: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let document = Document::parse(text, file, overrides)?;
        let located = |finding| document.problem(finding);
        let problems: Vec<Problem> = keys::check(&document.table).into_iter().map(located).collect();
        fail_if_any(problems)?;

        let mut table = document.table.clone();
        paths::resolve(&mut table, &paths::folder_of(file));
        let recipe = Self::read(table, file).map_err(|finding| invalid(vec![located(finding)]))?;
        if recipe.stage.is_empty() {
            fail_if_any(rules::check(&recipe).into_iter().map(located).collect())?;
            return Ok(recipe);
        }
        let mut problems = Vec::new();
        for (index, stage) in stage::expand(&recipe, &recipe.to_table()?).into_iter().enumerate() {
            let name = &recipe.stage[index].name;
            let findings = stage.err().unwrap_or_default();
            problems.extend(
                findings
                    .into_iter()
                    .map(|finding| document.stage_problem(index, name, finding)),
            );
        }
        fail_if_any(problems)?;
        Ok(recipe)
    }

    /// One recipe per stage, in the order they run: the stage's keys laid over the rest, the output folder
    /// `output/NAME`, and the model or the adapter of the stage it goes on from. A stage that merges has the recipe of
    /// the first stage it merges, with [`Recipe::merge`] set. A recipe without stages is its own.
    ///
    /// # Errors
    /// When a stage's recipe is wrong; never for a loaded recipe, whose stages were checked.
    pub fn stages(&self) -> Result<Vec<Self>, RecipeError> {
        if self.stage.is_empty() {
            return Ok(vec![self.clone()]);
        }
        let document = Document::parse("", &self.file, &[])?;
        let expanded = stage::expand(self, &self.to_table()?)
            .into_iter()
            .zip(&self.stage)
            .enumerate();
        expanded
            .map(|(index, (recipe, stage))| {
                recipe.map_err(|findings| {
                    let located = |finding| document.stage_problem(index, &stage.name, finding);
                    invalid(findings.into_iter().map(located).collect())
                })
            })
            .collect()
    }

    /// The resolved recipe as TOML, with every default filled in. Loading it gives an equal recipe (but for `file`).
    ///
    /// # Errors
    /// When a number made in code does not fit into TOML; never for a loaded recipe.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        Ok(toml::to_string(self)?)
    }

    /// The dotted keys that keep this recipe from resuming a run that was started with `saved`: all that differ, but
    /// for steps, epochs, tokens, evaluation, logging, checkpoint, memory, device and distributed keys. Paths are equal
    /// also when they moved together with the output folder.
    ///
    /// # Errors
    /// When a number made in code does not fit into TOML; never for loaded recipes.
    pub fn resume_conflicts(&self, saved: &Self) -> Result<Vec<String>, RecipeError> {
        resume::conflicts(self, saved)
    }

    pub(crate) fn to_table(&self) -> Result<Table, RecipeError> {
        Ok(Table::try_from(self)?)
    }

    /// Reads a checked table and applies the rules.
    pub(crate) fn finish(table: Table, file: &Path) -> Result<Self, Vec<Finding>> {
        let recipe = Self::read(table, file).map_err(|finding| vec![finding])?;
        let findings = rules::check(&recipe);
        if findings.is_empty() { Ok(recipe) } else { Err(findings) }
    }

    /// Reads a checked table, and fills in the defaults that depend on other keys.
    fn read(table: Table, file: &Path) -> Result<Self, Finding> {
        let has_length = LENGTHS
            .iter()
            .any(|length| table.get("train").and_then(|train| train.get(length)).is_some());
        let mut recipe: Self = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| Finding {
                path: Vec::new(),
                message: format!("{}.", error.message()),
            })?;
        file.clone_into(&mut recipe.file);
        let unread = rules::unread_numbers(&recipe);
        if let Some(finding) = unread {
            return Err(finding);
        }
        recipe.objective.fill_in();
        recipe.adapter.fill_in();
        recipe.optimizer.fill_in();
        recipe.model.quantization.iter_mut().for_each(Quantization::fill_in);
        if !has_length && recipe.adapter.is_closed_form() {
            (recipe.train.steps, recipe.train.epochs) = (Some(0), None);
        } else if !has_length {
            recipe.train.epochs = Some(1.0);
        }
        for source in &mut recipe.data.sources {
            let path = source.path.paths().next().unwrap_or(Path::new(""));
            default_name(&mut source.name, path);
            source.build.iter_mut().for_each(Build::fill_in);
        }
        for task in &mut recipe.eval.tasks {
            default_name(&mut task.name, &task.path);
            task.fill_in();
        }
        Ok(recipe)
    }
}

/// The text of a recipe file, without a byte order mark.
fn read_text(path: &Path) -> Result<String, RecipeError> {
    let file = path.to_owned();
    let bytes = std::fs::read(path).map_err(|reason| match reason.kind() {
        ErrorKind::NotFound => RecipeError::Missing { file: file.clone() },
        _ if path.is_dir() => RecipeError::Folder { file: file.clone() },
        _ => RecipeError::Unreadable {
            file: file.clone(),
            reason,
        },
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        RecipeError::NotUtf8 { file, line }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The file's name without its ending.
fn default_name(name: &mut String, path: &Path) {
    if name.is_empty() {
        *name = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
    }
}

fn invalid(problems: Vec<Problem>) -> RecipeError {
    RecipeError::Invalid { problems }
}

/// Reports problems in the order of the file, each once.
fn fail_if_any(mut problems: Vec<Problem>) -> Result<(), RecipeError> {
    problems.sort_by(|one, other| one.place.cmp(&other.place));
    let mut seen = Vec::new();
    problems.retain(|problem| {
        let new = !seen.contains(problem);
        seen.push(problem.clone());
        new
    });
    if problems.is_empty() {
        Ok(())
    } else {
        Err(invalid(problems))
    }
}
