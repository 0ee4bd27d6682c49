//! Accuracy of choices, and how far a language is from an anchor.

use crate::statistics::{Metric, hit};

/// The statistics of one answer for [`crate::statistics::Ratio`]: whether the chosen option is the right one. No choice
/// is a wrong one.
pub fn item(choice: Option<usize>, right: usize) -> Vec<f64> {
    hit(choice == Some(right))
}

/// Score of a language minus score of the anchor, from items that have the anchor's statistics first and the language's
/// second ([`crate::statistics::across`]). Below zero the language is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap<M> {
    /// The metric of one language.
    pub metric: M,
}

impl<M: Metric> Metric for Gap<M> {
    fn finish(&self, sum: &[f64]) -> f64 {
        let (anchor, language) = sum.split_at(sum.len() / 2);
        self.metric.finish(language) - self.metric.finish(anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{Ratio, across, score};

    #[test]
    fn no_choice_is_a_wrong_one() {
        let items = [item(Some(2), 2), item(Some(0), 2), item(None, 0), item(Some(0), 0)];
        assert_eq!(score(&items, &Ratio), 0.5);
    }

    #[test]
    fn the_gap_is_signed() {
        // English right in 3 of 4, Swahili in 1 of 4.
        let items = [(true, true), (true, false), (true, false), (false, false)]
            .map(|(english, swahili)| across(&[Some(&hit(english)), Some(&hit(swahili))], 2));
        assert_eq!(score(&items, &Gap { metric: Ratio }), -0.5);
    }
}
