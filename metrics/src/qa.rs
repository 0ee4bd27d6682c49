//! Extractive question answering: F1 and exact match.
//!
//! In English as SQuAD v1.1 (Rajpurkar et al., 2016) has it: lower case, without ASCII punctuation and articles, words
//! between white space. In other languages as MLQA (Lewis et al., 2020) has it, but for its lists of articles: without
//! any punctuation of Unicode, and in languages without spaces between words each character of their scripts is a word.

use std::sync::LazyLock;

use regex::Regex;
use unicode_script::{Script, UnicodeScript};

use crate::language::{primary, without_spaces};
use crate::statistics::{Metric, ratio};
use crate::text::{common, counts, words};

/// F1 of words, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct F1;

/// Share of answers that equal a reference, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactMatch;

impl Metric for F1 {
    fn finish(&self, sum: &[f64]) -> f64 {
        ratio(sum[0], sum[2])
    }
}

impl Metric for ExactMatch {
    fn finish(&self, sum: &[f64]) -> f64 {
        ratio(sum[1], sum[2])
    }
}

/// The statistics of one answer: the best F1 and the best match over the references, and 1.
pub fn item(answer: &str, references: &[&str], language: &str) -> Vec<f64> {
    let answer = tokens(answer, language);
    let mut best = [0.0_f64, 0.0];
    for reference in references {
        let reference = tokens(reference, language);
        best[0] = best[0].max(f1(&answer, &reference));
        best[1] = best[1].max(f64::from(u8::from(answer == reference)));
    }
    vec![best[0], best[1], 1.0]
}

fn f1(answer: &[String], reference: &[String]) -> f64 {
    let both = common(&counts(answer), &counts(reference));
    if both == 0 {
        0.0
    } else {
        2.0 * both as f64 / (answer.len() + reference.len()) as f64
    }
}

fn tokens(text: &str, language: &str) -> Vec<String> {
    static PUNCTUATION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[[:punct:]\p{P}]").expect("a pattern of ours"));
    static ARTICLES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b(?:a|an|the)\b").expect("a pattern of ours"));
    let text = text.to_lowercase();
    let text = if primary(language) == "en" {
        let text = text.replace(|character: char| character.is_ascii_punctuation(), "");
        ARTICLES.replace_all(&text, " ").into_owned()
    } else {
        PUNCTUATION.replace_all(&text, "").into_owned()
    };
    if !without_spaces(language) {
        return words(&text).map(str::to_owned).collect();
    }
    let mut spaced = String::with_capacity(2 * text.len());
    for character in text.chars() {
        if is_unspaced(character) {
            spaced.extend([' ', character, ' ']);
        } else {
            spaced.push(character);
        }
    }
    words(&spaced).map(str::to_owned).collect()
}

fn is_unspaced(character: char) -> bool {
    matches!(
        character.script(),
        Script::Han
            | Script::Hiragana
            | Script::Katakana
            | Script::Thai
            | Script::Lao
            | Script::Khmer
            | Script::Myanmar
            | Script::Tibetan
    )
}
