//! Retrieval: of the sentences of two languages, how often the nearest one is the translation, at each layer, in both directions, by
//! cosine and by ratio margin.

use std::collections::BTreeMap;

use interlingua_data::task::TaskRow;
use interlingua_metrics::retrieval::Retrieval as Similarities;
use interlingua_metrics::statistics::{Ratio, hit, score, sum};
use interlingua_recipes::{Similarity, Task};
use rayon::prelude::*;

use super::columns::Column;
use super::parallel::Parallel;
use super::pooled::layer_of;
use super::scores::{Scores, Scoring};
use super::setting::Setting;
use super::work::{Answer, Said, Work};
use crate::error::TrainError;
use crate::models::Model;

/// A task of kind `retrieval`. An item is a language with the anchor.
pub(super) struct Retrieval {
    task: Task,
    texts: Parallel,
}

impl Retrieval {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        layer_of(setting, task)?;
        Ok(Self {
            task: task.clone(),
            texts: Parallel::new(setting, task, rows)?,
        })
    }
}

/// Languages that are answered for between two times that answers are written: the anchor's sentences run once for all of them, and
/// processes share the languages.
pub(super) const LANGUAGES_AT_A_TIME: usize = 4;

impl Work for Retrieval {
    fn items(&self) -> usize {
        self.texts.others().count()
    }

    fn at_a_time(&self) -> usize {
        LANGUAGES_AT_A_TIME
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let others: Vec<usize> = self.texts.others().collect();
        let [anchor] = self.texts.pooled(model, self.texts.anchor, [self.task.pool])?;
        let answer = |number: &usize| {
            let language = others[*number];
            let [pooled] = self.texts.pooled(model, language, [self.task.pool])?;
            let at = |layer: usize| {
                let similarities = Similarities::new(anchor.at(layer), pooled.at(layer));
                [similarities.cosine(), similarities.margin(self.task.neighbours)]
            };
            let layers: Vec<_> = (0..anchor.layers()).into_par_iter().map(at).collect();
            let from = |kind: usize| layers.iter().map(|hits| written(&hits[kind].forward)).collect();
            let to = |kind: usize| layers.iter().map(|hits| written(&hits[kind].backward)).collect();
            Ok(Answer {
                number: *number,
                id: None,
                group: None,
                language: self.texts.languages[language].clone(),
                said: Said::Retrieval {
                    cosine_from_anchor: from(0),
                    cosine_to_anchor: to(0),
                    margin_from_anchor: from(1),
                    margin_to_anchor: to(1),
                },
            })
        };
        numbers.iter().map(answer).collect()
    }

    fn score(&self, answers: &[Answer]) -> Scores {
        let anchor = self.texts.anchor();
        let [mut cosine, mut margin] = [BTreeMap::new(), BTreeMap::new()];
        for answer in answers {
            let Said::Retrieval {
                cosine_from_anchor,
                cosine_to_anchor,
                margin_from_anchor,
                margin_to_anchor,
            } = &answer.said
            else {
                continue;
            };
            let language = answer.language.as_str();
            for (series, from, to) in [
                (&mut cosine, cosine_from_anchor, cosine_to_anchor),
                (&mut margin, margin_from_anchor, margin_to_anchor),
            ] {
                series.insert(format!("{anchor}→{language}"), shares(from));
                series.insert(format!("{language}→{anchor}"), shares(to));
            }
        }
        let mut scoring = Scoring::of(&self.task, answers);
        scoring.add_layers("retrieval_cosine", cosine);
        scoring.add_layers("retrieval_margin", margin);
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = self.texts.fingerprint();
        // Layer and similarity are chosen when answers are scored.
        hasher.update(format!("retrieval {:?} {}", self.task.pool, self.task.neighbours).as_bytes());
        hasher.finalize()
    }
}

/// The hits of both directions at the task's layer, which are one item for each sentence.
pub(super) fn column<'a>(task: &Task, answers: &'a [Answer]) -> Column<'a> {
    let mut by_language = BTreeMap::new();
    for answer in answers {
        let Said::Retrieval {
            cosine_from_anchor,
            cosine_to_anchor,
            margin_from_anchor,
            margin_to_anchor,
        } = &answer.said
        else {
            continue;
        };
        let directions = match task.similarity {
            Similarity::Cosine => [cosine_from_anchor, cosine_to_anchor],
            Similarity::Margin => [margin_from_anchor, margin_to_anchor],
        };
        let [from, to] = directions.map(|layers| {
            let layer = task
                .layer
                .of(layers.len().saturating_sub(1))
                .and_then(|layer| layers.get(layer));
            layer.map_or_else(Vec::new, |hits| read(hits))
        });
        let sentences = from.into_iter().zip(to).map(|(from, to)| sum(&[from, to]));
        by_language.insert(answer.language.as_str(), sentences.collect::<Vec<_>>());
    }
    Column::aligned("retrieval", by_language, Ratio)
}

/// Hits as a text of ones and zeros.
fn written(hits: &[bool]) -> String {
    hits.iter().map(|hit| if *hit { '1' } else { '0' }).collect()
}

/// The statistics of such hits.
fn read(hits: &str) -> Vec<Vec<f64>> {
    hits.bytes().map(|sign| hit(sign == b'1')).collect()
}

/// The share of hits at each layer.
fn shares(layers: &[String]) -> Vec<f64> {
    layers.iter().map(|hits| score(&read(hits), &Ratio)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_read_as_they_were_written() {
        let hits = [true, false, false, true];
        assert_eq!(written(&hits), "1001");
        assert_eq!(shares(&[written(&hits), written(&hits[..3])]), [0.5, 1.0 / 3.0]);
    }
}
