//! Checkpoints of a run: `checkpoint-STEP/`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::tensors::Totals;
use super::{Facts, facts as object, folder_size};
use crate::exit::Failure;

/// The step in a checkpoint folder's name.
fn step(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
}

/// Whether a folder is a checkpoint.
pub(super) fn is_one(folder: &Path) -> bool {
    // A relative path such as `.` has no name of its own.
    std::path::absolute(folder).is_ok_and(|folder| step(&folder).is_some())
}

/// What a checkpoint holds.
///
/// # Errors
/// When one of its tensor files is broken.
pub(super) fn facts(folder: &Path) -> Result<Facts, Failure> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let tensors: Vec<PathBuf> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .cloned()
        .collect();
    let mut facts = object([
        ("kind", json!("checkpoint")),
        ("path", json!(folder)),
        ("step", json!(step(&folder))),
    ]);
    facts.extend(Totals::read(&tensors)?.facts());
    facts.insert("bytes".to_owned(), json!(folder_size(&folder)));
    let rows = files.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        json!({ "file": name, "bytes": path.metadata().map_or(0, |metadata| metadata.len()) })
    });
    facts.insert("files".to_owned(), rows.collect());
    Ok(facts)
}
