//! `[train]` and `[memory]`: how long, in what batches, which weights, and what is kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::Selector;
use crate::values::{WordOrNames, word_or_names_schema};

/// How long the run is, in what batches, which weights it trains, and how often it saves and evaluates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Length of the run in optimizer steps. Exactly one of steps, epochs and tokens; one epoch when none is given. 0: for an
    /// adapter that is computed in closed form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub steps: Option<u64>,
    /// Length of the run in passes over the data, such as 3 or 0.5.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub epochs: Option<f64>,
    /// Length of the run in tokens, padding not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1))]
    pub tokens: Option<u64>,
    /// Sequences (packed rows) per device and micro-step.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Micro-steps per optimizer step.
    #[schemars(range(min = 1))]
    pub gradient_accumulation: usize,
    /// What is trained: "auto" (the adapter; everything without one), a list of parameter names such as
    /// ["embed_tokens"], or "re:" and a regular expression searched in the parameter's name.
    pub parameters: Parameters,
    /// Parameters left alone for the first part of the run, such as [{ match = "re:embed", until = 0.025 }].
    pub freeze: Vec<Freeze>,
    /// Steps between checkpoints. 0: only at the end.
    pub checkpoint_every: u64,
    /// How many checkpoints stay on disk; older ones are removed.
    #[schemars(range(min = 1))]
    pub keep_checkpoints: usize,
    /// Steps between evaluations. 0: only before the first step and at the end.
    pub eval_every: u64,
    /// End the run when evaluation no longer gets better.
    pub early_stop: EarlyStop,
    /// Steps between progress lines where there is no terminal; metrics.jsonl has a row for every step.
    #[schemars(range(min = 1))]
    pub log_every: u64,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: Some(1.0),
            tokens: None,
            batch_size: 4,
            gradient_accumulation: 8,
            parameters: Parameters::Auto,
            freeze: Vec::new(),
            checkpoint_every: 500,
            keep_checkpoints: 2,
            eval_every: 500,
            early_stop: EarlyStop::default(),
            log_every: 1,
        }
    }
}

impl Train {
    /// Length of the run, in the unit that the recipe chose.
    #[must_use]
    pub fn length(&self) -> Length {
        match (self.steps, self.tokens, self.epochs) {
            (Some(steps), _, _) => Length::Steps(steps),
            (None, Some(tokens), _) => Length::Tokens(tokens),
            (None, None, epochs) => Length::Epochs(epochs.unwrap_or(1.0)),
        }
    }
}

/// Length of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the data.
    Epochs(f64),
    /// Tokens, padding not counted.
    Tokens(u64),
}

/// Which parameters are trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WordOrNames", into = "WordOrNames")]
pub enum Parameters {
    /// The adapter; everything without one.
    Auto,
    /// The parameters whose path contains one of these names as whole segments.
    Names(Vec<String>),
    /// The parameters in whose path this regular expression is found (without the `re:`).
    Regex(String),
}

impl Parameters {
    /// What decides whether a parameter is trained; `None` for [`Parameters::Auto`].
    ///
    /// # Errors
    /// When the regular expression is none; never for a loaded recipe, whose patterns were checked.
    pub fn selector(&self) -> Result<Option<Selector>, regex::Error> {
        match self {
            Self::Auto => Ok(None),
            Self::Names(names) => Ok(Some(Selector::from_names(names))),
            Self::Regex(pattern) => Selector::from_regex(pattern).map(Some),
        }
    }
}

impl From<WordOrNames> for Parameters {
    fn from(value: WordOrNames) -> Self {
        match value {
            WordOrNames::Word(word) => match word.strip_prefix("re:") {
                Some(pattern) => Self::Regex(pattern.to_owned()),
                None => Self::Auto,
            },
            WordOrNames::Names(names) => Self::Names(names),
        }
    }
}

impl From<Parameters> for WordOrNames {
    fn from(parameters: Parameters) -> Self {
        match parameters {
            Parameters::Auto => Self::Word("auto".to_owned()),
            Parameters::Names(names) => Self::Names(names),
            Parameters::Regex(pattern) => Self::Word(format!("re:{pattern}")),
        }
    }
}

impl JsonSchema for Parameters {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Parameters".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        word_or_names_schema("auto", "parameter names")
    }
}

/// Parameters left alone for the first part of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Which parameters: "re:" and a regular expression searched in the name, or a name.
    #[schemars(length(min = 1))]
    pub r#match: String,
    /// Until which share of the run.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub until: f64,
}

