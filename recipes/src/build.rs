//! `[[data.sources.build]]`: rows made out of parallel ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objective::fill;

/// Makes rows out of the groups of a source: rows of one group are translations of one another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// What is made.
    pub kind: BuildKind,
    /// The languages that are asked in. Empty: all; "en" for crossin.
    #[serde(default)]
    pub from: Vec<String>,
    /// The languages that are answered in. Empty: all.
    #[serde(default)]
    pub to: Vec<String>,
    /// How many rows are made (crossin: of each of its three modes), drawn at random. 0: all that can be made.
    #[serde(default)]
    pub count: usize,
    /// The prompt, or the document, as a Jinja template. Absent: the kind's own (see the data page of the documentation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub template: Option<String>,
    /// cross-lingual-answer: the probability that the answer is in another language than the prompt. Default: 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0, max = 1.0))]
    pub probability: Option<f64>,
    /// parallel-document: how many languages of a group are in a document. Default: 0, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub languages_per_document: Option<usize>,
    /// Which language a made row counts as.
    #[serde(default)]
    pub lang: BuiltLanguage,
}

impl Build {
    /// Fills in the numbers that the kind reads and the recipe leaves out.
    pub(crate) fn fill_in(&mut self) {
        let document = self.kind == BuildKind::ParallelDocument;
        fill(&mut self.probability, self.kind == BuildKind::CrossLingualAnswer, 0.5);
        fill(&mut self.languages_per_document, document, 0);
    }
}

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BuildKind {
    /// Translate a text.
    Translation,
    /// Translate a question, without its answer (Zhang et al. 2024).
    QuestionTranslation,
    /// Answer in another language than that of the question, both ways, and translate the instruction (Lin et al. 2024).
    Crossin,
    /// Answer in the language that the prompt asks for (Li et al. 2024).
    CrossLingualAnswer,
    /// Translate a text that has a tag of the wanted language before it (Johnson et al. 2017).
    LanguageTag,
    /// One text of several language versions, each with its tag.
    ParallelDocument,
}

impl BuildKind {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Translation => "translation",
            Self::QuestionTranslation => "question-translation",
            Self::Crossin => "crossin",
            Self::CrossLingualAnswer => "cross-lingual-answer",
            Self::LanguageTag => "language-tag",
            Self::ParallelDocument => "parallel-document",
        }
    }

    /// Whether it needs rows that ask something and answer it.
    #[must_use]
    pub fn needs_answers(self) -> bool {
        matches!(self, Self::Crossin | Self::CrossLingualAnswer)
    }
}

/// Which language a made row counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuiltLanguage {
    /// That of the answer; of a document that of its last version.
    #[default]
    Target,
    /// That of the prompt; of a document that of its first version.
    Source,
}
