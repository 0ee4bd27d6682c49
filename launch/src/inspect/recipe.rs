//! Recipes.

use std::path::Path;

use interlingua_recipes::{Adapter, AdapterKind, Recipe, Route};
use serde_json::{Value, json};

use super::{Facts, facts as object};
use crate::exit::Failure;

/// What a recipe says, in short.
///
/// # Errors
/// When the recipe is wrong.
pub(super) fn facts(path: &Path) -> Result<Facts, Failure> {
    let recipe = Recipe::load(path, &[]).map_err(Failure::usage)?;
    let sources = recipe.data.sources.iter().map(
        |source| json!({ "source": source.name, "format": source.format, "lang": source.lang, "path": source.path }),
    );
    let tasks = recipe
        .eval
        .tasks
        .iter()
        .map(|task| json!({ "task": task.name, "kind": task.kind, "path": task.path }));
    Ok(object([
        ("kind", json!("recipe")),
        ("path", json!(path)),
        ("output", json!(recipe.output)),
        ("model", json!(recipe.model.path)),
        ("trains", json!(trains(&recipe.adapter))),
        ("objective", json!(recipe.objective.kind)),
        (
            "stages",
            json!(recipe.stage.iter().map(|stage| &stage.name).collect::<Vec<_>>()),
        ),
        ("sources", Value::Array(sources.collect())),
        ("tasks", Value::Array(tasks.collect())),
    ]))
}

/// What a recipe trains, in words.
pub(crate) fn trains(adapter: &Adapter) -> String {
    let kind = adapter.kind.name();
    let mut trained = match adapter.kind {
        AdapterKind::None => "base weights".to_owned(),
        AdapterKind::Lora | AdapterKind::Dora => format!("{kind} of rank {}", adapter.rank),
        AdapterKind::Bottleneck => format!("{kind} with reduction {}", adapter.reduction.unwrap_or(1)),
        AdapterKind::Steering => format!("{kind} vector"),
    };
    if adapter.route == Route::Language {
        trained.push_str(", a copy for each language");
    }
    if !adapter.under.is_empty() {
        trained.push_str(&format!(", on {} frozen adapters", adapter.under.len()));
    }
    trained
}
