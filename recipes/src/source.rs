//! `[[data.sources]]`: a file of rows, and how to read them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One source of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name in tables and messages. Default: the file's name without its ending.
    #[serde(default)]
    pub name: String,
    /// A .jsonl, .json, .parquet, .tsv or .txt file, or a glob such as "data/*.jsonl" (relative to the recipe file).
    #[schemars(with = "String", length(min = 1))]
    pub path: PathBuf,
    /// What a row looks like.
    pub format: Format,
    /// The language of all rows, a BCP-47 tag such as "sw" or "zh-Hant". Absent: each row's own `lang`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang: Option<String>,
    /// The column that holds each row's language, in place of `lang`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang_field: Option<String>,
    /// The column whose rows of one value are translations of one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub group_field: Option<String>,
    /// Which column to read for a field of the format, such as { prompt = "question" }.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Changes to the text before it is tokenised, in this order.
    #[serde(default)]
    pub normalize: Vec<Normalization>,
    /// Use the first N rows only. 0: all.
    #[serde(default)]
    pub limit: usize,
}

/// What a row looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// {instruction, input?, output, system?, history?}
    Alpaca,
    /// {conversations: [{from, value}]}
    Sharegpt,
    /// {messages: [{role, content}], tools?}
    Messages,
    /// {prompt, completion}
    PromptCompletion,
    /// {text}, or the lines of a .txt file
    Text,
    /// {input_ids, labels?}, already tokenised; labels are not shifted, and -100 is not supervised
    Tokens,
}

/// A change to the text before it is tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalization {
    /// Unicode canonical composition.
    Nfc,
    /// Unicode compatibility composition.
    Nfkc,
    /// One form for each Arabic letter that is written in several.
    ArabicLetters,
}
