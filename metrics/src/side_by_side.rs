//! Answers of two systems side by side, for people or models to judge.
//!
//! A judge tends to the answer that it reads first, so each pair is shown in both orders; where the two judgments do not
//! agree on a winner, the pair is a tie (Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023).

use serde::{Deserialize, Serialize};

/// One pair of answers as a judge sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Index of the item.
    pub item: usize,
    /// Whether the answers of system B come first.
    pub swapped: bool,
    /// The answer that is read first.
    pub first: String,
    /// The other one.
    pub second: String,
}

/// What a judge says of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judgment {
    /// The first answer is better.
    First,
    /// The second answer is better.
    Second,
    /// Neither is.
    Tie,
}

/// Each item twice: with the answer of A first, then with that of B first.
///
/// # Panics
/// When the systems have different numbers of answers.
pub fn pairs(a: &[String], b: &[String]) -> Vec<Pair> {
    assert_eq!(a.len(), b.len(), "answers to the same items");
    let both = |(item, (a, b)): (usize, (&String, &String))| {
        [(false, a, b), (true, b, a)].map(|(swapped, first, second)| Pair {
            item,
            swapped,
            first: first.clone(),
            second: second.clone(),
        })
    };
    a.iter().zip(b).enumerate().flat_map(both).collect()
}

/// The statistics of one item for [`crate::statistics::Ratio`], which gives the win rate of A: a win counts 1, a tie 0.5.
/// `a_first` is the judgment of the order with A first, `b_first` of the other.
pub fn item(a_first: Judgment, b_first: Judgment) -> Vec<f64> {
    let win = match (a_first, b_first) {
        (Judgment::First, Judgment::Second) => 1.0,
        (Judgment::Second, Judgment::First) => 0.0,
        _ => 0.5,
    };
    vec![win, 1.0]
}

#[cfg(test)]
mod tests {
    use super::Judgment::{First, Second, Tie};
    use super::*;
    use crate::statistics::{Ratio, score};

    #[test]
    fn each_item_is_judged_in_both_orders() {
        let texts = |texts: [&str; 2]| texts.map(str::to_owned);
        let pairs = pairs(&texts(["a0", "a1"]), &texts(["b0", "b1"]));
        let seen = pairs
            .iter()
            .map(|pair| (pair.item, pair.swapped, &*pair.first, &*pair.second))
            .collect::<Vec<_>>();
        assert_eq!(
            seen,
            [
                (0, false, "a0", "b0"),
                (0, true, "b0", "a0"),
                (1, false, "a1", "b1"),
                (1, true, "b1", "a1")
            ]
        );
        assert_eq!(serde_json::from_str::<Judgment>("\"tie\"").unwrap(), Tie);
    }

    #[test]
    fn a_table_of_judgments_by_hand() {
        for (a_first, b_first, win) in [
            (First, Second, 1.0),
            (Second, First, 0.0),
            (First, First, 0.5),
            (Second, Second, 0.5),
            (Tie, Tie, 0.5),
            (First, Tie, 0.5),
            (Tie, First, 0.5),
        ] {
            assert_eq!(item(a_first, b_first), [win, 1.0], "{a_first:?}, {b_first:?}");
        }
        // Two wins, one tie, one loss.
        let items = [
            item(First, Second),
            item(First, Second),
            item(First, First),
            item(Second, First),
        ];
        assert_eq!(score(&items, &Ratio), 0.625);
    }
}
