//! Tokenizer: what the tokenizer costs each language, and what of its vocabulary a language uses. No model is asked.

use std::collections::{BTreeMap, HashMap};

use interlingua_data::language::canonical;
use interlingua_data::task::TaskRow;
use interlingua_metrics::statistics::across;
use interlingua_metrics::tokenizer::{
    OfTexts, Parity, WIDTH, average_rank, divergence, gini, item, token_counts, vocabulary_use,
};
use interlingua_recipes::{Format, Task};

use super::columns::Statistics;
use super::parallel::anchored;
use super::scores::{Scores, Scoring};
use super::setting::{Setting, wrong};
use super::work::{Answer, Said, Work};
use crate::error::TrainError;
use crate::models::Model;

/// A task of kind `tokenizer`. An item is a text; of parallel ones only those that all languages have.
pub(super) struct Tokenization {
    anchor: String,
    is_parallel: bool,
    vocabulary: usize,
    texts: Vec<Answer>,
}

impl Tokenization {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        let is_parallel = task.format == Format::Parallel;
        let chosen: Vec<&TaskRow> = if is_parallel {
            let (groups, _) = anchored(task, rows)?;
            groups.items.iter().flatten().map(|index| &rows[*index]).collect()
        } else {
            rows.iter().collect()
        };
        let tokenizer = &setting.tokenizer;
        let unknown = tokenizer
            .special_token("unk_token")
            .and_then(|token| tokenizer.id(token));
        let text = |(number, row): (usize, &&TaskRow)| {
            let text = row.sample.content.texts().first().copied().unwrap_or_default();
            // Tokens that stand before or after every text are no cost of a language.
            let token_ids = tokenizer.encode(text, false)?;
            if token_ids.is_empty() {
                return Err(wrong(
                    task,
                    row,
                    "the tokenizer makes no token of this text. Remove it.",
                ));
            }
            Ok(Answer {
                number,
                id: row.sample.id.clone(),
                group: row.sample.group.clone(),
                language: row.sample.language.clone(),
                said: Said::Tokens {
                    counts: item(text, &token_ids, unknown),
                    token_ids,
                },
            })
        };
        Ok(Self {
            anchor: canonical(&task.anchor).unwrap_or_else(|_| task.anchor.clone()),
            is_parallel,
            vocabulary: tokenizer.vocabulary_size(),
            texts: chosen.iter().enumerate().map(text).collect::<Result<_, TrainError>>()?,
        })
    }

    /// What compares the costs of languages for the same texts.
    fn compare(&self, scoring: &mut Scoring, items: &Statistics) {
        let of_anchor = items.iter().filter(|(answer, _)| answer.language == self.anchor);
        let of_anchor: HashMap<Option<&str>, &[f64]> = of_anchor
            .map(|(answer, counts)| (answer.group.as_deref(), &counts[..]))
            .collect();
        let pairs = items.iter().filter_map(|(answer, counts)| {
            let anchor = of_anchor.get(&answer.group.as_deref())?;
            Some((*answer, across(&[Some(*anchor), Some(&counts[..])], WIDTH)))
        });
        scoring.add("parity", &pairs.collect(), Parity);
        let mut costs = BTreeMap::<&str, f64>::new();
        for (answer, counts) in items {
            *costs.entry(&answer.language).or_default() += counts[0];
        }
        scoring.row.gini = Some(gini(&costs.into_values().collect::<Vec<_>>()));
    }
}

impl Work for Tokenization {
    fn items(&self) -> usize {
        self.texts.len()
    }

    fn answer(&self, _: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        Ok(numbers.iter().map(|number| self.texts[*number].clone()).collect())
    }

    fn score(&self, answers: &[Answer]) -> Scores {
        let mut items: Statistics = Vec::new();
        let mut by_language = BTreeMap::<&str, Vec<&[u32]>>::new();
        for answer in answers {
            if let Said::Tokens { token_ids, counts } = &answer.said {
                items.push((answer, counts.clone()));
                by_language.entry(&answer.language).or_default().push(token_ids);
            }
        }
        let mut scoring = Scoring::new(&self.anchor);
        scoring.add("fertility", &items, OfTexts::Fertility);
        scoring.add("compression", &items, OfTexts::BytesPerToken);
        scoring.add("characters_per_token", &items, OfTexts::CharactersPerToken);
        scoring.add("coverage", &items, OfTexts::Coverage);
        let counts: BTreeMap<&str, HashMap<u32, usize>> = by_language
            .into_iter()
            .map(|(language, texts)| (language, token_counts(texts)))
            .collect();
        for (language, own) in &counts {
            scoring.set(language, "vocabulary_use", vocabulary_use(own, self.vocabulary));
            scoring.set(language, "average_rank", average_rank(own));
            if let Some(anchor) = counts.get(self.anchor.as_str()).filter(|_| *language != self.anchor) {
                scoring.set(language, "divergence", divergence(anchor, own));
            }
        }
        if self.is_parallel {
            self.compare(&mut scoring, &items);
        }
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for text in &self.texts {
            hasher.update(text.language.as_bytes());
            if let Said::Tokens { token_ids, counts } = &text.said {
                hasher.update(bytemuck::cast_slice(token_ids));
                hasher.update(bytemuck::cast_slice(counts));
            }
        }
        hasher.finalize()
    }
}
