//! Additive statistics: each item is a vector, and a score is a function of the sum of the vectors.

/// A score as a function of summed statistics.
pub trait Metric: Sync {
    /// The score of a sum, or NaN where it is not defined, as without items.
    fn finish(&self, sum: &[f64]) -> f64;
}

/// Any function of a sum is a metric.
impl<F: Fn(&[f64]) -> f64 + Sync> Metric for F {
    fn finish(&self, sum: &[f64]) -> f64 {
        self(sum)
    }
}

/// A share or a mean: `[numerator, denominator]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ratio;

impl Metric for Ratio {
    fn finish(&self, sum: &[f64]) -> f64 {
        ratio(sum[0], sum[1])
    }
}

/// The mean over languages of one metric, where an item is a question in all languages ([`across`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanOver<M> {
    /// The metric of one language.
    pub metric: M,
    /// How many statistics it has.
    pub width: usize,
}

impl<M: Metric> Metric for MeanOver<M> {
    fn finish(&self, sum: &[f64]) -> f64 {
        let scores = sum.chunks(self.width).map(|part| self.metric.finish(part));
        ratio(scores.sum(), sum.len() as f64 / self.width as f64)
    }
}

/// The statistics of a yes or no for [`Ratio`].
pub fn hit(yes: bool) -> Vec<f64> {
    vec![f64::from(u8::from(yes)), 1.0]
}

/// The sum over items; empty without items.
pub fn sum(items: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; items.first().map_or(0, Vec::len)];
    items.iter().for_each(|item| add(&mut sum, item));
    sum
}

/// The score of all items, NaN without any.
pub fn score(items: &[Vec<f64>], metric: &(impl Metric + ?Sized)) -> f64 {
    if items.is_empty() {
        f64::NAN
    } else {
        metric.finish(&sum(items))
    }
}

/// One vector of the statistics of the same item in several languages, one after another. An item that a language lacks
/// counts nothing there: its statistics are zeros.
///
/// # Panics
/// When a language's statistics are not `width` numbers.
pub fn across(languages: &[Option<&[f64]>], width: usize) -> Vec<f64> {
    let mut all = vec![0.0; languages.len() * width];
    for (place, statistics) in all.chunks_mut(width).zip(languages) {
        if let Some(statistics) = statistics {
            place.copy_from_slice(statistics);
        }
    }
    all
}

/// `numerator / denominator`, NaN where that is not defined.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 {
        f64::NAN
    } else {
        numerator / denominator
    }
}

pub(crate) fn add(sum: &mut [f64], item: &[f64]) {
    debug_assert_eq!(sum.len(), item.len());
    sum.iter_mut().zip(item).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_hits_over_items() {
        let items = [hit(true), hit(false), hit(true), hit(true)];
        assert_eq!(score(&items, &Ratio), 0.75);
        assert_eq!(score(&items, &|sum: &[f64]| sum[1]), 4.0);
        assert!(score(&[], &Ratio).is_nan());
        assert!(Ratio.finish(&[0.0, 0.0]).is_nan());
    }

    #[test]
    fn a_mean_over_languages_weighs_them_alike() {
        // English 2 of 3, Swahili 1 of 1; their mean is 5/6, the share of all items 3/4.
        let yes = hit(true);
        let no = hit(false);
        let items = [
            across(&[Some(&yes), Some(&yes)], 2),
            across(&[Some(&no), None], 2),
            across(&[Some(&yes), None], 2),
        ];
        let mean = MeanOver {
            metric: Ratio,
            width: 2,
        };
        assert!((score(&items, &mean) - 5.0 / 6.0).abs() < 1e-15);
        assert!(score(&items[1..], &mean).is_nan(), "Swahili has no item");
    }
}
