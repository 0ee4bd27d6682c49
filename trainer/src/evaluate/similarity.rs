//! Similarity: how alike the sentences of a language are to the anchor's at each layer, by linear CKA and by Language Ranker.

use std::collections::BTreeMap;

use interlingua_data::task::TaskRow;
use interlingua_metrics::cka;
use interlingua_metrics::retrieval::pair_cosines;
use interlingua_metrics::statistics::Ratio;
use interlingua_recipes::{Pool, Task};
use rayon::prelude::*;

use super::columns::Column;
use super::parallel::Parallel;
use super::pooled::layer_of;
use super::retrieval::LANGUAGES_AT_A_TIME;
use super::scores::{Scores, Scoring};
use super::setting::Setting;
use super::work::{Answer, Said, Work};
use crate::error::TrainError;
use crate::models::Model;

/// A task of kind `similarity`. An item is a language with the anchor.
pub(super) struct Similarity {
    task: Task,
    texts: Parallel,
    layer: usize,
    /// What CKA compares; Language Ranker always compares last tokens.
    pool: Pool,
}

impl Similarity {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        Ok(Self {
            task: task.clone(),
            layer: layer_of(setting, task)?,
            texts: Parallel::new(setting, task, rows)?,
            pool: task.pool,
        })
    }
}

/// The numbers of one layer.
struct AtLayer {
    cka: f64,
    debiased: f64,
    cosines: Vec<f64>,
}

impl Work for Similarity {
    fn items(&self) -> usize {
        self.texts.others().count()
    }

    fn at_a_time(&self) -> usize {
        LANGUAGES_AT_A_TIME
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let others: Vec<usize> = self.texts.others().collect();
        let pools = [self.pool, Pool::Last];
        let [anchor, anchor_last] = self.texts.pooled(model, self.texts.anchor, pools)?;
        let answer = |number: &usize| {
            let language = others[*number];
            let [pooled, last] = self.texts.pooled(model, language, pools)?;
            let at = |layer: usize| AtLayer {
                cka: cka::linear(anchor.at(layer), pooled.at(layer)),
                debiased: cka::debiased(anchor.at(layer), pooled.at(layer)),
                cosines: pair_cosines(anchor_last.at(layer), last.at(layer)),
            };
            let layers: Vec<AtLayer> = (0..anchor.layers()).into_par_iter().map(at).collect();
            let over_layers = |sentence: usize| mean(layers.iter().map(|layer| layer.cosines[sentence]));
            let defined = |value: f64| value.is_finite().then_some(value);
            Ok(Answer {
                number: *number,
                id: None,
                group: None,
                language: self.texts.languages[language].clone(),
                said: Said::Similarity {
                    cka: layers.iter().map(|layer| defined(layer.cka)).collect(),
                    cka_debiased: layers.iter().map(|layer| defined(layer.debiased)).collect(),
                    language_ranker: layers.iter().map(|layer| mean(layer.cosines.iter().copied())).collect(),
                    cosines: (0..self.texts.names.len()).map(over_layers).collect(),
                },
            })
        };
        numbers.iter().map(answer).collect()
    }

    /// The number of Language Ranker is the mean over all layers, as its authors average it; that of CKA is of the task's layer.
    fn score(&self, answers: &[Answer]) -> Scores {
        let mut scoring = Scoring::of(&self.task, answers);
        let [mut plain, mut debiased, mut ranker] = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
        for answer in answers {
            let Said::Similarity {
                cka,
                cka_debiased,
                language_ranker,
                ..
            } = &answer.said
            else {
                continue;
            };
            for (name, series, values) in [("cka", &mut plain, cka), ("cka_debiased", &mut debiased, cka_debiased)] {
                if let Some(value) = values.get(self.layer).copied().flatten() {
                    scoring.set(&answer.language, name, value);
                }
                let values = values.iter().map(|value| value.unwrap_or(f64::NAN));
                series.insert(answer.language.clone(), values.collect());
            }
            ranker.insert(answer.language.clone(), language_ranker.clone());
        }
        scoring.add_layers("cka", plain);
        scoring.add_layers("cka_debiased", debiased);
        scoring.add_layers("language_ranker", ranker);
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = self.texts.fingerprint();
        // The layer is chosen when answers are scored.
        hasher.update(format!("similarity {:?}", self.pool).as_bytes());
        hasher.finalize()
    }
}

/// The cosine of each sentence with its translation.
pub(super) fn column(answers: &[Answer]) -> Column<'_> {
    let sentences = answers.iter().filter_map(|answer| match &answer.said {
        Said::Similarity { cosines, .. } => {
            let statistics = cosines.iter().map(|cosine| vec![*cosine, 1.0]);
            Some((answer.language.as_str(), statistics.collect()))
        }
        _ => None,
    });
    Column::aligned("language_ranker", sentences.collect(), Ratio)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
