//! `[eval]`: what is measured at step 0, every `train.eval_every` steps, and at the end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::Format;

/// What is measured at step 0, every `train.eval_every` steps, and at the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// The tasks, in order.
    pub tasks: Vec<Task>,
}

/// One thing to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name in tables and in metrics.jsonl. Default: the file's name without its ending.
    #[serde(default)]
    pub name: String,
    /// What is done with the rows.
    pub kind: TaskKind,
    /// A file or a glob, as in data.sources; {lang} in it stands for each of `languages` (relative to the recipe file).
    #[schemars(with = "String", length(min = 1))]
    pub path: PathBuf,
    /// What a row looks like.
    pub format: Format,
    /// The language of all rows, a BCP-47 tag such as "sw". Absent: each row's own `lang`, or that of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang: Option<String>,
    /// The column that holds each row's language, in place of `lang`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang_field: Option<String>,
    /// The languages to measure. Empty: all that the rows have.
    #[serde(default)]
    pub languages: Vec<String>,
    /// Which column to read for a field of the format, such as { prompt = "question" }.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Use the first N rows of each language only. 0: all.
    #[serde(default)]
    pub limit: usize,
    /// generate: longest answer in tokens.
    #[serde(default = "max_new_tokens")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
}

fn max_new_tokens() -> usize {
    128
}

/// What is done with a task's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Loss, perplexity and bits per byte of the supervised tokens.
    Perplexity,
    /// The model answers (greedy), and the answer is compared with the expected one.
    Generate,
}

impl TaskKind {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Generate => "generate",
        }
    }
}
