//! `[[data.sources]]`: a file of rows, and how to read them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::build::Build;

/// One source of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name in tables and messages. Default: the file's name without its ending.
    #[serde(default)]
    pub name: String,
    /// A .jsonl, .json, .parquet, .tsv or .txt file, or a glob such as "data/*.jsonl" (relative to the recipe file); or
    /// plain text files that are translations of one another line by line, { en = "x.en", sw = "x.sw" }.
    pub path: SourcePath,
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
    /// Whether its rows are trained on, or only read by what names it.
    #[serde(default)]
    pub r#use: SourceUse,
    /// Rows to make out of its parallel ones, in place of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub build: Vec<Build>,
    /// With `build`: train on the source's own rows too.
    #[serde(default)]
    pub keep: bool,
}

impl Source {
    /// A source that reads a file, or a glob, and leaves everything else at its default.
    #[must_use]
    pub fn new(name: &str, path: &Path, format: Format) -> Self {
        Self {
            name: name.to_owned(),
            path: SourcePath::Files(path.to_owned()),
            format,
            lang: None,
            lang_field: None,
            group_field: None,
            fields: BTreeMap::new(),
            normalize: Vec::new(),
            limit: 0,
            r#use: SourceUse::Train,
            build: Vec::new(),
            keep: false,
        }
    }
}

/// Where a source's rows are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SourcePath {
    /// A file, or a glob.
    Files(PathBuf),
    /// One plain text file for each language; line N of all of them says the same.
    Aligned(BTreeMap<String, PathBuf>),
}

impl SourcePath {
    /// The paths as they are written, globs not looked up.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let (one, many) = match self {
            Self::Files(path) => (Some(path), None),
            Self::Aligned(files) => (None, Some(files.values())),
        };
        one.into_iter().chain(many.into_iter().flatten()).map(PathBuf::as_path)
    }
}

impl fmt::Display for SourcePath {
    /// Writes the paths, separated by commas.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.paths().enumerate() {
            let before = if index == 0 { "" } else { ", " };
            write!(formatter, "{before}{}", path.display())?;
        }
        Ok(())
    }
}

impl JsonSchema for SourcePath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SourcePath".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "object", "minProperties": 2, "additionalProperties": { "type": "string", "minLength": 1 } }
            ],
            "x-expected": "a file, a glob, or two or more line-aligned files such as { en = \"x.en\", sw = \"x.sw\" }"
        })
    }
}

/// What a source's rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceUse {
    /// They are trained on.
    #[default]
    Train,
    /// They are read only by the loss or probe that names the source.
    Auxiliary,
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
    /// {prompt, chosen, rejected}
    Preference,
    /// {prompt, completion, label}
    Kto,
    /// {id, lang, text}, {id, text: {en, …}} or {src, tgt, src_lang, tgt_lang}
    Parallel,
    /// {question, context?, choices, answer}
    Choice,
    /// {input_ids, labels?}, already tokenised; labels are not shifted, and -100 is not supervised
    Tokens,
}

impl Format {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Sharegpt => "sharegpt",
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt-completion",
            Self::Text => "text",
            Self::Preference => "preference",
            Self::Kto => "kto",
            Self::Parallel => "parallel",
            Self::Choice => "choice",
            Self::Tokens => "tokens",
        }
    }

    /// Whether a row asks something and answers it.
    #[must_use]
    pub fn is_task(self) -> bool {
        matches!(
            self,
            Self::Alpaca | Self::Sharegpt | Self::Messages | Self::PromptCompletion
        )
    }
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
