//! The metrics of a task's answers, each with the statistics of its items: what scores, intervals and comparisons of two models have
//! in common.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use interlingua_metrics::classification::{Frame, LabelF1, OfFrames, labels, labels_item};
use interlingua_metrics::extract::Extractor;
use interlingua_metrics::statistics::{MeanOver, Metric, Ratio, across, hit};
use interlingua_metrics::{accuracy, bleu, chrf, exact_match, identify, qa};
use interlingua_recipes::{Extract, Measure, Task, TaskKind};
use serde_json::Value;

use super::work::{Answer, Said};
use super::{retrieval, similarity};

/// Statistics of items, each with its answer.
pub(super) type Statistics<'a> = Vec<(&'a Answer, Vec<f64>)>;

/// One metric over the items of a task.
pub(super) struct Column<'a> {
    /// What it is called in `metrics.jsonl`.
    pub(super) name: &'static str,
    /// The statistics of each language's items.
    pub(super) by_language: BTreeMap<&'a str, Vec<Vec<f64>>>,
    /// Those of each item in all languages, one after another; none where rows do not say which items are the same.
    pub(super) groups: Vec<Vec<f64>>,
    /// What makes a score of their sum.
    pub(super) rule: Rule,
    /// How many statistics an item has.
    width: usize,
}

impl<'a> Column<'a> {
    /// Of items that say in which language they are, and what the same item in other languages shares.
    pub(super) fn of_items(name: &'static str, items: &Statistics<'a>, metric: impl Metric + Send + 'static) -> Self {
        let mut by_language = BTreeMap::<&str, Vec<Vec<f64>>>::new();
        let mut shared = BTreeMap::<&str, BTreeMap<&str, &[f64]>>::new();
        let mut all_shared = true;
        for (answer, statistics) in items {
            let of_language = by_language.entry(&answer.language).or_default();
            of_language.push(statistics.clone());
            match &answer.group {
                Some(group) => {
                    shared.entry(group).or_default().insert(&answer.language, statistics);
                }
                None => all_shared = false,
            }
        }
        let width = items.first().map_or(0, |(_, statistics)| statistics.len());
        let group = |group: &BTreeMap<&str, &[f64]>| {
            let languages = by_language.keys().map(|language| group.get(language).copied());
            across(&languages.collect::<Vec<_>>(), width)
        };
        let groups = if all_shared {
            shared.values().map(group).collect()
        } else {
            Vec::new()
        };
        Self {
            name,
            groups,
            by_language,
            rule: Rule(Arc::new(metric)),
            width,
        }
    }

    /// Of languages that have the same items in the same order.
    pub(super) fn aligned(
        name: &'static str,
        by_language: BTreeMap<&'a str, Vec<Vec<f64>>>,
        metric: impl Metric + Send + 'static,
    ) -> Self {
        let count = by_language.values().map(Vec::len).min().unwrap_or_default();
        let width = by_language.values().flatten().next().map_or(0, Vec::len);
        let of_item = |item: usize| {
            let statistics = by_language.values().map(|statistics| Some(&statistics[item][..]));
            across(&statistics.collect::<Vec<_>>(), width)
        };
        Self {
            name,
            groups: (0..count).map(of_item).collect(),
            by_language,
            rule: Rule(Arc::new(metric)),
            width,
        }
    }

    /// The mean over languages, of the groups.
    pub(super) fn mean(&self) -> MeanOver<Rule> {
        MeanOver {
            metric: self.rule.clone(),
            width: self.width,
        }
    }
}

/// Some metric.
#[derive(Clone)]
pub(super) struct Rule(Arc<dyn Metric + Send>);

impl Metric for Rule {
    fn finish(&self, sum: &[f64]) -> f64 {
        self.0.finish(sum)
    }
}

/// The metrics of a task's answers.
pub(super) fn columns<'a>(task: &Task, answers: &'a [Answer]) -> Vec<Column<'a>> {
    match task.kind {
        TaskKind::Perplexity => likelihoods(answers),
        TaskKind::MultipleChoice => {
            let items = answers.iter().filter_map(|answer| match answer.said {
                Said::Choice {
                    choice, answer: right, ..
                } => Some((answer, accuracy::item(Some(choice), right))),
                _ => None,
            });
            vec![column("accuracy", items.collect(), Ratio)]
        }
        TaskKind::Generate => {
            let measures = task.measures.iter();
            let columns = measures.flat_map(|measure| texts(task, *measure, answers));
            columns.chain(empty(answers)).collect()
        }
        TaskKind::Retrieval => vec![retrieval::column(task, answers)],
        TaskKind::Similarity => vec![similarity::column(answers)],
        TaskKind::LogitLens | TaskKind::Tokenizer => Vec::new(),
    }
}

fn column<'a>(name: &'static str, items: Statistics<'a>, metric: impl Metric + Send + 'static) -> Column<'a> {
    Column::of_items(name, &items, metric)
}

/// Loss, perplexity and bits per byte.
fn likelihoods(answers: &[Answer]) -> Vec<Column<'_>> {
    let items = answers.iter().filter_map(|answer| match answer.said {
        Said::Likelihood {
            loss,
            supervised,
            bytes,
            ..
        } => Some((answer, vec![loss, supervised as f64, bytes as f64])),
        _ => None,
    });
    let items: Vec<_> = items.collect();
    vec![
        column("loss", items.clone(), loss),
        column("perplexity", items.clone(), |sum: &[f64]| loss(sum).exp()),
        column("bits_per_byte", items, bits_per_byte),
    ]
}

