//! A text that may differ by language.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One text for all languages, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ByLanguage {
    /// For all.
    All(String),
    /// By language tag.
    Each(BTreeMap<String, String>),
}

impl ByLanguage {
    /// The texts, each with the language that it is for where there are several.
    pub fn texts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        let (one, many) = match self {
            Self::All(text) => (Some((None, text.as_str())), None),
            Self::Each(texts) => (None, Some(texts)),
        };
        let many = many.into_iter().flatten();
        one.into_iter()
            .chain(many.map(|(tag, text)| (Some(tag.as_str()), text.as_str())))
    }
}

impl JsonSchema for ByLanguage {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByLanguage".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "object", "minProperties": 1, "additionalProperties": { "type": "string", "minLength": 1 } }
            ],
            "x-expected": "a text, or a text for each language such as { en = \"…\", sw = \"…\" }"
        })
    }
}
