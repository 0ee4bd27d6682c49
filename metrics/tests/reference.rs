//! Scores equal those of sacrebleu, scikit-learn, SciPy and NumPy: `fixtures/write_metrics.py` has written them.

#![allow(clippy::unwrap_used)]

use interlingua_metrics::bleu::{self, Bleu, Tokenizer};
use interlingua_metrics::bootstrap;
use interlingua_metrics::chrf::{self, Chrf};
use interlingua_metrics::cka;
use interlingua_metrics::classification::{LabelF1, labels_item};
use interlingua_metrics::qa::{self, ExactMatch, F1};
use interlingua_metrics::retrieval::{Hits, NEIGHBOURS, Retrieval, pair_cosines};
use interlingua_metrics::statistics::{Ratio, score};
use interlingua_metrics::vectors::Vectors;
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn fixture<T: DeserializeOwned>(part: &str) -> T {
    let mut all = serde_json::from_str::<serde_json::Value>(include_str!("fixtures/metrics.json")).expect("JSON");
    serde_json::from_value(all[part].take()).expect("a part of the fixture")
}

fn close(value: f64, expected: f64, tolerance: f64, what: &str) {
    assert!(
        (value - expected).abs() <= tolerance,
        "{what}: {value} is not {expected}"
    );
}

#[derive(Deserialize)]
struct Texts {
    pairs: Vec<[String; 2]>,
    chrf: f64,
    chrf_sentences: Vec<f64>,
    bleu: std::collections::BTreeMap<String, Corpora>,
}

#[derive(Deserialize)]
struct Corpora {
    all: f64,
    each: Vec<f64>,
}

#[test]
fn chrf_is_sacrebleus() {
    let texts = fixture::<Texts>("texts");
    let items = texts
        .pairs
        .iter()
        .map(|[text, reference]| chrf::item(text, reference))
        .collect::<Vec<_>>();
    close(score(&items, &Chrf), texts.chrf, 1e-9, "corpus");
    for ((item, expected), [text, _]) in items.into_iter().zip(texts.chrf_sentences).zip(&texts.pairs) {
        close(score(&[item], &Chrf), expected, 1e-9, text);
    }
}

#[test]
fn bleu_is_sacrebleus() {
    let texts = fixture::<Texts>("texts");
    let tokenizers = [Tokenizer::V13a, Tokenizer::Zh, Tokenizer::Char, Tokenizer::None];
    assert_eq!(texts.bleu.len(), tokenizers.len());
    for tokenizer in tokenizers {
        let expected = &texts.bleu[tokenizer.name()];
        let item = |[text, reference]: &[String; 2]| bleu::item(text, reference, tokenizer);
        let items = texts.pairs.iter().map(item).collect::<Vec<_>>();
        close(score(&items, &Bleu), expected.all, 1e-9, tokenizer.name());
        for ((item, expected), [text, _]) in items.into_iter().zip(&expected.each).zip(&texts.pairs) {
            close(
                score(&[item], &Bleu),
                *expected,
                1e-9,
                &format!("{} {text}", tokenizer.name()),
            );
        }
    }
}

#[test]
fn tokenizers_follow_the_script() {
    for (tag, name) in [
        ("en", "13a"),
        ("sw", "13a"),
        ("ko", "13a"),
        ("zh", "zh"),
        ("zh-Hant-TW", "zh"),
        ("ja", "char"),
        ("th", "char"),
        ("lo", "char"),
        ("km", "char"),
        ("my", "char"),
        ("bo", "char"),
    ] {
        assert_eq!(Tokenizer::of_language(tag).name(), name, "{tag}");
    }
}

#[derive(Deserialize)]
struct Question {
    language: String,
    answer: String,
    references: Vec<String>,
    f1: f64,
    exact: f64,
}

#[test]
fn questions_are_scored_as_squad_and_mlqa_do() {
    for question in fixture::<Vec<Question>>("answers") {
        let references = question.references.iter().map(String::as_str).collect::<Vec<_>>();
        let items = [qa::item(&question.answer, &references, &question.language)];
        close(score(&items, &F1), question.f1, 1e-12, &question.answer);
        close(score(&items, &ExactMatch), question.exact, 0.0, &question.answer);
    }
    // Beyond MLQA: Thai by characters, too.
    assert!(qa::item("ที่โรงเรียน", &["โรงเรียน"], "th")[0] > 0.8);
}

#[derive(Deserialize)]
struct Labels {
    all: Vec<String>,
    r#true: Vec<Vec<String>>,
    given: Vec<Vec<String>>,
    micro: f64,
    r#macro: f64,
    samples: f64,
    single_true: Vec<String>,
    single_given: Vec<String>,
    single_macro: f64,
    single_micro: f64,
}

