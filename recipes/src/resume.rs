//! Which changes to a recipe a resumed run refuses.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use crate::error::RecipeError;
use crate::recipe::Recipe;

/// Keys that may differ when a run is resumed, with everything below them.
const FREE: &[&str] = &[
    "output",
    "model.device",
    "train.steps",
    "train.epochs",
    "train.tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.eval_every",
    "train.early_stop",
    "train.log_every",
    "memory",
    "eval",
    "distributed",
];

/// The dotted keys in which two recipes differ, without those that may differ.
pub(crate) fn conflicts(new: &Recipe, saved: &Recipe) -> Result<Vec<String>, RecipeError> {
    let (new_leaves, saved_leaves) = (leaves(&new.to_table()?), leaves(&saved.to_table()?));
    let keys: std::collections::BTreeSet<&String> = new_leaves.keys().chain(saved_leaves.keys()).collect();
    let differs = |key: &String| match (new_leaves.get(key), saved_leaves.get(key)) {
        (Some(Value::String(new_path)), Some(Value::String(saved_path))) => {
            new_path != saved_path && !moved_together((new_path, &new.output), (saved_path, &saved.output))
        }
        (new_value, saved_value) => new_value != saved_value,
    };
    Ok(keys
        .into_iter()
        .filter(|key| !is_free(key) && differs(key))
        .cloned()
        .collect())
}

fn is_free(key: &str) -> bool {
    let key = match key.strip_prefix("stage.").and_then(|rest| rest.split_once('.')) {
        Some((_, within)) => within,
        None => key,
    };
    FREE.iter().any(|free| {
        key.strip_prefix(free)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Whether two paths are the same as seen from their output folders: the whole tree has moved.
fn moved_together((new, new_output): (&str, &Path), (saved, saved_output): (&str, &Path)) -> bool {
    let both_absolute = Path::new(new).is_absolute() && Path::new(saved).is_absolute();
    both_absolute && pathdiff::diff_paths(new, new_output) == pathdiff::diff_paths(saved, saved_output)
}

/// All values that are not tables or lists of tables, by dotted key.
fn leaves(table: &Table) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    collect(&Value::Table(table.clone()), "", &mut found);
    found
}

fn collect(value: &Value, key: &str, found: &mut BTreeMap<String, Value>) {
    let below = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match value {
        Value::Table(table) => table
            .iter()
            .for_each(|(name, value)| collect(value, &below(name), found)),
        Value::Array(items) if items.iter().any(Value::is_table) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| collect(item, &below(&index.to_string()), found));
        }
        Value::Array(items) if items.is_empty() => {}
        _ => drop(found.insert(key.to_owned(), value.clone())),
    }
}
