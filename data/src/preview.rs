//! What a person looks at before training: samples with their supervised part marked, and a table per language.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::batch::UNSUPERVISED;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::prepare::Prepared;
use crate::tokenizer::Tokenizer;

/// The text of a sample in pieces, each with whether it is supervised. Special tokens are shown. A character whose tokens lie on both
/// sides of a border belongs to the piece that completes it.
///
/// # Errors
/// When the tokenizer cannot decode the ids.
pub fn pieces(tokenizer: &Tokenizer, input_ids: &[u32], labels: &[i32]) -> Result<Vec<(String, bool)>, DataError> {
    let supervised = |index: usize| index > 0 && labels[index] != UNSUPERVISED;
    let mut pieces: Vec<(String, bool)> = Vec::new();
    let mut shown = String::new();
    for start in 0..input_ids.len() {
        let border = start + 1 == input_ids.len() || supervised(start) != supervised(start + 1);
        if !border {
            continue;
        }
        // Decoding from the front gives the text that decoders with a memory (spaces, bytes) give the whole.
        let text = tokenizer.decode(&input_ids[..=start], false)?;
        let whole = if start + 1 == input_ids.len() {
            text.as_str()
        } else {
            text.trim_end_matches('\u{fffd}')
        };
        let Some(piece) = whole.strip_prefix(shown.as_str()).filter(|piece| !piece.is_empty()) else {
            continue;
        };
        match pieces.last_mut() {
            Some((last, flag)) if *flag == supervised(start) => last.push_str(piece),
            _ => pieces.push((piece.to_owned(), supervised(start))),
        }
        shown = whole.to_owned();
    }
    Ok(pieces)
}

/// One line of the table per language.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LanguageRow {
    /// BCP-47 tag.
    pub language: String,
    /// Samples to train on.
    pub samples: u64,
    /// Samples kept for evaluation.
    pub heldout: u64,
    /// Tokens to train on.
    pub tokens: u64,
    /// Supervised tokens to train on.
    pub supervised_tokens: u64,
    /// Supervised tokens / tokens.
    pub supervised_share: f64,
    /// Tokens of this language / tokens of all: the share that one pass over the rows reaches.
    pub share: f64,
    /// Rows that lost their end.
    pub truncated: u64,
    /// Rows that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// The table per language, sorted by tag. Languages of which every row was dropped are in it too.
pub fn languages(prepared: &Prepared) -> Vec<LanguageRow> {
    let mut rows: BTreeMap<String, LanguageRow> = BTreeMap::new();
    for (language, counts) in prepared.report.by_language() {
        let row = LanguageRow {
            language: language.clone(),
            samples: 0,
            heldout: 0,
            tokens: 0,
            supervised_tokens: 0,
            supervised_share: 0.0,
            share: 0.0,
            truncated: counts.truncated,
            dropped: counts.dropped,
        };
        rows.insert(language, row);
    }
    let mut each = |dataset: &Dataset, count: &dyn Fn(&mut LanguageRow, usize)| {
        for sample in 0..dataset.len() {
            let language = &dataset.languages()[dataset.language(sample) as usize];
            if let Some(row) = rows.get_mut(language) {
                count(row, sample);
            }
        }
    };
    each(&prepared.train, &|row, sample| {
        row.samples += 1;
        row.tokens += prepared.train.length(sample) as u64;
        row.supervised_tokens += prepared.train.supervised(sample) as u64;
    });
    if let Some(heldout) = &prepared.heldout {
        each(heldout, &|row, _| row.heldout += 1);
    }
    let all: u64 = rows.values().map(|row| row.tokens).sum();
    for row in rows.values_mut() {
        row.supervised_share = row.supervised_tokens as f64 / row.tokens.max(1) as f64;
        row.share = row.tokens as f64 / all.max(1) as f64;
    }
    rows.into_values().collect()
}