#[test]
fn f1_of_labels_is_scikit_learns() {
    let labels = fixture::<Labels>("labels");
    let several = labels.given.iter().zip(&labels.r#true);
    let several = several
        .map(|(given, wanted)| labels_item(given, wanted, &labels.all))
        .collect::<Vec<_>>();
    close(score(&several, &LabelF1::Micro), labels.micro, 1e-12, "micro");
    close(score(&several, &LabelF1::Macro), labels.r#macro, 1e-12, "macro");
    close(score(&several, &LabelF1::Samples), labels.samples, 1e-12, "samples");
    let single = labels.single_given.chunks(1).zip(labels.single_true.chunks(1));
    let single = single
        .map(|(given, wanted)| labels_item(given, wanted, &labels.all))
        .collect::<Vec<_>>();
    close(
        score(&single, &LabelF1::Macro),
        labels.single_macro,
        1e-12,
        "macro of single labels",
    );
    close(
        score(&single, &LabelF1::Micro),
        labels.single_micro,
        1e-12,
        "micro of single labels",
    );
}

#[derive(Deserialize)]
struct Translations {
    width: usize,
    first: Vec<f32>,
    second: Vec<f32>,
    cosine: Directions,
    margin: Directions,
    pairs: Vec<f64>,
}

#[derive(Deserialize)]
struct Directions {
    forward: Vec<bool>,
    backward: Vec<bool>,
}

impl From<Directions> for Hits {
    fn from(Directions { forward, backward }: Directions) -> Self {
        Self { forward, backward }
    }
}

#[test]
fn retrieval_is_numpys() {
    let given = fixture::<Translations>("retrieval");
    let first = Vectors::new(&given.first, given.width);
    let second = Vectors::new(&given.second, given.width);
    let retrieval = Retrieval::new(first, second);
    assert_eq!(retrieval.cosine(), given.cosine.into());
    assert_eq!(retrieval.margin(NEIGHBOURS), given.margin.into());
    assert_ne!(retrieval.margin(NEIGHBOURS), retrieval.cosine());
    for (cosine, expected) in pair_cosines(first, second).into_iter().zip(given.pairs) {
        close(cosine, expected, 1e-12, "pair");
    }
}

#[derive(Deserialize)]
struct Alignment {
    widths: [usize; 2],
    first: Vec<f32>,
    second: Vec<f32>,
    linear: f64,
    debiased: f64,
}

#[test]
fn cka_is_numpys() {
    for case in fixture::<Vec<Alignment>>("cka") {
        let first = Vectors::new(&case.first, case.widths[0]);
        let second = Vectors::new(&case.second, case.widths[1]);
        let what = format!("{:?}", case.widths);
        close(cka::linear(first, second), case.linear, 1e-10, &what);
        close(cka::debiased(first, second), case.debiased, 1e-10, &what);
        close(cka::linear(first, first), 1.0, 1e-12, &what);
    }
    let equal = Vectors::new(&[1.0; 10], 2);
    assert!(cka::linear(equal, equal).is_nan());
    assert!(cka::debiased(Vectors::new(&[1.0, 2.0, 4.0], 1), Vectors::new(&[1.0, 2.0, 4.0], 1)).is_nan());
}

#[derive(Deserialize)]
struct Samples {
    first: Vec<f64>,
    second: Vec<f64>,
    interval: [f64; 2],
    difference: [f64; 2],
    p_value: f64,
}

#[test]
fn intervals_and_tests_are_scipys() {
    let samples = fixture::<Samples>("bootstrap");
    let items = |values: &[f64]| values.iter().map(|value| vec![*value, 1.0]).collect::<Vec<_>>();
    let (first, second) = (items(&samples.first), items(&samples.second));
    // The end of an interval of n resamples has a standard error of about √(0.025 · 0.975 / n) / density, with a normal
    // density of 0.058 / σ at 2.5 %: 2.7 σ / √n. Four of them.
    let tolerance = |interval: [f64; 2]| 4.0 * 2.7 * (interval[1] - interval[0]) / (2.0 * 1.96) / 20_000_f64.sqrt();
    let [low, high] = bootstrap::interval(&first, &Ratio, 3, 20_000).unwrap();
    close(low, samples.interval[0], tolerance(samples.interval), "low");
    close(high, samples.interval[1], tolerance(samples.interval), "high");
    let paired = bootstrap::paired(&first, &second, &Ratio, 3, 20_000).unwrap();
    close(
        paired.low,
        samples.difference[0],
        tolerance(samples.difference),
        "low of the difference",
    );
    close(
        paired.high,
        samples.difference[1],
        tolerance(samples.difference),
        "high of the difference",
    );
    let error = (samples.p_value * (1.0 - samples.p_value) / 20_000.0).sqrt();
    close(paired.p_value, samples.p_value, 4.0 * error + 1e-3, "p");
}
