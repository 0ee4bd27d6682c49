//! A boundary between the parts of a model: N as in `hidden_states.N`.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// N as in `hidden_states.N`: 0 is the embedding's output, L (the number of blocks) the last one, after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Layer {
    /// Half of the blocks, rounded down.
    Middle,
    /// After the final norm.
    Last,
    /// This one.
    Number(usize),
}

impl Layer {
    /// N in a model of so many blocks; `None` when the model has no such boundary.
    #[must_use]
    pub fn of(self, blocks: usize) -> Option<usize> {
        let layer = match self {
            Self::Middle => blocks / 2,
            Self::Last => blocks,
            Self::Number(layer) => layer,
        };
        (layer <= blocks).then_some(layer)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Middle => formatter.write_str("middle"),
            Self::Last => formatter.write_str("last"),
            Self::Number(layer) => layer.fmt(formatter),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(usize),
    Word(String),
}

impl TryFrom<Written> for Layer {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(layer) => Ok(Self::Number(layer)),
            Written::Word(word) if word == "middle" => Ok(Self::Middle),
            Written::Word(word) if word == "last" => Ok(Self::Last),
            Written::Word(word) => Err(format!("{word:?} is no layer")),
        }
    }
}

impl From<Layer> for Written {
    fn from(layer: Layer) -> Self {
        match layer {
            Layer::Middle => Self::Word("middle".to_owned()),
            Layer::Last => Self::Word("last".to_owned()),
            Layer::Number(layer) => Self::Number(layer),
        }
    }
}

impl JsonSchema for Layer {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Layer".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [{ "const": "middle" }, { "const": "last" }, { "type": "integer", "minimum": 0 }],
            "x-expected": "\"middle\", \"last\", or N as in hidden_states.N"
        })
    }
}
