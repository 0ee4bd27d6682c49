//! Shapes of values that several tables share.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A word, a pattern, or a list of names: what `targets` and `parameters` are written as.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum WordOrNames {
    Word(String),
    Names(Vec<String>),
}

/// The JSON Schema of [`WordOrNames`] with the one word that stands for the default.
pub(crate) fn word_or_names_schema(word: &str, names: &str) -> schemars::Schema {
    schemars::json_schema!({
        "anyOf": [
            { "const": word },
            { "type": "string", "pattern": "^re:." },
            { "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 }
        ],
        "x-expected": format!("\"{word}\", a list of {names}, or \"re:\" and a regular expression")
    })
}

/// Writes an absent path as the empty string.
pub(crate) fn write_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().unwrap_or("".as_ref()).serialize(serializer)
}

/// Reads the empty string as an absent path.
pub(crate) fn read_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}
