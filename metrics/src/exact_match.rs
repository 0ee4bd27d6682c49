//! Exact match: whether the answer in a text is the one asked for.

use crate::extract::Extractor;
use crate::statistics::hit;

/// The statistics of one item for [`crate::statistics::Ratio`]. The same extractor reads both texts; where it finds no
/// answer, nothing matches.
pub fn item(answer: &str, reference: &str, extractor: Extractor, language: &str) -> Vec<f64> {
    let answer = extractor.extract(answer, language);
    hit(answer.is_some() && answer == extractor.extract(reference, language))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{Ratio, score};

    #[test]
    fn answers_match_by_what_they_say() {
        for (answer, reference, extractor, expected) in [
            ("So she has $18.00.", "18", Extractor::Number, 1.0),
            ("উত্তর: ১৮", "18", Extractor::Number, 1.0),
            ("18 or 19", "18", Extractor::Number, 0.0),
            ("none", "18", Extractor::Number, 0.0),
            ("", "", Extractor::None, 0.0),
            (" Paris\n", "Paris", Extractor::None, 1.0),
            ("paris", "Paris", Extractor::None, 0.0),
            ("Paris\nRome", "Paris", Extractor::FirstLine, 1.0),
            ("(B)", "B", Extractor::Letter, 1.0),
        ] {
            assert_eq!(
                score(&[item(answer, reference, extractor, "en")], &Ratio),
                expected,
                "{answer:?}"
            );
        }
    }
}
