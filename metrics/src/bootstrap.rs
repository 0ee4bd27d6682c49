//! How sure a score is: bootstrap intervals, and tests of the difference between two systems on the same items.
//!
//! Intervals are percentiles of the scores of resamples (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
//! chapter 13; for the difference of two systems Koehn, "Statistical Significance Tests for Machine Translation
//! Evaluation", 2004). The p-value is that of approximate randomisation (Riezler and Maxwell, "On Some Pitfalls in
//! Automatic Evaluation and Significance Testing for MT", 2005).
//!
//! What is resampled is an item: answers that belong together, as those to one question in several languages, make one
//! item by [`crate::statistics::across`]. Every resample has random numbers of its own, so results do not depend on
//! threads.

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::statistics::{Metric, add, score};

/// How many resamples an interval is read from, where nobody says otherwise.
pub const RESAMPLES: usize = 1000;

/// The part of the resamples outside of an interval: 95 % lie inside.
const OUTSIDE: f64 = 0.05;

/// Randomisation draws from streams of their own.
const RANDOMISATION: u64 = 1 << 32;

/// Two systems on the same items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Score of the first minus score of the second.
    pub difference: f64,
    /// Lower end of the difference's 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How often a difference at least this large, in either direction, comes by chance if the systems are alike.
    pub p_value: f64,
}

/// The 95 % interval of a score. Resamples in which the score is not defined are left out; `None` with fewer than two
/// items, and where the score of all items is not defined.
pub fn interval(items: &[Vec<f64>], metric: &impl Metric, seed: u64, resamples: usize) -> Option<[f64; 2]> {
    if items.len() < 2 || score(items, metric).is_nan() {
        return None;
    }
    percentiles(over_resamples(resamples, |resample| {
        let mut random = stream(seed, resample);
        let mut sum = vec![0.0; items[0].len()];
        for _ in items {
            add(&mut sum, &items[draw(&mut random, items.len())]);
        }
        metric.finish(&sum)
    }))
}

/// The difference of two systems: its 95 % interval by resampling items, the same for both, and its p-value by exchanging
/// the answers of a random half of the items, `(c + 1) / (resamples + 1)` where c counts the differences that are at
/// least as large as the one seen. `None` as for [`interval`].
///
/// # Panics
/// When the systems have different numbers of items.
pub fn paired(
    first: &[Vec<f64>],
    second: &[Vec<f64>],
    metric: &impl Metric,
    seed: u64,
    resamples: usize,
) -> Option<Paired> {
    assert_eq!(
        first.len(),
        second.len(),
        "a paired test compares answers to the same items"
    );
    let difference = score(first, metric) - score(second, metric);
    if first.len() < 2 || difference.is_nan() {
        return None;
    }
    let width = first[0].len();
    let [low, high] = percentiles(over_resamples(resamples, |resample| {
        let mut random = stream(seed, resample);
        let mut sums = [vec![0.0; width], vec![0.0; width]];
        for _ in first {
            let item = draw(&mut random, first.len());
            add(&mut sums[0], &first[item]);
            add(&mut sums[1], &second[item]);
        }
        metric.finish(&sums[0]) - metric.finish(&sums[1])
    }))?;
    let by_chance = over_resamples(resamples, |resample| {
        let mut random = stream(seed, RANDOMISATION + resample);
        let mut sums = [vec![0.0; width], vec![0.0; width]];
        let mut bits = 0;
        for (item, (first, second)) in first.iter().zip(second).enumerate() {
            if item % 64 == 0 {
                bits = random.next_u64();
            }
            let exchanged = ((bits >> (item % 64)) & 1) as usize;
            add(&mut sums[exchanged], first);
            add(&mut sums[1 - exchanged], second);
        }
        metric.finish(&sums[0]) - metric.finish(&sums[1])
    });
    // Equal differences may differ in the last bits, since they are sums in another order.
    let seen = difference.abs() * (1.0 - 1e-9) - 1e-12;
    let count = by_chance.iter().filter(|difference| difference.abs() >= seen).count();
    Some(Paired {
        difference,
        low,
        high,
        p_value: (count + 1) as f64 / (by_chance.len() + 1) as f64,
    })
}

/// What `of` gives for each resample, where it is defined.
fn over_resamples(resamples: usize, of: impl Fn(u64) -> f64 + Send + Sync) -> Vec<f64> {
    (0..resamples as u64)
        .into_par_iter()
        .map(of)
        .filter(|value| !value.is_nan())
        .collect()
}

fn stream(seed: u64, resample: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(resample);
    random
}

/// A number below `n`, whose bias is below n / 2^64.
fn draw(random: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}