impl Freeze {
    /// What decides whether a parameter is frozen.
    ///
    /// # Errors
    /// When the regular expression is none; never for a loaded recipe, whose patterns were checked.
    pub fn selector(&self) -> Result<Selector, regex::Error> {
        Selector::from_text(&self.r#match)
    }
}

/// When to end the run before its length is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStop {
    /// What has to get better: its mean over languages.
    pub metric: Metric,
    /// How many evaluations in a row may be no better than the best so far. 0: never end early.
    pub patience: usize,
}

impl Default for EarlyStop {
    fn default() -> Self {
        Self {
            metric: Metric::Loss,
            patience: 0,
        }
    }
}

/// What evaluation measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean negative log-likelihood per supervised token; lower is better.
    Loss,
    /// e to the loss; lower is better.
    Perplexity,
    /// Negative log2-likelihood per byte of text; lower is better.
    BitsPerByte,
    /// Share of answers equal to the expected one; higher is better.
    ExactMatch,
    /// Share of items for which the right answer was the most likely one; higher is better.
    Accuracy,
    /// chrF++ of answers; higher is better.
    Chrf,
    /// BLEU of answers; higher is better.
    Bleu,
    /// Share of texts whose nearest one in the other language is their translation; higher is better.
    Retrieval,
    /// Share of answers in the right language; higher is better.
    Fidelity,
    /// Share of items that are answered the same in several languages; higher is better.
    Consistency,
    /// Harmonic mean of accuracy and consistency; higher is better.
    Ac3,
    /// Mean share of items that are answered the same in two languages; higher is better.
    Mlc,
    /// How far the other languages are behind the anchor in a task's first metric; lower is better.
    Gap,
}

impl Metric {
    /// The name in `metrics.jsonl`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Perplexity => "perplexity",
            Self::BitsPerByte => "bits_per_byte",
            Self::ExactMatch => "exact_match",
            Self::Accuracy => "accuracy",
            Self::Chrf => "chrf",
            Self::Bleu => "bleu",
            Self::Retrieval => "retrieval",
            Self::Fidelity => "fidelity",
            Self::Consistency => "consistency",
            Self::Ac3 => "ac3",
            Self::Mlc => "mlc",
            Self::Gap => "gap",
        }
    }

    /// Whether a larger value is better.
    #[must_use]
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Loss | Self::Perplexity | Self::BitsPerByte | Self::Gap)
    }
}

/// What is kept in memory, and how much of it a run may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether the backward pass computes a block's activations again. "auto": where they do not fit into `budget`, or into
    /// the memory that is free when the run starts.
    pub recompute: Recompute,
    /// What lives in host memory while it is not computed with.
    pub offload: Offload,
    /// The format that block inputs are kept in, where the backward pass computes the rest again. "auto": that of the
    /// computation.
    pub block_inputs: BlockInputs,
    /// Most memory that the run may take on its device, such as "4GiB" or "2500MB": a run that is planned to take more is
    /// refused before anything is loaded. Empty: no limit.
    #[schemars(
        extend("pattern" = r"^(|[0-9]+(\.[0-9]+)? ?([KMGT]i?)?B)$"),
        extend("x-expected" = "empty, or a number of bytes such as \"4GiB\" or \"2500MB\"")
    )]
    pub budget: String,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            recompute: Recompute::Auto,
            offload: Offload::None,
            block_inputs: BlockInputs::Auto,
            budget: String::new(),
        }
    }
}

impl Memory {
    /// The budget in bytes; none where there is no limit.
    #[must_use]
    pub fn budget_bytes(&self) -> Option<u64> {
        parse_bytes(&self.budget)
    }
}

/// A number of bytes out of a text such as "4GiB" (1024³) or "2500MB" (1000²); none out of what is no such text.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

/// Whether the backward pass computes activations again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// As memory allows.
    Auto,
    /// Keep the activations of all blocks.
    None,
    /// Keep each block's input, and compute the rest again.
    Block,
}

impl Recompute {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Block => "block",
        }
    }
}

/// What lives in host memory while it is not computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// Nothing.
    None,
    /// Block inputs: copied out while later blocks compute, and in when their block needs them. On a CPU this changes nothing.
    Activations,
    /// The frozen weights of blocks: read from the file, or from host memory, one block ahead.
    Weights,
}

impl Offload {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Activations => "activations",
            Self::Weights => "weights",
        }
    }
}

/// The format that block inputs are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BlockInputs {
    /// That of the computation.
    Auto,
    /// bfloat16.
    Bf16,
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_are_read_in_both_systems() {
        assert_eq!(parse_bytes("4GiB"), Some(4 << 30));
        assert_eq!(parse_bytes("2500MB"), Some(2_500_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Some(3 << 29));
        assert_eq!(parse_bytes("512B"), Some(512));
        assert_eq!(parse_bytes(""), None);
        assert_eq!(parse_bytes("-1GiB"), None);
        assert_eq!(parse_bytes("four GiB"), None);
    }
}
