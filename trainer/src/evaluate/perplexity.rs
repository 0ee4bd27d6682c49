//! Perplexity: loss, perplexity and bits per byte of the supervised tokens. Bits per byte can be compared across tokenizers.

use std::collections::BTreeMap;

use interlingua_data::DataError;
use interlingua_data::batch::MicroBatch;
use interlingua_data::task::TaskRow;
use interlingua_data::tokenize::{Outcome, Tokens};
use interlingua_recipes::Task;

use super::scores::{Scores, Scoring};
use super::setting::Setting;
use super::work::{Answer, Said, Work};
use crate::engine::head::{Targets, log_probs};
use crate::engine::routing::ExpertUse;
use crate::error::TrainError;
use crate::models::Model;
use crate::train::reference::sequence_of;
use crate::train::step::inputs_and_targets;

/// Tokens of one evaluation batch.
pub(super) const BATCH_TOKENS: usize = 4096;

/// A task of kind `perplexity`.
pub(super) struct Perplexity {
    task: Task,
    items: Vec<Item>,
    languages: Vec<String>,
}

/// A row, as tokens; a long text has several sequences.
struct Item {
    id: Option<String>,
    group: Option<String>,
    language: usize,
    sequences: Vec<Tokens>,
    bytes: u64,
}

impl Perplexity {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        let tokenize = setting.tokenize(task)?;
        let mut languages: Vec<String> = rows.iter().map(|row| row.sample.language.clone()).collect();
        languages.sort();
        languages.dedup();
        let mut items = Vec::new();
        for row in rows {
            let sample = &row.sample;
            let outcome = tokenize.tokenize(&sample.content);
            let outcome = outcome.map_err(|problem| DataError::bad_row(sample.place.clone(), problem))?;
            let Outcome::Kept { sequences, .. } = outcome else {
                continue;
            };
            let mut bytes = 0;
            for sequence in &sequences {
                let targets = Targets::of_labels(&sequence.labels, &[0, sequence.labels.len()]);
                bytes += setting.tokenizer.decode(&targets.tokens, true)?.len() as u64;
            }
            items.push(Item {
                id: sample.id.clone(),
                group: sample.group.clone(),
                language: languages.binary_search(&sample.language).unwrap_or_default(),
                sequences,
                bytes,
            });
        }
        Ok(Self {
            task: task.clone(),
            items,
            languages,
        })
    }
}

impl Work for Perplexity {
    fn items(&self) -> usize {
        self.items.len()
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let mut losses = vec![(0.0, 0); numbers.len()];
        let mut used = vec![ExpertUse::default(); numbers.len()];
        let mut run = |batch: &MicroBatch| {
            let (inputs, targets) = inputs_and_targets(model, batch, &self.languages);
            let (hidden, routing) = model.routed_hidden_state(&inputs);
            for sequence in &batch.sequences {
                used[sequence.sample as usize].add(&routing, &sequence.range());
            }
            let log_probs = log_probs(model, &hidden, &targets);
            for (position, log_prob) in targets.positions.iter().zip(log_probs) {
                let sum = &mut losses[batch.sequences[sequence_of(batch, *position)].sample as usize];
                *sum = (sum.0 - f64::from(log_prob), sum.1 + 1);
            }
        };
        let mut open = MicroBatch::default();
        for (index, number) in numbers.iter().enumerate() {
            let item = &self.items[*number];
            for tokens in &item.sequences {
                if open.tokens() + tokens.input_ids.len() > BATCH_TOKENS && open.tokens() > 0 {
                    run(&std::mem::take(&mut open));
                }
                open.push(&tokens.input_ids, &tokens.labels, item.language as u16, index as u64, 0);
            }
        }
        if open.tokens() > 0 {
            run(&open);
        }
        let sums = losses.into_iter().zip(used);
        let answers = numbers.iter().zip(sums).map(|(number, ((loss, supervised), used))| {
            let item = &self.items[*number];
            Answer {
                number: *number,
                id: item.id.clone(),
                group: item.group.clone(),
                language: self.languages[item.language].clone(),
                said: Said::Likelihood {
                    loss,
                    supervised,
                    bytes: item.bytes,
                    experts: used.counts,
                },
            }
        });
        Ok(answers.collect())
    }

    fn score(&self, answers: &[Answer]) -> Scores {
        let mut scoring = Scoring::of(&self.task, answers);
        let mut used = BTreeMap::<&str, ExpertUse>::new();
        for answer in answers {
            if let Said::Likelihood { experts, .. } = &answer.said {
                used.entry(&answer.language).or_default().add_all(experts);
            }
        }
        used.iter()
            .for_each(|(language, used)| scoring.set_experts(language, used));
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for item in &self.items {
            hasher.update(self.languages[item.language].as_bytes());
            for sequence in &item.sequences {
                hasher.update(bytemuck::cast_slice(&sequence.input_ids));
                hasher.update(bytemuck::cast_slice(&sequence.labels));
            }
        }
        hasher.finalize()
    }
}
