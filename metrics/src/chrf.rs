//! chrF++ (Popović, "chrF++: words helping character n-grams", 2017) with the numbers of sacrebleu 2: runs of 1 to 6
//! characters without white space and of 1 to 2 words, recall weighs twice as much as precision, and orders that one side
//! is too short for are left out.

use crate::statistics::Metric;
use crate::text::{common, is_space, ngrams, words};

const CHARACTER_ORDER: usize = 6;
const WORD_ORDER: usize = 2;
const BETA: f64 = 2.0;

/// chrF++ from 0 to 100. The score of a sum is that of the corpus; of one item that of the sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chrf;

/// The statistics of one item: for each order the runs of the hypothesis, those of the reference, and those that both
/// have.
pub fn item(hypothesis: &str, reference: &str) -> Vec<f64> {
    let mut statistics = Vec::with_capacity(3 * (CHARACTER_ORDER + WORD_ORDER));
    compare(
        &characters(hypothesis),
        &characters(reference),
        CHARACTER_ORDER,
        &mut statistics,
    );
    compare(&tokens(hypothesis), &tokens(reference), WORD_ORDER, &mut statistics);
    statistics
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|character| !is_space(*character)).collect()
}

/// Words; one mark of ASCII punctuation at the end of a word, or else at its beginning, is a word of its own.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    for word in words(text) {
        let one = word.chars().nth(1).is_none();
        let cut = if one {
            None
        } else if word.ends_with(|character: char| character.is_ascii_punctuation()) {
            Some(word.len() - 1)
        } else if word.starts_with(|character: char| character.is_ascii_punctuation()) {
            Some(1)
        } else {
            None
        };
        match cut {
            Some(cut) => tokens.extend([&word[..cut], &word[cut..]]),
            None => tokens.push(word),
        }
    }
    tokens
}

fn compare<T: std::hash::Hash + Eq>(hypothesis: &[T], reference: &[T], orders: usize, statistics: &mut Vec<f64>) {
    for order in 1..=orders {
        let runs = |units: &[T]| (units.len() + 1).saturating_sub(order);
        // Runs of the hypothesis do not count where the reference has none.
        let counted = if runs(reference) == 0 { 0 } else { runs(hypothesis) };
        let both = common(&ngrams(hypothesis, order), &ngrams(reference, order));
        statistics.extend([counted, runs(reference), both].map(|count| count as f64));
    }
}

impl Metric for Chrf {
    fn finish(&self, sum: &[f64]) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for order in sum.chunks(3).filter(|order| order[0] > 0.0 && order[1] > 0.0) {
            precision += order[2] / order[0];
            recall += order[2] / order[1];
            orders += 1.0;
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        let factor = BETA * BETA;
        100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
    }
}
