//! Whether a model chooses the same in all languages, right or wrong.
//!
//! Consistency over subsets of s languages and AC3 are SeaEval's (Wang et al., "SeaEval for Multilingual Foundation
//! Models", 2024): C_s is the share of items with one choice in all languages of a subset, averaged over the subsets, and
//! AC3_s its harmonic mean with accuracy. MLC is MuBench's: the share of other languages with an equal choice.
//!
//! Subsets are not enumerated: where n of L languages make a choice, (n over s) of the (L over s) subsets agree on it.

use std::collections::BTreeMap;

use crate::statistics::{Metric, ratio};

/// SeaEval adds it to AC3's denominator, so that two zeros give zero.
const EPSILON: f64 = 1e-10;

/// The statistics of one item: for s from 2 to L the share of agreeing subsets, for each of the L languages the share of
/// agreeing others, the share of right choices, and 1. No choice agrees with nothing, not even with another.
///
/// # Panics
/// With fewer than two languages.
pub fn item(choices: &[Option<usize>], right: usize) -> Vec<f64> {
    let languages = choices.len();
    assert!(languages > 1, "consistency is between languages");
    let mut counts = BTreeMap::<usize, usize>::new();
    choices
        .iter()
        .flatten()
        .for_each(|choice| *counts.entry(*choice).or_default() += 1);
    let sizes = (2..=languages).map(|size| {
        counts
            .values()
            .map(|count| subsets(*count, languages, size))
            .sum::<f64>()
    });
    let others = choices
        .iter()
        .map(|choice| choice.map_or(0.0, |choice| (counts[&choice] - 1) as f64 / (languages - 1) as f64));
    let accuracy = counts.get(&right).map_or(0.0, |count| *count as f64 / languages as f64);
    sizes.chain(others).chain([accuracy, 1.0]).collect()
}

/// `(count over size) / (languages over size)`.
fn subsets(count: usize, languages: usize, size: usize) -> f64 {
    (0..size)
        .map(|taken| count.saturating_sub(taken) as f64 / (languages - taken) as f64)
        .product()
}

fn languages(sum: &[f64]) -> usize {
    (sum.len() - 1) / 2
}

fn mean(sum: &[f64], place: usize) -> f64 {
    ratio(sum[place], sum[sum.len() - 1])
}

/// Mean over languages of the accuracy.
fn accuracy(sum: &[f64]) -> f64 {
    mean(sum, sum.len() - 2)
}

/// C_s, from 0 to 1. C_2 is the mean of MLC over languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consistency {
    /// s: 2 to the number of languages.
    pub size: usize,
}

impl Metric for Consistency {
    fn finish(&self, sum: &[f64]) -> f64 {
        assert!(
            (2..=languages(sum)).contains(&self.size),
            "subsets have 2 to {} languages",
            languages(sum)
        );
        mean(sum, self.size - 2)
    }
}

/// `AC3_s = 2 C_s A / (C_s + A)` with A the mean accuracy of the languages, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ac3 {
    /// s: 2 to the number of languages.
    pub size: usize,
}

impl Metric for Ac3 {
    fn finish(&self, sum: &[f64]) -> f64 {
        let consistency = Consistency { size: self.size }.finish(sum);
        let accuracy = accuracy(sum);
        2.0 * consistency * accuracy / (consistency + accuracy + EPSILON)
    }
}

/// MLC of one language, from 0 to 1: the share of equal choices with another language, averaged over the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mlc {
    /// Its place among the choices.
    pub language: usize,
}

impl Metric for Mlc {
    fn finish(&self, sum: &[f64]) -> f64 {
        mean(sum, languages(sum) - 1 + self.language)
    }
}

/// Mean MLC divided by the mean accuracy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelativeMlc;

impl Metric for RelativeMlc {
    fn finish(&self, sum: &[f64]) -> f64 {
        ratio(Consistency { size: 2 }.finish(sum), accuracy(sum))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::statistics::score;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }

    /// Three languages, four items.
    ///
    /// | item | right | en | sw | fi | pairs | all three | right choices |
    /// |---|---|---|---|---|---|---|---|
    /// | 0 | 0 | 0 | 0 | 0 | 3/3 | 1 | 3 |
    /// | 1 | 1 | 1 | 1 | 2 | 1/3 | 0 | 2 |
    /// | 2 | 2 | 0 | 0 | 0 | 3/3 | 1 | 0 |
    /// | 3 | 0 | 0 | 1 | – | 0/3 | 0 | 1 |
    fn table() -> Vec<Vec<f64>> {
        vec![
            item(&[Some(0), Some(0), Some(0)], 0),
            item(&[Some(1), Some(1), Some(2)], 1),
            item(&[Some(0), Some(0), Some(0)], 2),
            item(&[Some(0), Some(1), None], 0),
        ]
    }

    #[test]
    fn a_table_by_hand() {
        let items = table();
        // C_2 = (1 + 1/3 + 1 + 0) / 4 = 7/12, C_3 = 2/4, A = (3 + 2 + 0 + 1) / 12 = 1/2.
        close(score(&items, &Consistency { size: 2 }), 7.0 / 12.0);
        close(score(&items, &Consistency { size: 3 }), 0.5);
        // 2 · 7/12 · 6/12 / (13/12) = 7/13.
        close(score(&items, &Ac3 { size: 2 }), 7.0 / 13.0);
        close(score(&items, &Ac3 { size: 3 }), 0.5);
        // en: (1 + 1/2 + 1 + 0) / 4; sw alike; fi: (1 + 0 + 1 + 0) / 4.
        close(score(&items, &Mlc { language: 0 }), 0.625);
        close(score(&items, &Mlc { language: 1 }), 0.625);
        close(score(&items, &Mlc { language: 2 }), 0.5);
        close(score(&items, &RelativeMlc), 7.0 / 6.0);
    }

    #[test]
    fn nothing_right_and_nothing_equal_is_zero() {
        let items = [item(&[Some(0), Some(1)], 2)];
        assert_eq!(score(&items, &Ac3 { size: 2 }), 0.0);
        assert!(score(&items, &RelativeMlc).is_nan());
        assert!(score(&[], &Consistency { size: 2 }).is_nan());
    }

    /// C_s by its definition: every subset of s languages, then every item.
    fn enumerated(items: &[Vec<Option<usize>>], size: usize) -> f64 {
        let languages = items[0].len();
        let mut shares = Vec::new();
        for subset in (0_u32..1 << languages).filter(|subset| subset.count_ones() as usize == size) {
            let equal = items.iter().filter(|choices| {
                let mut chosen = (0..languages)
                    .filter(|language| subset >> language & 1 == 1)
                    .map(|at| choices[at]);
                let first = chosen.next().unwrap();
                first.is_some() && chosen.all(|choice| choice == first)
            });
            shares.push(equal.count() as f64 / items.len() as f64);
        }
        shares.iter().sum::<f64>() / shares.len() as f64
    }

    proptest! {
        #[test]
        fn subsets_are_counted_as_if_enumerated(
            items in (2_usize..7).prop_flat_map(|languages| {
                let choice = prop::option::weighted(0.9, 0_usize..3);
                prop::collection::vec(prop::collection::vec(choice, languages), 1..6)
            })
        ) {
            let languages = items[0].len();
            let statistics = items.iter().map(|choices| item(choices, 0)).collect::<Vec<_>>();
            for size in 2..=languages {
                let counted = score(&statistics, &Consistency { size });
                prop_assert!((counted - enumerated(&items, size)).abs() < 1e-12);
            }
            let mlc = (0..languages).map(|language| score(&statistics, &Mlc { language })).sum::<f64>();
            prop_assert!((mlc / languages as f64 - enumerated(&items, 2)).abs() < 1e-12);
        }
    }
}
