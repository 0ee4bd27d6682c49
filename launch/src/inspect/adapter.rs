//! Adapter folders.

use std::path::Path;

use interlingua_checkpoints::own_adapter::{AnyAdapter, DESCRIPTION};
use serde_json::json;

use super::tensors::Totals;
use super::{Facts, facts as object, get, read_json};
use crate::exit::Failure;

/// What an adapter folder holds.
///
/// # Errors
/// When its config or its weights cannot be read.
pub(super) fn facts(folder: &Path) -> Result<Facts, Failure> {
    let config = read_json(&folder.join("adapter_config.json"))?;
    let flag = |key: &str| json!(get(&config, key).as_bool().unwrap_or(false));
    let mut facts = object([
        ("kind", json!("adapter")),
        ("path", json!(folder)),
        ("type", get(&config, "peft_type")),
        ("base_model", get(&config, "base_model_name_or_path")),
        ("rank", get(&config, "r")),
        ("alpha", get(&config, "lora_alpha")),
        ("dropout", get(&config, "lora_dropout")),
        ("rslora", flag("use_rslora")),
        ("dora", flag("use_dora")),
        ("targets", get(&config, "target_modules")),
        ("modules_to_save", get(&config, "modules_to_save")),
    ]);
    let weights = folder.join("adapter_model.safetensors");
    if !weights.is_file() {
        return Err(Failure::usage(format!(
            "{} has adapter_config.json and no adapter_model.safetensors. Copy the whole folder.",
            folder.display()
        )));
    }
    facts.extend(Totals::read(&[weights])?.facts());
    Ok(facts)
}

/// What an adapter folder of a kind that PEFT lacks holds, or one with a copy for each language.
///
/// # Errors
/// When its description or its weights cannot be read.
pub(super) fn own_facts(folder: &Path) -> Result<Facts, Failure> {
    let description = read_json(&folder.join(DESCRIPTION))?;
    AnyAdapter::open(folder).map_err(Failure::usage)?;
    let mut facts = object([
        ("kind", json!("adapter")),
        ("path", json!(folder)),
        ("type", get(&description, "kind")),
    ]);
    let others = description.as_object().into_iter().flatten();
    facts.extend(
        others
            .filter(|(key, _)| *key != "kind")
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let weights = folder.join("adapter.safetensors");
    if weights.is_file() {
        facts.extend(Totals::read(&[weights])?.facts());
    }
    Ok(facts)
}
