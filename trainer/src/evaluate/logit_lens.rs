//! Logit lens: what the final norm and the head make of each layer of a sentence (nostalgebraist, "interpreting GPT: the logit
//! lens", 2020).
//!
//! Whether a layer speaks English or the sentence's language is measured over parallel sentences: the probability, averaged over
//! positions, of the tokens that only the sentence has (`lens_own`), and of those that only its translation into the anchor's
//! language has (`lens_english`). This definition is our own; work on single words compares the word with its translation.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use interlingua_data::task::TaskRow;
use interlingua_metrics::statistics::{Ratio, score};
use interlingua_recipes::Task;

use super::columns::Statistics;
use super::parallel::{Parallel, batches, inputs};
use super::scores::{Scores, Scoring};
use super::setting::Setting;
use super::work::{Answer, Said, Work};
use crate::engine::head::chunk_rows_of;
use crate::error::TrainError;
use crate::models::Model;

/// A task of kind `logit-lens`. An item is a sentence in one language, those of one language one after another.
pub(super) struct LogitLens {
    texts: Parallel,
}

impl LogitLens {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        Ok(Self {
            texts: Parallel::new(setting, task, rows)?,
        })
    }

    /// Language and sentence of an item.
    fn item(&self, number: usize) -> (usize, usize) {
        let sentences = self.texts.names.len();
        (number / sentences, number % sentences)
    }

    /// The tokens of an item that its translation lacks, and the other way round; none in the anchor's language.
    fn differing(&self, number: usize) -> [Vec<u32>; 2] {
        let (language, sentence) = self.item(number);
        let set = |language: usize| self.texts.sentences[language][sentence].iter().copied();
        let [own, english] = [language, self.texts.anchor].map(|language| set(language).collect::<BTreeSet<u32>>());
        [
            own.difference(&english).copied().collect(),
            english.difference(&own).copied().collect(),
        ]
    }

    /// The answers to items that are computed together.
    fn together(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let layers = model.blocks.len() + 1;
        let ids = |number: usize| {
            let (language, sentence) = self.item(number);
            &self.texts.sentences[language][sentence][..]
        };
        let tag = |number: usize| self.texts.languages[self.item(number).0].as_str();
        let sentences: Vec<(&[u32], &str)> = numbers.iter().map(|number| (ids(*number), tag(*number))).collect();
        let inputs = inputs(model, &sentences);
        let differing: Vec<[Vec<u32>; 2]> = numbers.iter().map(|number| self.differing(*number)).collect();
        // What is asked at each position: the sentence's own tokens, the translation's, and the token that follows.
        let mut positions = Vec::new();
        for (index, (ids, _)) in sentences.iter().enumerate() {
            positions.extend((0..ids.len()).map(|place| (index, ids.get(place + 1).copied())));
        }
        let asked = |(index, next): &(usize, Option<u32>)| {
            let [own, english] = &differing[*index];
            own.iter().chain(english).copied().chain(*next).collect::<Vec<u32>>()
        };
        let mut sums = vec![vec![Sums::default(); layers]; numbers.len()];
        let mut tops: Vec<Vec<i64>> = Vec::with_capacity(layers);
        model.visit_hidden_states(&inputs, |layer, states| {
            let states = if layer + 1 < layers {
                model.final_norm(states, &model.plain_pass())
            } else {
                states
            };
            let mut of_layer = Vec::with_capacity(positions.len());
            let size = chunk_rows_of(model.config.vocab_size);
            for (chunk, places) in positions.chunks(size).enumerate() {
                let rows = states.clone().narrow(0, chunk * size, places.len());
                let asked: Vec<Vec<u32>> = places.iter().map(asked).collect();
                let (top, log_probs) = read(model, rows, &asked);
                of_layer.extend(top);
                for ((index, next), log_probs) in places.iter().zip(log_probs) {
                    sums[*index][layer].add(&log_probs, &differing[*index], next.is_some());
                }
            }
            tops.push(of_layer);
        });
        let last = tops.last().cloned().unwrap_or_default();
        for (layer, tops) in tops.iter().enumerate() {
            for ((index, _), _) in positions
                .iter()
                .zip(tops.iter().zip(&last))
                .filter(|(_, (top, last))| top == last)
            {
                sums[*index][layer].agreement += 1;
            }
        }
        let answers = numbers.iter().zip(sums);
        answers.map(|(number, sums)| self.said(*number, &sums)).collect()
    }

    fn said(&self, number: usize, sums: &[Sums]) -> Result<Answer, TrainError> {
        let (language, sentence) = self.item(number);
        let name = self.texts.names[sentence].clone();
        let tag = self.texts.languages[language].clone();
        let is_finite = |sums: &Sums| [sums.own, sums.english, sums.loss].iter().all(|sum| sum.is_finite());
        if !sums.iter().all(is_finite) {
            return Err(TrainError::Evaluation {
                item: name,
                language: tag,
            });
        }
        let tokens = self.texts.sentences[language][sentence].len() as u64;
        let is_anchor = language == self.texts.anchor;
        let compared = |of: fn(&Sums) -> f64| sums.iter().filter(|_| !is_anchor).map(of).collect();
        Ok(Answer {
            number,
            id: None,
            group: Some(name),
            language: tag,
            said: Said::Lens {
                positions: tokens,
                followed: tokens - 1,
                own: compared(|sums| sums.own),
                english: compared(|sums| sums.english),
                agreement: sums.iter().map(|sums| sums.agreement).collect(),
                lens_loss: sums.iter().map(|sums| sums.loss).collect(),
            },
        })
    }
}

