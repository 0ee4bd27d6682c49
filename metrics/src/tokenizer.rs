//! What a tokenizer costs each language, and what of its vocabulary a language uses.
//!
//! Words are those of Unicode's text segmentation (UAX 29) that have a letter or digit. Where words stand without spaces
//! between them it knows no words: each character of Chinese, Thai, Lao, Khmer or Burmese, and of Japanese other than
//! katakana, is one. Fertility there is tokens per character, and compares with that of other languages no more.

use std::collections::HashMap;

use unicode_segmentation::UnicodeSegmentation;

use crate::statistics::{Metric, ratio};
use crate::text::counts;

/// The statistics of one text: tokens, words, characters (code points), bytes, and unknown tokens.
pub fn item(text: &str, tokens: &[u32], unknown: Option<u32>) -> Vec<f64> {
    let unknown = tokens.iter().filter(|token| Some(**token) == unknown).count();
    [
        tokens.len(),
        text.unicode_words().count(),
        text.chars().count(),
        text.len(),
        unknown,
    ]
    .map(|count| count as f64)
    .to_vec()
}

/// How many numbers [`item`] has.
pub const WIDTH: usize = 5;

/// Metrics of [`item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfTexts {
    /// Tokens per word.
    Fertility,
    /// Bytes per token.
    BytesPerToken,
    /// Characters per token.
    CharactersPerToken,
    /// Share of the tokens that are known.
    Coverage,
}

impl Metric for OfTexts {
    fn finish(&self, sum: &[f64]) -> f64 {
        match self {
            Self::Fertility => ratio(sum[0], sum[1]),
            Self::BytesPerToken => ratio(sum[3], sum[0]),
            Self::CharactersPerToken => ratio(sum[2], sum[0]),
            Self::Coverage => 1.0 - ratio(sum[4], sum[0]),
        }
    }
}

/// Tokens of a language per token of the anchor for texts that say the same (Petrov et al., "Language Model Tokenizers
/// Introduce Unfairness Between Languages", 2023), from items that have the anchor's statistics first and the language's
/// second ([`crate::statistics::across`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parity;

impl Metric for Parity {
    fn finish(&self, sum: &[f64]) -> f64 {
        ratio(sum[WIDTH], sum[0])
    }
}

/// How often each token occurs in the texts of a language.
pub fn token_counts<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> HashMap<u32, usize> {
    counts(texts.into_iter().flatten().copied())
}

/// Share of the vocabulary that occurs.
pub fn vocabulary_use(counts: &HashMap<u32, usize>, vocabulary: usize) -> f64 {
    ratio(counts.len() as f64, vocabulary as f64)
}

/// The mean rank of the tokens of a text, from 0 for the most frequent one; the larger, the more of the vocabulary the
/// language spreads over. NaN without tokens.
pub fn average_rank(counts: &HashMap<u32, usize>) -> f64 {
    let mut sorted = counts.values().map(|count| *count as f64).collect::<Vec<_>>();
    sorted.sort_unstable_by(|one, other| other.total_cmp(one));
    let ranks = sorted.iter().enumerate().map(|(rank, count)| rank as f64 * count).sum();
    ratio(ranks, sorted.iter().sum())
}

/// The Jensen–Shannon divergence of two languages' tokens, base 2: 0 where they use the same tokens equally often, 1 where
/// they share none. NaN where one has none.
pub fn divergence(first: &HashMap<u32, usize>, second: &HashMap<u32, usize>) -> f64 {
    let half = |one: &HashMap<u32, usize>, other: &HashMap<u32, usize>| {
        let total = |counts: &HashMap<u32, usize>| counts.values().sum::<usize>() as f64;
        let (of_one, of_other) = (total(one), total(other));
        // In the order of the tokens: the last bits of a sum depend on its order.
        let mut terms = one
            .iter()
            .map(|(token, count)| {
                let p = *count as f64 / of_one;
                let q = other.get(token).map_or(0.0, |count| *count as f64) / of_other;
                (token, p * (2.0 * p / (p + q)).log2())
            })
            .collect::<Vec<_>>();
        terms.sort_unstable_by_key(|(token, _)| **token);
        terms.iter().map(|(_, term)| term).sum::<f64>() / 2.0
    };
    if first.is_empty() || second.is_empty() {
        return f64::NAN;
    }
    half(first, second) + half(second, first)
}

