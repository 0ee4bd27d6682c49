//! What was read, kept and dropped, per source and language.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::batch::supervised_tokens;
use crate::tokenize::Tokens;
use crate::tokenized_file::ranges;

/// What was read, kept and dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// One entry per source, in the recipe's order.
    pub sources: Vec<SourceReport>,
    /// What a person should know, in whole sentences.
    pub notes: Vec<String>,
}

/// What was read, kept and dropped of one source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Rows read, skipped ones included.
    pub rows: u64,
    /// What became of the rows, by language.
    pub by_language: BTreeMap<String, Counts>,
    /// Bad rows that were skipped, by the kind of what is wrong with them.
    pub skipped: BTreeMap<String, SkippedRows>,
    /// Whether only a loss or a probe reads it.
    pub auxiliary: bool,
    /// Preference pairs that were kept.
    pub pairs: u64,
    /// Those of them with an answer in another language than the prompt, by the languages: "ar→en", or "ar→en, fr" where the
    /// two answers differ.
    pub cross_lingual: BTreeMap<String, u64>,
}

/// What became of the rows of one language.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Samples kept, held-out ones included; a long text makes several.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their supervised tokens: labels that have a token before them.
    pub supervised_tokens: u64,
    /// Rows that were kept but lost their end.
    pub truncated: u64,
    /// Rows that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Bad rows that were skipped for the same kind of problem.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SkippedRows {
    /// How many.
    pub rows: u64,
    /// What is wrong with the first one, and where it is.
    pub first: String,
}

impl Counts {
    /// Counts one more sequence.
    pub(crate) fn add(&mut self, tokens: &Tokens) {
        self.samples += 1;
        self.tokens += tokens.labels.len() as u64;
        self.supervised_tokens += ranges(&tokens.parts, tokens.labels.len())
            .map(|part| supervised_tokens(&tokens.labels[part]) as u64)
            .sum::<u64>();
    }

    /// All rows that were dropped.
    pub fn dropped_rows(&self) -> u64 {
        self.dropped.values().sum()
    }

    fn merge(&mut self, other: &Counts) {
        self.samples += other.samples;
        self.tokens += other.tokens;
        self.supervised_tokens += other.supervised_tokens;
        self.truncated += other.truncated;
        for (reason, rows) in &other.dropped {
            *self.dropped.entry(reason.clone()).or_default() += rows;
        }
    }
}

impl SourceReport {
    /// A note on pairs whose answers are in another language than their prompt, where there are such.
    pub(crate) fn cross_lingual_note(&self) -> Option<String> {
        let crossing: u64 = self.cross_lingual.values().sum();
        let mut languages: Vec<(&String, &u64)> = self.cross_lingual.iter().collect();
        languages.sort_by_key(|(languages, pairs)| (std::cmp::Reverse(**pairs), *languages));
        let languages: Vec<String> = languages
            .into_iter()
            .map(|(languages, pairs)| format!("{languages} {pairs}"))
            .collect();
        (crossing > 0).then(|| {
            format!(
                "{crossing} of {} preference pairs of source {} have answers in another language than the prompt: {}.",
                self.pairs,
                self.name,
                languages.join("; ")
            )
        })
    }

    /// Tokens of all languages.
    pub fn tokens(&self) -> u64 {
        self.by_language.values().map(|counts| counts.tokens).sum()
    }
}

impl Report {
    /// What became of the rows of each language, over all sources that are trained on.
    pub fn by_language(&self) -> BTreeMap<String, Counts> {
        merged(self.sources.iter().filter(|source| !source.auxiliary))
    }

    /// Rows that were dropped, by language and reason, those of auxiliary sources included.
    pub fn dropped(&self) -> BTreeMap<(String, String), u64> {
        let languages = merged(self.sources.iter());
        let dropped = languages.iter().flat_map(|(language, counts)| {
            counts
                .dropped
                .iter()
                .map(|(reason, rows)| ((language.clone(), reason.clone()), *rows))
        });
        dropped.collect()
    }

    pub(crate) fn why_nothing_is_left(&self) -> String {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for source in &self.sources {
            for (reason, rows) in source.by_language.values().flat_map(|counts| &counts.dropped) {
                *reasons.entry(reason).or_default() += rows;
            }
            for (kind, skipped) in &source.skipped {
                *reasons.entry(kind).or_default() += skipped.rows;
            }
        }
        let reasons: Vec<String> = reasons
            .iter()
            .map(|(reason, rows)| format!("{rows} rows: {reason}"))
            .collect();
        if reasons.is_empty() {
            "the recipe has no data.sources".to_owned()
        } else {
            reasons.join("; ")
        }
    }
}

fn merged<'a>(sources: impl Iterator<Item = &'a SourceReport>) -> BTreeMap<String, Counts> {
    let mut all: BTreeMap<String, Counts> = BTreeMap::new();
    for (language, counts) in sources.flat_map(|source| &source.by_language) {
        all.entry(language.clone()).or_default().merge(counts);
    }
    all
}