fn loss(sum: &[f64]) -> f64 {
    sum[0] / sum[1]
}

/// Not a number where there is no text.
fn bits_per_byte(sum: &[f64]) -> f64 {
    if sum[2] > 0.0 {
        sum[0] / std::f64::consts::LN_2 / sum[2]
    } else {
        f64::NAN
    }
}

/// The share of answers without any text, where there are some.
fn empty(answers: &[Answer]) -> Option<Column<'_>> {
    let items = answers.iter().filter_map(|answer| match &answer.said {
        Said::Text { output, .. } => Some((answer, output.trim().is_empty())),
        _ => None,
    });
    let items: Vec<(&Answer, bool)> = items.collect();
    let any = items.iter().any(|(_, is_empty)| *is_empty);
    let statistics = items.into_iter().map(|(answer, is_empty)| (answer, hit(is_empty)));
    any.then(|| column("empty", statistics.collect(), Ratio))
}

/// How answers compare with the expected ones.
fn texts<'a>(task: &Task, measure: Measure, answers: &'a [Answer]) -> Vec<Column<'a>> {
    let said: Vec<(&Answer, &str, &Value)> = answers
        .iter()
        .filter_map(|answer| match &answer.said {
            Said::Text { output, expected, .. } => Some((answer, output.as_str(), expected)),
            _ => None,
        })
        .collect();
    let language = |answer: &'a Answer| task.answer_lang.as_ref().unwrap_or(&answer.language).as_str();
    let of = |item: &dyn Fn(&'a Answer, &str, &str) -> Vec<f64>| -> Statistics<'a> {
        let statistics = said.iter().map(|(answer, output, expected)| {
            let expected = expected.as_str().unwrap_or_default();
            (*answer, item(answer, output, expected))
        });
        statistics.collect()
    };
    match measure {
        Measure::ExactMatch => {
            let extractor = extractor(task.extract);
            let items =
                of(&|answer, output, expected| exact_match::item(output, expected, extractor, language(answer)));
            vec![column("exact_match", items, Ratio)]
        }
        Measure::Chrf => {
            let items = of(&|_, output, expected| chrf::item(output, expected));
            vec![column("chrf", items, chrf::Chrf)]
        }
        Measure::Bleu => {
            let items = of(&|answer, output, expected| {
                bleu::item(output, expected, bleu::Tokenizer::of_language(language(answer)))
            });
            vec![column("bleu", items, bleu::Bleu)]
        }
        Measure::Fidelity => {
            // A language that cannot be told from others has no score.
            let items = said
                .iter()
                .filter_map(|(answer, output, _)| Some((*answer, identify::item(output, language(answer))?)));
            vec![column("fidelity", items.collect(), Ratio)]
        }
        Measure::Qa => {
            let items: Vec<_> = said
                .iter()
                .map(|(answer, output, expected)| {
                    let expected: Vec<&str> = match expected {
                        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
                        one => one.as_str().into_iter().collect(),
                    };
                    (*answer, qa::item(output, &expected, language(answer)))
                })
                .collect();
            vec![
                column("f1", items.clone(), qa::F1),
                column("exact_match", items, qa::ExactMatch),
            ]
        }
        Measure::IntentSlots => {
            let items = of(&|_, output, expected| {
                let expected = Frame::read(expected).unwrap_or_default();
                expected.item(Frame::read(output).as_ref())
            });
            vec![
                column("intent_accuracy", items.clone(), OfFrames::IntentAccuracy),
                column("slot_f1", items.clone(), OfFrames::SlotF1),
                column("frame_accuracy", items, OfFrames::ExactMatch),
            ]
        }
        Measure::Labels => {
            let expected = said
                .iter()
                .flat_map(|(_, _, expected)| labels(expected.as_str().unwrap_or_default()));
            let given = said.iter().flat_map(|(_, output, _)| labels(output));
            let all: BTreeSet<String> = expected.chain(given).collect();
            let all: Vec<String> = all.into_iter().collect();
            let items = of(&|_, output, expected| labels_item(&labels(output), &labels(expected), &all));
            vec![
                column("label_f1", items.clone(), LabelF1::Micro),
                column("label_f1_macro", items, LabelF1::Macro),
            ]
        }
    }
}

fn extractor(extract: Extract) -> Extractor {
    match extract {
        Extract::All => Extractor::None,
        Extract::FirstLine => Extractor::FirstLine,
        Extract::Number => Extractor::Number,
        Extract::Letter => Extractor::Letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_byte_count_text_alone() {
        assert_eq!(bits_per_byte(&[std::f64::consts::LN_2 * 6.0, 2.0, 3.0]), 2.0);
        assert!(bits_per_byte(&[1.0, 2.0, 0.0]).is_nan());
    }

    #[test]
    fn empty_answers_are_counted_where_there_are_some() {
        let answer = |number: usize, output: &str| Answer {
            number,
            id: None,
            group: None,
            language: "sw".into(),
            said: Said::Text {
                prompt: "?".into(),
                output: output.into(),
                expected: "ndiyo".into(),
            },
        };
        let said = [answer(0, "ndiyo"), answer(1, " \n"), answer(2, "")];
        assert!(empty(&said[..1]).is_none());
        let column = empty(&said).unwrap();
        let sum = interlingua_metrics::statistics::sum(&column.by_language["sw"]);
        assert_eq!((column.rule.finish(&sum), sum[1]), (2.0 / 3.0, 3.0));
    }
}
