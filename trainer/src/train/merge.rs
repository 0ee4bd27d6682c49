//! A stage that merges what earlier stages trained.

use std::path::{Path, PathBuf};

use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::hub;
use interlingua_checkpoints::merge::{Combination, Merge, Method, Options};
use interlingua_checkpoints::peft;
use interlingua_checkpoints::write::pretty;
use interlingua_recipes::{MergeCombination, MergeMethod, MergeStage, Recipe};
use serde_json::Value;

use super::{Event, Outcome};
use crate::error::TrainError;

/// What a merge stage keeps of how its result was made.
const RECORD: &str = "merge.json";

/// Merges into `model/` or `adapter/` of the stage's output folder, whole or not at all. A result that is there already is left
/// alone.
///
/// # Errors
/// When the result that is there was made in another way, or what is to be merged does not fit together, or cannot be read or
/// written.
pub fn run(recipe: &Recipe, stage: &MergeStage, observe: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
    let out = recipe.output.join(stage.result);
    let record = record(recipe, stage)?;
    if is_whole(&out) {
        return match differing_key(&recipe.output, &record) {
            None => Ok(Outcome::AlreadyFinished),
            Some(key) => Err(TrainError::Setup(format!(
                "{}: this was merged with another merge.{key}; set that back, choose another output folder, or start anew with --fresh",
                out.display()
            ))),
        };
    }
    let options = options(recipe, stage);
    let base = stage.base.as_deref().map(hub::resolve).transpose()?;
    let merge = Merge::open(&stage.inputs, base.as_deref(), &options)?;
    for note in merge.notes() {
        observe(Event::Note(note.clone()));
    }
    let written = || -> Result<_, TrainError> {
        std::fs::create_dir_all(&recipe.output).map_err(|source| TrainError::io(&recipe.output, source))?;
        write_atomically(&recipe.output.join(RECORD), pretty(&record)?.as_bytes())?;
        Ok(merge.write(&out)?)
    };
    let report = written().map_err(TrainError::while_running)?;
    let distances = stage.merge.of.iter().zip(&report.distances);
    let distances: Vec<String> = distances
        .map(|(name, distance)| format!("{name} {distance:.4}"))
        .collect();
    observe(Event::Note(format!(
        "merged {} into {} ({}); relative distance to {}",
        stage.merge.of.join(" and "),
        out.display(),
        merge.settings().describe(),
        distances.join(", ")
    )));
    Ok(Outcome::Finished)
}

/// The folder is renamed into place when all of it is written.
fn is_whole(out: &Path) -> bool {
    ["config.json", peft::CONFIG]
        .iter()
        .any(|file| out.join(file).is_file())
}

fn options(recipe: &Recipe, stage: &MergeStage) -> Options {
    let merge = &stage.merge;
    let method = match merge.method {
        MergeMethod::Linear => Method::Linear,
        MergeMethod::Slerp => Method::Slerp,
        MergeMethod::Ties => Method::Ties,
        MergeMethod::DareTies => Method::DareTies,
    };
    let combination = match merge.combination {
        MergeCombination::EntryWise => Combination::EntryWise,
        MergeCombination::Exact => Combination::Exact,
    };
    Options {
        method,
        weights: merge.weights.clone(),
        density: merge.density,
        scale: merge.scale,
        seed: recipe.seed,
        combination: (stage.result == "adapter").then_some(combination),
    }
}

/// The keys of the merge, and the seed that `dare-ties` reads. The base is named as the recipe names it, since an output folder
/// may move with its recipe.
fn record(recipe: &Recipe, stage: &MergeStage) -> Result<Value, TrainError> {
    let encode = |source| TrainError::Encode {
        what: "the merge",
        source,
    };
    let mut record = serde_json::to_value(&stage.merge).map_err(encode)?;
    if stage.merge.method == MergeMethod::DareTies {
        record["seed"] = Value::from(recipe.seed);
    }
    if let Some(fields) = record.as_object_mut() {
        fields.remove("base");
    }
    Ok(record)
}

/// The first key in which what was merged differs from what is asked for.
fn differing_key(output: &Path, record: &Value) -> Option<String> {
    let path: PathBuf = output.join(RECORD);
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let (saved, record) = (saved.as_object()?, record.as_object()?);
    let mut keys = record.keys().chain(saved.keys());
    keys.find(|key| saved.get(*key) != record.get(*key)).cloned()
}