/// How unequally costs are spread over languages: 0 where all pay the same, near 1 where one pays all.
/// `(n + 1 - 2 Σ (n + 1 - i) c_i / Σ c_i) / n` with costs ascending and i from 1. NaN without costs.
pub fn gini(costs: &[f64]) -> f64 {
    let mut costs = costs.to_vec();
    costs.sort_unstable_by(f64::total_cmp);
    let n = costs.len() as f64;
    let weighted = costs.iter().enumerate().map(|(at, cost)| (n - at as f64) * cost).sum();
    (n + 1.0 - 2.0 * ratio(weighted, costs.iter().sum())) / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{across, score};

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-12, "{value} is not {expected}");
    }

    #[test]
    fn a_table_of_texts_by_hand() {
        // Words 2 + 3, tokens 3 + 5, characters 10 + 11, bytes 10 + 13, unknown 0 + 2.
        let items = [
            item("Good day, ", &[5, 6, 7], Some(0)),
            item("Größe 3,5 m", &[5, 0, 0, 8, 9], Some(0)),
        ];
        assert_eq!(items[0], [3.0, 2.0, 10.0, 10.0, 0.0]);
        assert_eq!(items[1], [5.0, 3.0, 11.0, 13.0, 2.0]);
        close(score(&items, &OfTexts::Fertility), 8.0 / 5.0);
        close(score(&items, &OfTexts::BytesPerToken), 23.0 / 8.0);
        close(score(&items, &OfTexts::CharactersPerToken), 21.0 / 8.0);
        close(score(&items, &OfTexts::Coverage), 0.75);
        assert!(score(&[item("", &[], None)], &OfTexts::Fertility).is_nan());
        // An anchor of 3 + 5 tokens, a language of 6 + 6: the mean of 6/3 and 6/5 would be another number.
        let pairs = [0, 1].map(|at| across(&[Some(&items[at]), Some(&item("", &[1; 6], None))], WIDTH));
        close(score(&pairs, &Parity), 1.5);
    }

    #[test]
    fn characters_are_words_where_there_are_no_spaces() {
        for (text, words) in [
            ("don't stop 3.5", 3),
            ("今天天气", 4),
            ("ภาษา", 4),
            ("カタカナ", 1),
            ("ひらがな", 4),
            ("안녕 하세요", 2),
            ("हिन्दी में", 2),
            ("...", 0),
        ] {
            assert_eq!(item(text, &[], None)[1], f64::from(words), "{text}");
        }
    }

    #[test]
    fn tables_of_counts_by_hand() {
        let first = token_counts([[1, 1, 2].as_slice(), &[1]]);
        let second = token_counts([[1, 3, 3, 3].as_slice()]);
        close(vocabulary_use(&first, 8), 0.25);
        // Three tokens of rank 0, one of rank 1.
        close(average_rank(&first), 0.25);
        // p = (3/4, 1/4, 0), q = (1/4, 0, 3/4), m = (1/2, 1/8, 3/8):
        // ½ (¾ log 3/2 + ¼ log 2) + ½ (¼ log 1/2 + ¾ log 2) = ½ (¾ log 3/2 + ¾).
        close(divergence(&first, &second), 0.375 * 1.5_f64.log2() + 0.375);
        close(divergence(&first, &first), 0.0);
        close(divergence(&first, &token_counts([[7].as_slice()])), 1.0);
        assert!(divergence(&first, &HashMap::new()).is_nan());
        assert!(average_rank(&HashMap::new()).is_nan());
    }

    #[test]
    fn gini_is_zero_for_equal_costs_and_large_for_one_that_pays() {
        close(gini(&[2.0, 2.0, 2.0]), 0.0);
        // (4 + 1 - 2 · (4·1 + 3·1 + 2·2 + 1·4) / 8) / 4 = (5 - 3.75) / 4.
        close(gini(&[4.0, 1.0, 2.0, 1.0]), 0.3125);
        close(gini(&[0.0, 0.0, 0.0, 1.0]), 0.75);
        assert!(gini(&[]).is_nan());
    }
}
