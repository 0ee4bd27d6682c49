//! What is read: the rows of `metrics.jsonl`, and beside it the recipe and the summary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use interlingua_recipes::Recipe;
use interlingua_trainer::train::metrics::{EvalRow, EventRow, Row, TrainRow};
use interlingua_trainer::train::summary::Summary;

use crate::exit::Failure;

const METRICS: &str = "metrics.jsonl";

/// What one run left.
pub(super) struct RunFolder {
    /// Where it lies.
    pub(super) folder: PathBuf,
    /// The stage of a pipeline; none for a run of its own.
    pub(super) stage: Option<String>,
    /// The resolved recipe, where it is there and can be read.
    pub(super) recipe: Option<Recipe>,
    /// The summary that the run wrote, or, of one that has not come to its end, what its rows add up to.
    pub(super) summary: Summary,
    /// The steps in order.
    pub(super) steps: Vec<TrainRow>,
    /// The evaluations in order, by task.
    pub(super) evaluations: BTreeMap<String, Vec<EvalRow>>,
    /// Events in order.
    pub(super) events: Vec<EventRow>,
}

/// The run in a folder, or those of the folders in it, in the order in which they were last written to.
///
/// # Errors
/// When there is none, when nothing was measured in any, or when rows cannot be read.
pub(super) fn read(folder: &Path) -> Result<Vec<RunFolder>, Failure> {
    if !folder.is_dir() {
        let problem = if folder.exists() {
            "is no folder"
        } else {
            "does not exist"
        };
        return Err(Failure::usage(format!(
            "{} {problem}. Name the folder that a run wrote into, which is `output` in its recipe.",
            folder.display()
        )));
    }
    let runs = if folder.join(METRICS).is_file() {
        vec![read_one(folder, None)?]
    } else {
        let stages = stages(folder);
        if stages.is_empty() {
            return Err(Failure::usage(format!(
                "{} holds no run: there is no {METRICS} in it, nor in a folder in it. Name the folder that a run wrote into, which is \
                 `output` in its recipe.",
                folder.display()
            )));
        }
        let read = stages.into_iter().map(|(name, folder)| read_one(&folder, Some(name)));
        read.collect::<Result<_, Failure>>()?
    };
    let runs: Vec<RunFolder> = runs.into_iter().filter(|run| !run.is_empty()).collect();
    if runs.is_empty() {
        return Err(Failure::usage(format!(
            "{}: nothing has been measured yet. Once the first step is done there is something to draw.",
            folder.display()
        )));
    }
    Ok(runs)
}

/// The folders with rows in a folder, and their names.
fn stages(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut stages: Vec<(SystemTime, String, PathBuf)> = entries
        .filter_map(|entry| {
            let written = entry.path().join(METRICS).metadata().ok()?.modified();
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((written.unwrap_or(SystemTime::UNIX_EPOCH), name, entry.path()))
        })
        .collect();
    stages.sort();
    stages.into_iter().map(|(_, name, folder)| (name, folder)).collect()
}

fn read_one(folder: &Path, stage: Option<String>) -> Result<RunFolder, Failure> {
    let rows = rows(&folder.join(METRICS))?;
    let summary = Summary::read(folder).unwrap_or_else(|| Summary::of_rows(&rows, false, false));
    let mut run = RunFolder {
        folder: folder.to_path_buf(),
        stage,
        recipe: Recipe::load(&folder.join("recipe.toml"), &[]).ok(),
        summary,
        steps: Vec::new(),
        evaluations: BTreeMap::new(),
        events: Vec::new(),
    };
    for row in rows {
        match row {
            Row::Train(row) => run.steps.push(row),
            Row::Eval(row) => run.evaluations.entry(row.task.clone()).or_default().push(row),
            Row::Event(row) => run.events.push(row),
        }
    }
    Ok(run)
}

/// The rows of a file. A last line without an end is what a killed process left, and no row.
fn rows(path: &Path) -> Result<Vec<Row>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}.", path.display())))?;
    let mut rows = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if !line.ends_with('\n') => {}
            Err(error) => {
                return Err(Failure::usage(format!(
                    "{}, line {}: this is no row of a run ({error}). Take the line out, or copy the file again.",
                    path.display(),
                    index + 1
                )));
            }
        }
    }
    Ok(rows)
}

impl RunFolder {
    fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.evaluations.is_empty()
    }

    /// All languages that were trained on or measured, in alphabetical order.
    pub(super) fn languages(&self) -> Vec<&str> {
        let trained = self.summary.by_language.keys();
        let measured = self
            .evaluations
            .values()
            .flatten()
            .flat_map(|row| row.by_language.keys());
        let mut languages: Vec<&str> = trained.chain(measured).map(String::as_str).collect();
        languages.sort_unstable();
        languages.dedup();
        languages
    }
}
