//! Finding out what a path is, from what lies there. Each kind has a file; the facts are JSON objects.

mod adapter;
mod checkpoint;
mod data;
mod model;
mod recipe;
mod run;
mod tensors;
mod tokenizer;

use std::path::Path;

use interlingua_checkpoints::own_adapter::DESCRIPTION;
use serde_json::{Map, Value};

use crate::exit::Failure;

pub(crate) use data::texts;
pub(crate) use recipe::trains;

/// What is known about a path, in the order in which it is shown.
pub(crate) type Facts = Map<String, Value>;

/// What lies at a path.
///
/// # Errors
/// When there is nothing, or nothing that is known, or it cannot be read.
pub(crate) fn inspect(path: &Path) -> Result<Facts, Failure> {
    let has = |name: &str| path.join(name).exists();
    if path.is_dir() {
        if has("adapter_config.json") {
            return adapter::facts(path);
        }
        if has(DESCRIPTION) {
            return adapter::own_facts(path);
        }
        if checkpoint::is_one(path) {
            return checkpoint::facts(path);
        }
        if has("recipe.toml") || has("metrics.jsonl") {
            return run::facts(path);
        }
        if has("config.json") {
            return model::facts(path);
        }
        if has("tokenizer.json") {
            return tokenizer::facts(&path.join("tokenizer.json"));
        }
        return Err(Failure::usage(format!(
            "{} is none of the folders that are known: a model has config.json, an adapter adapter_config.json or interlingua.json, a run recipe.toml.",
            path.display()
        )));
    }
    if !path.exists() {
        return Err(Failure::usage(format!(
            "{} does not exist. Check the spelling.",
            path.display()
        )));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match (name.as_ref(), extension.as_ref()) {
        ("tokenizer.json", _) => tokenizer::facts(path),
        (_, "safetensors") => tensors::facts(path),
        (_, "toml") => recipe::facts(path),
        (_, "jsonl" | "json" | "parquet" | "tsv" | "txt") => data::facts(path),
        _ => Err(Failure::usage(format!(
            "{} has an ending that is not known: .jsonl, .json, .parquet, .tsv and .txt are data, .toml is a recipe, .safetensors holds tensors.",
            path.display()
        ))),
    }
}

/// An object of facts, in this order.
fn facts<const N: usize>(entries: [(&str, Value); N]) -> Facts {
    entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// A JSON file.
///
/// # Errors
/// When it cannot be read, with file, line and column where it breaks off.
fn read_json(path: &Path) -> Result<Value, Failure> {
    let text =
        std::fs::read(path).map_err(|error| Failure::usage(format!("{} cannot be read: {error}.", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::usage(format!(
            "{} is not JSON: {error}. Copy or download it again.",
            path.display()
        ))
    })
}

/// A value of a JSON object, null when it is not there.
fn get(object: &Value, key: &str) -> Value {
    object.get(key).cloned().unwrap_or(Value::Null)
}

/// Size in bytes of all files below a folder.
fn folder_size(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .fold(0, |size, entry| {
            let below = entry.metadata().map_or(0, |metadata| {
                if metadata.is_dir() {
                    folder_size(&entry.path())
                } else {
                    metadata.len()
                }
            });
            size + below
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let missing = inspect(&folder.path().join("no")).unwrap_err();
        assert!(missing.message.contains("does not exist"));
        let empty = inspect(folder.path()).unwrap_err();
        assert!(empty.message.contains("config.json"));
        let odd = folder.path().join("a.xyz");
        std::fs::write(&odd, "").unwrap();
        assert!(inspect(&odd).unwrap_err().message.contains(".jsonl"));
    }
}
