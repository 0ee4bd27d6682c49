//! Run folders: what `output` of a recipe names.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use interlingua_checkpoints::run_state;
use serde_json::{Value, json};

use super::{Facts, facts as object, folder_size, get, read_json};
use crate::exit::Failure;

/// What a run folder holds.
///
/// # Errors
/// When its summary or the folder cannot be read.
pub(super) fn facts(folder: &Path) -> Result<Facts, Failure> {
    let summary = folder.join("summary.json");
    let summary = if summary.is_file() {
        Some(read_json(&summary)?)
    } else {
        None
    };
    let checkpoints = run_state::list(folder).map_err(Failure::usage)?;
    let steps: Vec<u64> = checkpoints.iter().map(|(step, _)| *step).collect();
    let last = last_training_row(&folder.join("metrics.jsonl"));
    let mut facts = object([
        ("kind", json!("run")),
        ("path", json!(folder)),
        ("finished", json!(summary.is_some())),
        ("last_step", last.as_ref().map_or(Value::Null, |row| get(row, "step"))),
        ("last_loss", last.as_ref().map_or(Value::Null, |row| get(row, "loss"))),
        ("checkpoints", json!(steps)),
        ("adapter", json!(folder.join("adapter").is_dir())),
        ("model", json!(folder.join("model").is_dir())),
        ("bytes", json!(folder_size(folder))),
    ]);
    let languages = last.as_ref().map(|row| get(row, "by_language"));
    if let Some(languages) = languages.as_ref().and_then(Value::as_object) {
        let rows = languages.iter().map(|(language, numbers)| {
            let mut row = object([("language", json!(language))]);
            row.extend(numbers.as_object().cloned().unwrap_or_default());
            Value::Object(row)
        });
        facts.insert("last_step_by_language".to_owned(), Value::Array(rows.collect()));
    }
    if let Some(summary) = summary {
        let scalars = summary
            .as_object()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, value)| !value.is_object() && !value.is_array());
        facts.insert("summary".to_owned(), Value::Object(scalars.collect()));
    }
    Ok(facts)
}

/// The last row of kind `train`; a line that was cut off in the middle is no row.
fn last_training_row(path: &Path) -> Option<Value> {
    let lines = BufReader::new(File::open(path).ok()?).lines().map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .filter(|row| row["kind"] == "train")
        .last()
}
