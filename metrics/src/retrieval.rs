//! Retrieval of translations among sentences, and how close translations are.

use nalgebra::DMatrix;

use crate::statistics::hit;
use crate::vectors::Vectors;

/// Neighbours of the margin where nobody says otherwise (Artetxe and Schwenk, 2019).
pub const NEIGHBOURS: usize = 4;

/// Similarities between all sentences of two languages, of which those with the same index are translations.
#[derive(Clone, Debug)]
pub struct Retrieval {
    /// `[first, second]` cosines.
    cosines: DMatrix<f32>,
}

/// For each sentence whether the most similar one of the other language is its translation; the first one where several
/// are equally similar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hits {
    /// From the first language to the second.
    pub forward: Vec<bool>,
    /// From the second language to the first.
    pub backward: Vec<bool>,
}

impl Hits {
    /// The statistics of both directions, forward first, for [`crate::statistics::Ratio`].
    pub fn items(&self) -> [Vec<Vec<f64>>; 2] {
        [&self.forward, &self.backward].map(|hits| hits.iter().map(|yes| hit(*yes)).collect())
    }
}

impl Retrieval {
    /// Compares sentences with their translations. A vector of zeros has cosine 0 with all.
    ///
    /// # Panics
    /// When the languages have different numbers of vectors, or of numbers in them.
    pub fn new(first: Vectors<'_>, second: Vectors<'_>) -> Self {
        assert_same(first, second);
        Self {
            cosines: first.directions().transpose() * second.directions(),
        }
    }

    /// By cosine.
    pub fn cosine(&self) -> Hits {
        hits(self.cosines.nrows(), |first, second| {
            f64::from(self.cosines[(first, second)])
        })
    }

    /// By ratio margin (Artetxe and Schwenk, "Margin-based Parallel Corpus Mining with Multilingual Sentence Embeddings",
    /// 2019): `cos(x, y) / (Σ cos(x, z) / 2k + Σ cos(y, z) / 2k)` over the `k` nearest neighbours of x and of y in the
    /// other language, or all where there are fewer.
    pub fn margin(&self, k: usize) -> Hits {
        let of_first = self
            .cosines
            .row_iter()
            .map(|row| nearest(row.iter(), k))
            .collect::<Vec<_>>();
        let of_second = self
            .cosines
            .column_iter()
            .map(|column| nearest(column.iter(), k))
            .collect::<Vec<_>>();
        hits(self.cosines.nrows(), |first, second| {
            f64::from(self.cosines[(first, second)]) / ((of_first[first] + of_second[second]) / 2.0)
        })
    }
}

/// The mean of the `k` largest cosines.
fn nearest<'a>(cosines: impl Iterator<Item = &'a f32>, k: usize) -> f64 {
    let mut cosines = cosines.copied().collect::<Vec<_>>();
    let k = k.clamp(1, cosines.len());
    cosines.select_nth_unstable_by(k - 1, |one, other| other.total_cmp(one));
    cosines[..k].iter().map(|cosine| f64::from(*cosine)).sum::<f64>() / k as f64
}

fn hits(count: usize, similarity: impl Fn(usize, usize) -> f64) -> Hits {
    let is_best = |at: usize, of: &dyn Fn(usize) -> f64| {
        let own = of(at);
        (0..count).all(|other| if other < at { of(other) < own } else { of(other) <= own })
    };
    Hits {
        forward: (0..count)
            .map(|at| is_best(at, &|other| similarity(at, other)))
            .collect(),
        backward: (0..count)
            .map(|at| is_best(at, &|other| similarity(other, at)))
            .collect(),
    }
}

/// The cosine of each pair of translations. Their mean is the score of Language Ranker (Li et al., "Language Ranker: A
/// Metric for Quantifying LLM Performance Across High and Low-Resource Languages", 2024), there between English and
/// another language at the last token of a layer.
///
/// # Panics
/// As [`Retrieval::new`].
pub fn pair_cosines(first: Vectors<'_>, second: Vectors<'_>) -> Vec<f64> {
    assert_same(first, second);
    let (first, second) = (first.columns(), second.columns());
    let product = |one: &[f32], other: &[f32]| {
        one.iter()
            .zip(other)
            .map(|(one, other)| f64::from(*one) * f64::from(*other))
            .sum::<f64>()
    };
    first
        .column_iter()
        .zip(second.column_iter())
        .map(|(one, other)| {
            let (one, other) = (one.as_slice(), other.as_slice());
            let lengths = (product(one, one) * product(other, other)).sqrt();
            if lengths > 0.0 {
                product(one, other) / lengths
            } else {
                0.0
            }
        })
        .collect()
}

fn assert_same(first: Vectors<'_>, second: Vectors<'_>) {
    assert_eq!(
        (first.count(), first.width()),
        (second.count(), second.width()),
        "translations come in pairs, and from one model"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_is_near_to_all_is_no_ones_neighbour_by_margin() {
        // A hub: the third vector of the second language is the nearest of the first two by cosine.
        let first = [1.0, 0.0, 0.5, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0];
        let second = [1.0, 0.0, -0.4, 0.0, 1.0, -0.4, 0.6, 0.6, 1.0];
        let retrieval = Retrieval::new(Vectors::new(&first, 3), Vectors::new(&second, 3));
        assert_eq!(retrieval.cosine().forward, [false, false, true]);
        assert_eq!(retrieval.margin(2).forward, [true, true, true]);
    }

    #[test]
    fn equal_vectors_are_found_once() {
        let same = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0];
        let retrieval = Retrieval::new(Vectors::new(&same, 2), Vectors::new(&same, 2));
        assert_eq!(
            retrieval.cosine(),
            Hits {
                forward: vec![true, false, false],
                backward: vec![true, false, false]
            }
        );
        assert_eq!(
            pair_cosines(Vectors::new(&[0.0, 0.0], 2), Vectors::new(&[1.0, 0.0], 2)),
            [0.0]
        );
    }
}
