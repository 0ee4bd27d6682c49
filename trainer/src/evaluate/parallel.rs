//! Sentences that are translations of one another, as tokens: what tasks read that compare languages with an anchor.

use std::ops::Range;

use interlingua_data::DataError;
use interlingua_data::language::canonical;
use interlingua_data::task::{Groups, TaskRow, groups};
use interlingua_data::tokenize::Outcome;
use interlingua_recipes::Task;

use super::perplexity::BATCH_TOKENS;
use super::setting::{Setting, wrong};
use crate::engine::inputs::{Inputs, RopeLength};
use crate::error::TrainError;
use crate::models::Model;

/// The sentences of a task that all of its languages have.
pub(super) struct Parallel {
    /// The languages, in the order of their tags.
    pub(super) languages: Vec<String>,
    /// Which of them the others are compared with.
    pub(super) anchor: usize,
    /// What names each sentence.
    pub(super) names: Vec<String>,
    /// By language the tokens of each sentence.
    pub(super) sentences: Vec<Vec<Vec<u32>>>,
}

impl Parallel {
    /// Tokenises as losses on hidden states do: with the tokenizer's special tokens, no end-of-text token behind, cut at
    /// `data.max_length`.
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        let (groups, anchor) = anchored(task, rows)?;
        let tokenize = setting.tokenize(task)?.for_auxiliary(setting.max_length());
        let tokens = |row: &TaskRow| {
            let outcome = tokenize.tokenize(&row.sample.content);
            match outcome.map_err(|problem| DataError::bad_row(row.sample.place.clone(), problem))? {
                Outcome::Kept { mut sequences, .. } => Ok(sequences.remove(0).input_ids),
                Outcome::Dropped(_) => Err(wrong(
                    task,
                    row,
                    "the tokenizer makes no token of this text. Remove it.",
                )),
            }
        };
        let of_language = |language: usize| groups.items.iter().map(|item| tokens(&rows[item[language]])).collect();
        let sentences = (0..groups.languages.len()).map(of_language);
        let sentences = sentences.collect::<Result<_, TrainError>>()?;
        let name = |item: &Vec<usize>| rows[item[anchor]].group().unwrap_or_default().to_owned();
        Ok(Self {
            names: groups.items.iter().map(name).collect(),
            languages: groups.languages,
            anchor,
            sentences,
        })
    }

    /// The tag of the language that the others are compared with.
    pub(super) fn anchor(&self) -> &str {
        &self.languages[self.anchor]
    }

    /// The other languages.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        let anchor = self.anchor;
        (0..self.languages.len()).filter(move |language| *language != anchor)
    }

    /// A hash of languages and tokens.
    pub(super) fn fingerprint(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.anchor().as_bytes());
        for (language, sentences) in self.languages.iter().zip(&self.sentences) {
            hasher.update(language.as_bytes());
            for ids in sentences {
                hasher.update(&(ids.len() as u64).to_le_bytes());
                hasher.update(bytemuck::cast_slice(ids));
            }
        }
        hasher
    }
}

/// The items that all languages of a task have, and which of its languages is the anchor.
///
/// # Errors
/// When there is no row in the anchor's language, or in no other one; and as [`groups`].
pub(super) fn anchored(task: &Task, rows: &[TaskRow]) -> Result<(Groups, usize), TrainError> {
    let anchor = canonical(&task.anchor).unwrap_or_else(|_| task.anchor.clone());
    let mut languages: Vec<&str> = rows.iter().map(|row| row.sample.language.as_str()).collect();
    languages.sort_unstable();
    languages.dedup();
    let name = &task.name;
    if !languages.contains(&&*anchor) {
        return Err(TrainError::Setup(format!(
            "eval task `{name}` compares languages with {anchor:?}, and there is no row in that language: the rows are in {}. \
             Correct `anchor`, or add {anchor:?} to the rows and to `languages`",
            languages.join(", ")
        )));
    }
    if languages.len() < 2 {
        return Err(TrainError::Setup(format!(
            "eval task `{name}` compares languages with {anchor:?}, and all rows are in that language. Add rows in others"
        )));
    }
    let groups = groups(task, rows)?;
    let place = groups.languages.iter().position(|language| *language == anchor);
    Ok((groups, place.unwrap_or_default()))
}

/// Runs of sentences that are computed together.
pub(super) fn batches(lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, length) in lengths.into_iter().enumerate() {
        tokens += length;
        match batches.last_mut() {
            Some(last) if tokens <= BATCH_TOKENS => last.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                tokens = length;
            }
        }
    }
    batches
}

/// Sentences end to end, each with its language.
pub(super) fn inputs(model: &Model, sentences: &[(&[u32], &str)]) -> Inputs {
    let (mut ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for (sentence, _) in sentences {
        ids.extend(*sentence);
        positions.extend(0..sentence.len() as u32);
        boundaries.push(ids.len());
    }
    let languages: Vec<&str> = sentences.iter().map(|(_, language)| *language).collect();
    let rope = RopeLength::Own;
    Inputs::new(&model.config, &ids, &positions, &boundaries, rope, &model.device).with_languages(&languages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_as_large_as_they_may_be() {
        let half = BATCH_TOKENS / 2;
        assert_eq!(batches([half, half, 1, BATCH_TOKENS + 1, 5]), [0..2, 2..3, 3..4, 4..5]);
        assert!(batches([]).is_empty());
    }
}
