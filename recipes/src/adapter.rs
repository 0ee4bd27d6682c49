//! `[adapter]`: the small weights that are trained in place of the model's own.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::Selector;
use crate::values::{WordOrNames, read_path, word_or_names_schema, write_path};

/// The adapter to train. Without this table the base weights are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adapter {
    /// Which kind of adapter. "none": base weights are trained, as without this table.
    pub kind: AdapterKind,
    /// Inner dimension of the low-rank matrices A [rank, in] and B [out, rank].
    #[schemars(range(min = 1))]
    pub rank: usize,
    /// Numerator of the scale: the update is multiplied by alpha / rank (with `rslora`, by alpha / √rank).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Share of the adapter's inputs set to zero while training.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f64,
    /// Rank-stabilised scale: alpha / √rank in place of alpha / rank.
    pub rslora: bool,
    /// Which linear layers carry the adapter: "all-linear" (all but the head), a list of module names such as
    /// ["q_proj", "v_proj"], or "re:" and a regular expression searched in the module's path.
    pub targets: Targets,
    /// Modules trained in full and saved with the adapter, such as ["embed_tokens", "lm_head"].
    pub modules_to_save: Vec<String>,
    /// An adapter folder to go on from (relative to the recipe file). Empty: start anew.
    #[serde(serialize_with = "write_path", deserialize_with = "read_path")]
    #[schemars(with = "String")]
    pub init_from: Option<PathBuf>,
}

impl Default for Adapter {
    fn default() -> Self {
        Self {
            kind: AdapterKind::Lora,
            rank: 16,
            alpha: 32.0,
            dropout: 0.05,
            rslora: false,
            targets: Targets::AllLinear,
            modules_to_save: Vec::new(),
            init_from: None,
        }
    }
}

impl Adapter {
    /// What a recipe without `[adapter]` means: base weights are trained.
    #[must_use]
    pub fn none() -> Self {
        Self {
            kind: AdapterKind::None,
            ..Self::default()
        }
    }
}

/// The kinds of adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Low-rank updates of linear layers (Hu et al. 2021).
    Lora,
    /// LoRA on the direction, with a trained magnitude per output (Liu et al. 2024).
    Dora,
    /// No adapter: base weights are trained.
    None,
}

/// Which linear layers carry the adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WordOrNames", into = "WordOrNames")]
pub enum Targets {
    /// Every linear layer but the head, as in PEFT.
    AllLinear,
    /// The layers whose path contains one of these names as whole segments.
    Names(Vec<String>),
    /// The layers in whose path this regular expression is found (without the `re:`).
    Regex(String),
}

impl Targets {
    /// What decides whether a module carries the adapter; `None` for [`Targets::AllLinear`].
    ///
    /// # Errors
    /// When the regular expression is none; never for a loaded recipe, whose patterns were checked.
    pub fn selector(&self) -> Result<Option<Selector>, regex::Error> {
        match self {
            Self::AllLinear => Ok(None),
            Self::Names(names) => Ok(Some(Selector::from_names(names))),
            Self::Regex(pattern) => Selector::from_regex(pattern).map(Some),
        }
    }
}

impl From<WordOrNames> for Targets {
    fn from(value: WordOrNames) -> Self {
        match value {
            WordOrNames::Word(word) => match word.strip_prefix("re:") {
                Some(pattern) => Self::Regex(pattern.to_owned()),
                None => Self::AllLinear,
            },
            WordOrNames::Names(names) => Self::Names(names),
        }
    }
}

impl From<Targets> for WordOrNames {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::AllLinear => Self::Word("all-linear".to_owned()),
            Targets::Names(names) => Self::Names(names),
            Targets::Regex(pattern) => Self::Word(format!("re:{pattern}")),
        }
    }
}

impl JsonSchema for Targets {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Targets".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        word_or_names_schema("all-linear", "module names")
    }
}
