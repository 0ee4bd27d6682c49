//! What a task is made of: items that are answered one by one, and scores out of the answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::scores::Scores;
use crate::error::TrainError;
use crate::models::Model;

/// A task, ready to be answered.
pub(super) trait Work: Send + Sync {
    /// How many items it has; their numbers are 0 and up.
    fn items(&self) -> usize;

    /// Items that are answered between two times that answers are written.
    fn at_a_time(&self) -> usize {
        64
    }

    /// The answers to these items, in their order.
    ///
    /// # Errors
    /// When the model's numbers are none.
    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError>;

    /// The scores of the answers to all items, in the order of their numbers.
    fn score(&self, answers: &[Answer]) -> Scores;

    /// A hash of everything besides the model that the answers depend on.
    fn fingerprint(&self) -> blake3::Hash;
}

/// What a model said to one item: a line of a file of answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The item, counted from 0.
    pub number: usize,
    /// The row's own `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the same item in other languages shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its language.
    pub language: String,
    /// The answer itself.
    #[serde(flatten)]
    pub said: Said,
}

/// An answer, by the kind of the task. All that a score needs is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Said {
    /// Which of several answers was the most likely.
    Choice {
        /// Log-probability of each.
        log_probs: Vec<f64>,
        /// Tokens of each.
        tokens: Vec<u64>,
        /// Bytes of each.
        bytes: Vec<u64>,
        /// The most likely one, after what the task divides by.
        choice: usize,
        /// The right one.
        answer: usize,
    },
    /// A text.
    Text {
        /// What was asked.
        prompt: String,
        /// What the model wrote.
        output: String,
        /// What was expected; null where nothing was.
        expected: Value,
    },
    /// How likely the text of a row is.
    Likelihood {
        /// Sum of the negative log-likelihoods of its supervised tokens.
        loss: f64,
        /// How many they are.
        supervised: u64,
        /// Bytes of their text.
        bytes: u64,
        /// Tokens that passed through each expert of each block, where the model has experts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        experts: Vec<Vec<u64>>,
    },
    /// Whether each sentence of a language finds its translation in the anchor's, and the other way round: for each layer a text with
    /// a 1 or a 0 for each sentence.
    Retrieval {
        /// By cosine, from the anchor to the language.
        cosine_from_anchor: Vec<String>,
        /// By cosine, from the language to the anchor.
        cosine_to_anchor: Vec<String>,
        /// By margin, from the anchor to the language.
        margin_from_anchor: Vec<String>,
        /// By margin, from the language to the anchor.
        margin_to_anchor: Vec<String>,
    },
    /// How alike the sentences of a language are to the anchor's.
    Similarity {
        /// Linear CKA at each layer; null where all states of a side are equal.
        cka: Vec<Option<f64>>,
        /// Debiased.
        cka_debiased: Vec<Option<f64>>,
        /// The mean cosine of the last tokens of translations, at each layer.
        language_ranker: Vec<f64>,
        /// The cosine of each sentence's last token with its translation's, averaged over the layers.
        cosines: Vec<f64>,
    },
    /// What the head makes of each layer of a sentence: sums over its positions, for each layer.
    Lens {
        /// Positions.
        positions: u64,
        /// Positions that a token follows.
        followed: u64,
        /// Probability of the tokens that only this sentence has; none in the anchor's language.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        own: Vec<f64>,
        /// Probability of the tokens that only its translation has; none in the anchor's language.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        english: Vec<f64>,
        /// Positions whose most likely token is that of the last layer.
        agreement: Vec<u64>,
        /// Negative log-likelihoods of the tokens that follow.
        lens_loss: Vec<f64>,
    },
    /// A text as tokens.
    Tokens {
        /// The tokens.
        token_ids: Vec<u32>,
        /// Tokens, words, characters, bytes, and unknown tokens.
        counts: Vec<f64>,
    },
}