/// Sums over the positions of a sentence at one layer.
#[derive(Clone, Copy, Default)]
struct Sums {
    own: f64,
    english: f64,
    agreement: u64,
    loss: f64,
}

impl Sums {
    /// A position, with the log-probabilities of what was asked there.
    fn add(&mut self, log_probs: &[f32], [own, english]: &[Vec<u32>; 2], followed: bool) {
        let mass = |log_probs: &[f32]| log_probs.iter().map(|log_prob| f64::from(*log_prob).exp()).sum::<f64>();
        let (of_own, others) = log_probs.split_at(own.len());
        let (of_english, next) = others.split_at(english.len());
        self.own += mass(of_own);
        self.english += mass(of_english);
        if followed {
            self.loss -= next.first().map_or(0.0, |log_prob| f64::from(*log_prob));
        }
    }
}

/// The most likely token of each row of hidden states after the final norm, and the log-probabilities of the tokens asked there.
fn read(model: &Model, rows: Tensor<2>, asked: &[Vec<u32>]) -> (Vec<i64>, Vec<Vec<f32>>) {
    let logits = model.logits(rows).cast(DType::F32);
    let device = logits.device();
    let top = logits.clone().argmax(1).into_data().iter::<i64>().collect();
    // Rows ask for different numbers of tokens: token 0 stands where there is none to ask for.
    let width = asked.iter().map(Vec::len).max().unwrap_or_default().max(1);
    let index = asked.iter().flat_map(|tokens| {
        let padding = std::iter::repeat_n(0, width - tokens.len());
        tokens.iter().map(|token| *token as i32).chain(padding)
    });
    let index = TensorData::new(index.collect::<Vec<i32>>(), [asked.len(), width]);
    let index: Tensor<2, Int> = Tensor::from_data(index, &device);
    let log_probs = activation::log_softmax(logits, 1).gather(1, index).into_data();
    let log_probs: Vec<f32> = log_probs.iter::<f32>().collect();
    let rows = log_probs.chunks(width).zip(asked);
    (top, rows.map(|(row, tokens)| row[..tokens.len()].to_vec()).collect())
}

impl Work for LogitLens {
    fn items(&self) -> usize {
        self.texts.languages.len() * self.texts.names.len()
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let length = |number: &usize| {
            let (language, sentence) = self.item(*number);
            self.texts.sentences[language][sentence].len()
        };
        let mut answers = Vec::with_capacity(numbers.len());
        for range in batches(numbers.iter().map(length)) {
            answers.extend(self.together(model, &numbers[range])?);
        }
        Ok(answers)
    }

