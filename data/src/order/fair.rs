//! Drawing from classes so that none is ever further from its share than one sample.
//!
//! Worst-case-fair weighted fair queueing (Bennett and Zhang 1996, "WF²Q"). Think of a fluid that flows to all classes at once, each
//! at the rate of its share; what is drawn follows it in whole samples. The credit of a class is what has flowed to it less what
//! was drawn from it. Only a class that the fluid has already begun to pay for may be drawn, so none gets ahead by more than
//! one of its samples; of those, the one whose next sample the fluid would finish first is drawn, so none falls behind by more
//! than the longest sample. Drawing the largest credit first keeps the first of these promises and, with many classes, not the second.

/// Rounding errors of credits, which stay as small as samples are long, do not decide who may be drawn.
const ROUNDING: f64 = 1e-6;

/// What each class is owed.
#[derive(Debug, Clone)]
pub(super) struct Credits(Vec<f64>);

impl Credits {
    /// Nobody is owed anything yet.
    pub(super) fn new(classes: usize) -> Self {
        Credits(vec![0.0; classes])
    }

    /// Forgets what is owed.
    pub(super) fn restart(&mut self) {
        self.0.fill(0.0);
    }

    /// The class to draw from. `shares` sum to 1; `next` is the number of units of a class's next sample. The first one wins ties.
    pub(super) fn choose(&self, shares: &[f64], next: impl Fn(usize) -> f64) -> usize {
        let shared = || (0..shares.len()).filter(|&class| shares[class] > 0.0);
        let finish = |class: usize| (next(class) - self.0[class]) / shares[class];
        let eligible = shared().filter(|&class| self.0[class] >= -ROUNDING);
        let first = eligible.min_by(|&a, &b| finish(a).total_cmp(&finish(b)));
        // While shares move, all that is owed can be owed to classes that have lost theirs.
        let most_owed = || shared().min_by(|&a, &b| self.0[b].total_cmp(&self.0[a]));
        first.or_else(most_owed).unwrap_or(0)
    }

    /// Notes that so many units were drawn from a class while these were the shares.
    pub(super) fn draw(&mut self, class: usize, units: f64, shares: &[f64]) {
        for (credit, share) in self.0.iter_mut().zip(shares) {
            *credit += share * units;
        }
        self.0[class] -= units;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_shares_take_turns() {
        let mut credits = Credits::new(3);
        let shares = [1.0 / 3.0; 3];
        let drawn: Vec<usize> = (0..6)
            .map(|_| {
                let class = credits.choose(&shares, |_| 5.0);
                credits.draw(class, 5.0, &shares);
                class
            })
            .collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1, 2]);
    }

    proptest! {
        /// The promise itself, with lengths that come as they like.
        #[test]
        fn no_class_is_further_from_its_share_than_the_longest_sample(
            weights in prop::collection::vec(0.0_f64..1.0, 2..40), lengths in prop::collection::vec(1_u32..500, 400..1200),
        ) {
            let total: f64 = weights.iter().sum();
            prop_assume!(total > 0.1);
            let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
            let mut credits = Credits::new(shares.len());
            let mut drawn = vec![0.0; shares.len()];
            let mut place = vec![0; shares.len()];
            let (mut all, mut longest) = (0.0, 0.0_f64);
            let next = |class: usize, place: usize| f64::from(lengths[(class * 31 + place * 7) % lengths.len()]);
            for _ in 0..lengths.len() {
                let class = credits.choose(&shares, |class| next(class, place[class]));
                let units = next(class, place[class]);
                credits.draw(class, units, &shares);
                drawn[class] += units;
                place[class] += 1;
                all += units;
                longest = longest.max(units);
                // The longest sample that waits counts too: it may be the one that a class is behind by.
                let waiting = (0..shares.len()).map(|class| next(class, place[class])).fold(longest, f64::max);
                for (drawn, share) in drawn.iter().zip(&shares) {
                    prop_assert!((drawn - share * all).abs() <= waiting + 1e-6, "{drawn} of {all}, share {share}, longest {waiting}");
                }
            }
        }
    }
}
