//! `[eval]`: what is measured at step 0, every `train.eval_every` steps, and at the end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::auxiliary::Pool;
use crate::by_language::ByLanguage;
use crate::layer::Layer;
use crate::source::Format;

/// What is measured at step 0, every `train.eval_every` steps, and at the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Write every answer of a run's evaluations to output/answers/step-N/TASK.jsonl, so that scores can be computed again and
    /// runs compared item by item.
    pub save_answers: bool,
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
    #[serde(default, skip_serializing_if = "is_empty")]
    #[schemars(with = "String", length(min = 1))]
    pub path: PathBuf,
    /// What a row looks like.
    pub format: Format,
    /// In place of `path`: an earlier task of kind "generate" with `translate`, whose rows are read with its answers in the place
    /// of the translated fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub from: Option<String>,
    /// The language of all rows, a BCP-47 tag such as "sw". Absent: each row's own `lang`, or that of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang: Option<String>,
    /// The column that holds each row's language, in place of `lang`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang_field: Option<String>,
    /// The column whose rows of one value are the same item in several languages: consistency across languages is measured over
    /// them. Formats that are parallel by themselves need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub group_field: Option<String>,
    /// The language that the others are compared with.
    #[serde(default = "anchor")]
    pub anchor: String,
    /// What becomes of an item that is not there in all languages, where items are compared across languages.
    #[serde(default)]
    pub missing: MissingItem,
    /// The languages to measure. Empty: all that the rows have.
    #[serde(default)]
    pub languages: Vec<String>,
    /// Which column to read for a field of the format, such as { prompt = "question" }.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Use the first N rows of each language only. 0: all.
    #[serde(default)]
    pub limit: usize,
    /// The answers to choose from, where rows have none of their own: labels of a classification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// What the model is asked: a Jinja template over the row's fields, or one for each language such as
    /// { en = "…", sw = "…" }. Absent: the row's own question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ByLanguage")]
    pub prompt: Option<ByLanguage>,
    /// In which language the model is asked, where `prompt` has templates for several.
    #[serde(default)]
    pub prompt_language: PromptLanguage,
    /// Whether prompts pass through the chat template. Absent: where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub chat: Option<bool>,
    /// Examples with their answers before each question.
    #[serde(default)]
    pub shots: usize,
    /// Where examples are read, in the same format. Absent: other rows of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub shots_path: Option<PathBuf>,
    /// Draws examples and mixed languages.
    #[serde(default)]
    pub seed: u64,
    /// multiple-choice: what is compared.
    #[serde(default)]
    pub scoring: Scoring,
    /// multiple-choice: what the log-probability of an answer is divided by before answers are compared.
    #[serde(default)]
    pub divide_by: DivideBy,
    /// generate: longest answer in tokens.
    #[serde(default = "max_new_tokens")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// generate: an answer ends before the first of these texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// generate: what of an answer is compared.
    #[serde(default)]
    pub extract: Extract,
    /// generate: how answers are compared with the expected ones. Empty: "exact-match", and of translations, which have none to
    /// compare with, "fidelity".
    #[serde(default)]
    pub measures: Vec<Measure>,
    /// generate: the language that answers should be in, where it is not that of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub answer_lang: Option<String>,
    /// generate: in place of the question, translate each text of these fields by itself; `prompt` sees it as `text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translate: Vec<String>,
    /// retrieval, similarity: the layer whose number stands for the task; all layers are measured.
    #[serde(default = "layer")]
    pub layer: Layer,
    /// retrieval, similarity: what stands for a text.
    #[serde(default)]
    pub pool: Pool,
    /// retrieval: the similarity whose number stands for the task; both are measured.
    #[serde(default)]
    pub similarity: Similarity,
    /// retrieval: nearest neighbours that the margin averages over.
    #[serde(default = "neighbours")]
    #[schemars(range(min = 1))]
    pub neighbours: usize,
}

fn is_empty(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

fn anchor() -> String {
    "en".to_owned()
}

fn max_new_tokens() -> usize {
    128
}

fn layer() -> Layer {
    Layer::Middle
}

fn neighbours() -> usize {
    4
}

impl Task {
    /// Puts the defaults in that depend on other keys.
    pub(crate) fn fill_in(&mut self) {
        if self.kind == TaskKind::Generate && self.measures.is_empty() {
            let is_translation = !self.translate.is_empty();
            self.measures = vec![if is_translation {
                Measure::Fidelity
            } else {
                Measure::ExactMatch
            }];
        }
    }
}

/// What is done with a task's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Loss, perplexity and bits per byte of the supervised tokens.
    Perplexity,
    /// Which of a row's answers the model finds the most likely.
    MultipleChoice,
    /// The model answers (greedy), and the answer is compared with the expected one.
    Generate,
    /// Of texts in two languages, how often the nearest one is the translation; by layer.
    Retrieval,
    /// How alike texts in two languages are: linear CKA and Language Ranker; by layer.
    Similarity,
    /// What the head makes of each layer: the text's own tokens, or those of its English translation.
    LogitLens,
    /// Fertility, parity, compression and vocabulary use of the tokenizer.
    Tokenizer,
}

impl TaskKind {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::MultipleChoice => "multiple-choice",
            Self::Generate => "generate",
            Self::Retrieval => "retrieval",
            Self::Similarity => "similarity",
            Self::LogitLens => "logit-lens",
            Self::Tokenizer => "tokenizer",
        }
    }

    /// Whether it compares texts that are translations of one another.
    #[must_use]
    pub fn is_parallel(self) -> bool {
        matches!(self, Self::Retrieval | Self::Similarity | Self::LogitLens)
    }
}

/// What becomes of an item that is not there in all languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MissingItem {
    /// The task is refused, naming the languages.
    #[default]
    Fail,
    /// The item is left out in all languages.
    Skip,
}

/// In which language the model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptLanguage {
    /// In the language of the row.
    #[default]
    Native,
    /// In English, with the row's own texts.
    English,
    /// The prompt, the choices and the examples each in a language drawn among those of the item.
    Mixed,
}

/// What of a multiple-choice row is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The log-probability of each answer's whole text after the prompt.
    #[default]
    Answer,
    /// That of its letter; the prompt lists the answers.
    Letter,
    /// That of the prompt's template, filled with each answer in turn as `choice`.
    Template,
}

/// What the log-probability of an answer is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DivideBy {
    /// Nothing: sums are compared.
    #[default]
    Nothing,
    /// Its tokens.
    Tokens,
    /// Its bytes.
    Bytes,
}

/// What of a generated answer is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Extract {
    /// All of it, outer spaces apart.
    #[default]
    All,
    /// Its first line.
    FirstLine,
    /// Its last number, by value.
    Number,
    /// The first letter that stands alone.
    Letter,
}

/// How a generated answer is compared with the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Share of answers equal to the expected one: `exact_match`.
    ExactMatch,
    /// chrF++ as sacrebleu has it: `chrf`.
    Chrf,
    /// BLEU as sacrebleu has it: `bleu`.
    Bleu,
    /// Share of answers in the right language: `fidelity`.
    Fidelity,
    /// Words shared with the expected answer, as SQuAD and MLQA count them: `f1`, and `exact_match` by their rules.
    Qa,
    /// JSON answers with intent and slots: `intent_accuracy`, `slot_f1`.
    IntentSlots,
    /// Several labels in an answer, a JSON list or separated by commas: `label_f1`, `label_f1_macro`.
    Labels,
}

/// How alike two texts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Similarity {
    /// The cosine over the mean cosine to the nearest neighbours of both.
    #[default]
    Margin,
    /// The cosine.
    Cosine,
}
