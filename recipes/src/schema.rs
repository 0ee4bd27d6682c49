//! The JSON Schema of a recipe: what editors read, and what [`crate::keys`] checks recipes against.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::merge::Merge;
use crate::recipe::Recipe;

/// The JSON Schema (draft 2020-12) of a recipe, with a description of every key.
#[must_use]
pub fn json_schema() -> Value {
    schema().clone()
}

/// The same, made once.
pub(crate) fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(build)
}

fn build() -> Value {
    let mut root = SchemaSettings::draft2020_12()
        .for_deserialize()
        .into_generator()
        .into_root_schema_for::<Recipe>()
        .to_value();
    root["title"] = json!("Interlingua recipe");
    root["required"] = json!(["output"]);
    // A pipeline may leave the model or the data to its stages.
    root["if"] = json!({ "not": { "required": ["stage"] } });
    root["then"] = json!({ "required": ["model", "data"] });
    let stage = stage(&root);
    root["$defs"]["Stage"] = stage;
    root
}

/// A stage: its own three keys, and every recipe key but the output folder and further stages.
fn stage(root: &Value) -> Value {
    let mut properties = Map::new();
    properties.insert(
        "name".to_owned(),
        json!({
            "description": "Name of the stage, and of its folder in `output`.",
            "type": "string",
            "pattern": "^[\\p{L}\\p{N}_-][\\p{L}\\p{N}._-]*$",
            "x-expected": "a folder name of letters, digits, dots, hyphens and underscores",
        }),
    );
    properties.insert(
        "from".to_owned(),
        json!({
            "description": "The stage whose model or adapter this one goes on from. Default: the stage before.",
            "type": "string",
        }),
    );
    properties.insert("merge".to_owned(), merge());
    if let Some(keys) = root["properties"].as_object() {
        let keys = keys
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "output" | "stage"));
        // Without their defaults: what a stage leaves out comes from the rest of the recipe.
        properties.extend(keys.map(|(key, value)| {
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.remove("default");
            }
            (key.clone(), value)
        }));
    }
    json!({
        "description": "One stage of a pipeline: any recipe keys, laid over the rest of the recipe.",
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "additionalProperties": false,
    })
}

/// `stage.merge`, with the schemas of its values in place.
fn merge() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_deserialize();
    settings.inline_subschemas = true;
    let mut merge = settings.into_generator().into_root_schema_for::<Merge>().to_value();
    if let Some(fields) = merge.as_object_mut() {
        fields.retain(|key, _| !matches!(key.as_str(), "$schema" | "title"));
    }
    merge
}

/// The schema that a `$ref` stands for; any other schema is itself.
pub(crate) fn follow<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    schema["$ref"]
        .as_str()
        .and_then(|reference| reference.strip_prefix('#'))
        .and_then(|pointer| root.pointer(pointer))
        .unwrap_or(schema)
}
