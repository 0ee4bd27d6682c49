//! How generated answers are compared with the expected ones.

use std::collections::BTreeSet;

use interlingua_metrics::classification::{Frame, LabelF1, OfFrames, labels, labels_item};
use interlingua_metrics::extract::Extractor;
use interlingua_metrics::statistics::Ratio;
use interlingua_metrics::{bleu, chrf, exact_match, qa};
use interlingua_recipes::{Extract, Measure, Task};
use serde_json::Value;

use super::scores::{Scores, Scoring, Statistics};
use super::work::{Answer, Said};
use crate::train::metrics::Example;

/// Answers of a task that are shown.
const EXAMPLES: usize = 4;

/// The scores of a task's answers.
pub(super) fn score(task: &Task, answers: &[Answer]) -> Scores {
    let mut scoring = Scoring::new(&task.anchor);
    let said: Vec<(&Answer, &str, &Value)> = answers
        .iter()
        .filter_map(|answer| match &answer.said {
            Said::Text { output, expected, .. } => Some((answer, output.as_str(), expected)),
            _ => None,
        })
        .collect();
    for measure in &task.measures {
        add(&mut scoring, task, *measure, &said);
    }
    scoring.examples(examples(answers));
    scoring.finish()
}

fn add(scoring: &mut Scoring, task: &Task, measure: Measure, said: &[(&Answer, &str, &Value)]) {
    let of = |item: &dyn Fn(&Answer, &str, &str) -> Vec<f64>| -> Statistics {
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
                of(&|answer, output, expected| exact_match::item(output, expected, extractor, &answer.language));
            scoring.add("exact_match", &items, &Ratio);
        }
        Measure::Chrf => scoring.add(
            "chrf",
            &of(&|_, output, expected| chrf::item(output, expected)),
            &chrf::Chrf,
        ),
        Measure::Bleu => {
            let items = of(&|answer, output, expected| {
                let language = task.answer_lang.as_ref().unwrap_or(&answer.language);
                bleu::item(output, expected, bleu::Tokenizer::of_language(language))
            });
            scoring.add("bleu", &items, &bleu::Bleu);
        }
        Measure::Qa => {
            let items: Statistics = said
                .iter()
                .map(|(answer, output, expected)| {
                    let language = task.answer_lang.as_ref().unwrap_or(&answer.language);
                    let expected: Vec<&str> = match expected {
                        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
                        one => one.as_str().into_iter().collect(),
                    };
                    (*answer, qa::item(output, &expected, language))
                })
                .collect();
            scoring.add("f1", &items, &qa::F1);
            scoring.add("exact_match", &items, &qa::ExactMatch);
        }
        Measure::IntentSlots => {
            let items = of(&|_, output, expected| {
                let expected = Frame::read(expected).unwrap_or_default();
                expected.item(Frame::read(output).as_ref())
            });
            scoring.add("intent_accuracy", &items, &OfFrames::IntentAccuracy);
            scoring.add("slot_f1", &items, &OfFrames::SlotF1);
            scoring.add("frame_accuracy", &items, &OfFrames::ExactMatch);
        }
        Measure::Labels => {
            let expected = said
                .iter()
                .flat_map(|(_, _, expected)| labels(expected.as_str().unwrap_or_default()));
            let given = said.iter().flat_map(|(_, output, _)| labels(output));
            let all: BTreeSet<String> = expected.chain(given).collect();
            let all: Vec<String> = all.into_iter().collect();
            let items = of(&|_, output, expected| labels_item(&labels(output), &labels(expected), &all));
            scoring.add("label_f1", &items, &LabelF1::Micro);
            scoring.add("label_f1_macro", &items, &LabelF1::Macro);
        }
        Measure::Fidelity => {}
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

/// A few answers of different languages.
fn examples(answers: &[Answer]) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for answer in answers {
        let Said::Text {
            prompt,
            output,
            expected,
        } = &answer.said
        else {
            continue;
        };
        if examples.len() == EXAMPLES {
            break;
        }
        if !examples.iter().any(|known| known.language == answer.language) {
            examples.push(Example {
                language: answer.language.clone(),
                prompt: prompt.clone(),
                answer: output.clone(),
                reference: expected.as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    examples
}