/// The ends of the middle 95 %, between neighbours by linear interpolation.
fn percentiles(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| {
        let place = share * last as f64;
        let below = values[place as usize];
        below + (values[(place as usize + 1).min(last)] - below) * place.fract()
    };
    Some([at(OUTSIDE / 2.0), at(1.0 - OUTSIDE / 2.0)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{MeanOver, Ratio, across, hit};

    fn numbers(values: &[f64]) -> Vec<Vec<f64>> {
        values.iter().map(|value| vec![*value, 1.0]).collect()
    }

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8, 16], [2.5, 97.5])
        let [low, high] = percentiles(vec![16.0, 2.0, 8.0, 1.0, 4.0]).unwrap();
        assert!((low - 1.1).abs() < 1e-12 && (high - 15.2).abs() < 1e-12);
        assert_eq!(percentiles(vec![]), None);
    }

    #[test]
    fn few_items_give_the_interval_of_all_resamples() {
        // All 27 resamples of 3 items: a mean of 0 or of 9 has probability 1/27 = 3.7 % each, so both lie inside 95 %.
        assert_eq!(interval(&numbers(&[0.0, 3.0, 9.0]), &Ratio, 7, 4000), Some([0.0, 9.0]));
        // All 3125 resamples of 5: P(mean = 0) = (4/5)^5 = 32.8 %, P(mean >= 4/5) = 21/3125 = 0.7 %, P(>= 3/5) = 5.8 %.
        assert_eq!(
            interval(&numbers(&[0.0, 0.0, 0.0, 0.0, 1.0]), &Ratio, 7, 4000),
            Some([0.0, 0.6])
        );
    }

    #[test]
    fn nothing_is_said_of_one_item_or_of_an_undefined_score() {
        assert_eq!(interval(&numbers(&[1.0]), &Ratio, 0, 100), None);
        assert_eq!(interval(&[], &Ratio, 0, 100), None);
        assert_eq!(interval(&[vec![0.0, 0.0], vec![0.0, 0.0]], &Ratio, 0, 100), None);
    }

    #[test]
    fn the_p_value_is_that_of_all_exchanges() {
        // Differences 1, 2, 3 and 4: of the 16 signs only two give a sum of at least 10, so p = 1/8.
        let first = numbers(&[2.0, 4.0, 6.0, 8.0]);
        let second = numbers(&[1.0, 2.0, 3.0, 4.0]);
        let paired = paired(&first, &second, &Ratio, 3, 20_000).unwrap();
        assert_eq!(paired.difference, 2.5);
        // Three standard errors of a share of 1/8 in 20,000.
        assert!(
            (paired.p_value - 0.125).abs() < 3.0 * (0.125 * 0.875 / 20_000.0_f64).sqrt(),
            "{paired:?}"
        );
        assert_eq!((paired.low > 1.0, paired.high < 4.0), (true, true), "{paired:?}");
    }

    #[test]
    fn equal_systems_do_not_differ() {
        let items = numbers(&[0.3, 0.1, 0.7, 0.2, 0.9]);
        let paired = paired(&items, &items, &Ratio, 1, RESAMPLES).unwrap();
        assert_eq!(
            paired,
            Paired {
                difference: 0.0,
                low: 0.0,
                high: 0.0,
                p_value: 1.0
            }
        );
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let items = (0..50).map(|item| hit(item % 3 == 0)).collect::<Vec<_>>();
        let other = (0..50).map(|item| hit(item % 4 == 0)).collect::<Vec<_>>();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (interval(&items, &Ratio, 5, 200), paired(&items, &other, &Ratio, 5, 200)))
        };
        assert_eq!(on(1), on(3));
        assert_ne!(interval(&items, &Ratio, 5, 200), interval(&items, &Ratio, 6, 37));
    }

    #[test]
    fn what_belongs_together_is_drawn_together() {
        // The second language repeats the first: together its answers are no news, apart they would be.
        let one = (0..100).map(|item| hit(item % 2 == 0)).collect::<Vec<_>>();
        let both = one
            .iter()
            .map(|item| across(&[Some(item), Some(item)], 2))
            .collect::<Vec<_>>();
        let apart = [one.clone(), one.clone()].concat();
        let width = |interval: [f64; 2]| interval[1] - interval[0];
        let together = interval(
            &both,
            &MeanOver {
                metric: Ratio,
                width: 2,
            },
            9,
            RESAMPLES,
        )
        .unwrap();
        assert_eq!(Some(together), interval(&one, &Ratio, 9, RESAMPLES));
        assert!(width(interval(&apart, &Ratio, 9, RESAMPLES).unwrap()) < 0.8 * width(together));
    }
}