    /// Numbers by language are means over all layers, but for `loss`, which is the last layer's: the model's own.
    fn score(&self, answers: &[Answer]) -> Scores {
        let names = ["lens_own", "lens_english", "lens_agreement", "lens_loss"];
        let mut metrics = names.map(|name| (name, OfSentences::new()));
        for answer in answers {
            let Said::Lens {
                positions,
                followed,
                own,
                english,
                agreement,
                lens_loss,
            } = &answer.said
            else {
                continue;
            };
            let (positions, followed) = (*positions as f64, *followed as f64);
            let agreement: Vec<f64> = agreement.iter().map(|count| *count as f64).collect();
            let found = [
                (own, positions),
                (english, positions),
                (&agreement, positions),
                (lens_loss, followed),
            ];
            for ((_, sentences), (values, count)) in metrics.iter_mut().zip(found) {
                if !values.is_empty() {
                    let layers = values.iter().map(|value| vec![*value, count]).collect();
                    let of_language = sentences.entry(answer.language.clone()).or_default();
                    of_language.push((answer, layers));
                }
            }
        }
        let mut scoring = Scoring::new(self.texts.anchor());
        for (name, sentences) in &metrics {
            if *name == "lens_loss" {
                let last = |layers: &[Vec<f64>]| layers[layers.len() - 1].clone();
                scoring.add("loss", &statistics(sentences, last), Ratio);
            } else {
                scoring.add(name, &statistics(sentences, over_layers), Ratio);
            }
            scoring.add_layers(name, by_layer(sentences));
        }
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = self.texts.fingerprint();
        hasher.update(b"logit-lens");
        hasher.finalize()
    }
}

/// By language the sentences, each with its statistics at each layer.
type OfSentences<'a> = BTreeMap<String, Vec<(&'a Answer, Vec<Vec<f64>>)>>;

/// One vector of statistics for each sentence, made of those at each of its layers.
fn statistics<'a>(sentences: &OfSentences<'a>, of_layers: impl Fn(&[Vec<f64>]) -> Vec<f64>) -> Statistics<'a> {
    let sentences = sentences.values().flatten();
    sentences.map(|(answer, layers)| (*answer, of_layers(layers))).collect()
}

/// The mean of the sums of all layers, which are over the same positions.
fn over_layers(layers: &[Vec<f64>]) -> Vec<f64> {
    let sum = layers.iter().map(|layer| layer[0]).sum::<f64>();
    vec![sum / layers.len() as f64, layers[0][1]]
}

/// The value of all sentences of a language at each layer.
fn by_layer(sentences: &OfSentences) -> BTreeMap<String, Vec<f64>> {
    let values = |sentences: &Vec<(&Answer, Vec<Vec<f64>>)>| {
        let layers = sentences
            .iter()
            .map(|(_, layers)| layers.len())
            .min()
            .unwrap_or_default();
        let at = |layer: usize| {
            let statistics: Vec<Vec<f64>> = sentences.iter().map(|(_, layers)| layers[layer].clone()).collect();
            score(&statistics, &Ratio)
        };
        (0..layers).map(at).collect()
    };
    sentences
        .iter()
        .map(|(language, list)| (language.clone(), values(list)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_adds_what_was_asked_there() {
        let log_probs = [0.1f32, 0.2, 0.4, 0.25].map(f32::ln);
        let differing = [vec![7, 8], vec![9]];
        let mut sums = Sums::default();
        sums.add(&log_probs, &differing, true);
        sums.add(&log_probs[..3], &differing, false);
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
        close(sums.own, 0.6);
        close(sums.english, 0.8);
        close(sums.loss, 4f64.ln());
    }

    #[test]
    fn layers_are_averaged_over_positions_and_over_layers() {
        let answer = Answer {
            number: 0,
            id: None,
            group: None,
            language: "sw".to_owned(),
            said: Said::Tokens {
                token_ids: Vec::new(),
                counts: Vec::new(),
            },
        };
        // Two sentences of 4 and 1 positions, two layers.
        let long = vec![vec![2.0, 4.0], vec![1.0, 4.0]];
        let short = vec![vec![0.5, 1.0], vec![1.0, 1.0]];
        let sentences = OfSentences::from([("sw".to_owned(), vec![(&answer, long), (&answer, short)])]);
        assert_eq!(by_layer(&sentences)["sw"], [0.5, 0.4]);
        let found = statistics(&sentences, over_layers);
        assert_eq!([&found[0].1[..], &found[1].1[..]], [[1.5, 4.0], [0.75, 1.0]]);
    }
}
