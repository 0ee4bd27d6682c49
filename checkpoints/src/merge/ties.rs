//! TIES: trim, elect signs, merge what agrees.

/// TIES merging (Yadav et al. 2023, algorithm 1): of each task vector `τ_i = W_i − base` the `density` share of largest
/// magnitude is kept, the sign of `Σ w_i τ_i` is elected for each entry, and the entries of that sign are averaged:
/// `W = base + λ · Σ_agree w_i τ_i / Σ_agree w_i`. The share is taken per tensor; a sum of zero elects the positive sign.
///
/// `tensors` and `base` (none: zeros) are flat and of one length; `density` is above 0 and at most 1; `scale` is λ.
pub fn ties(base: Option<&[f32]>, tensors: &[&[f32]], weights: &[f64], density: f64, scale: f64) -> Vec<f32> {
    let mut vectors = task_vectors(base, tensors);
    vectors.iter_mut().for_each(|vector| trim(vector, density));
    let mean = |entry: &Elected| {
        if entry.weight > 0.0 {
            entry.sum / entry.weight
        } else {
            0.0
        }
    };
    merge_agreeing(base, &vectors, weights, |entry| scale * mean(entry))
}

/// The tensors less the base.
pub(super) fn task_vectors(base: Option<&[f32]>, tensors: &[&[f32]]) -> Vec<Vec<f32>> {
    let difference = |tensor: &&[f32]| match base {
        Some(base) => {
            let pairs = tensor.iter().zip(base);
            pairs.map(|(value, base)| value - base).collect()
        }
        None => tensor.to_vec(),
    };
    tensors.iter().map(difference).collect()
}

/// Sets all but the ⌊density · n⌋ entries of largest magnitude (at least one) to zero; of equal ones the first are kept.
fn trim(vector: &mut [f32], density: f64) {
    let kept = ((density * vector.len() as f64) as usize).max(1);
    if kept >= vector.len() {
        return;
    }
    let mut magnitudes: Vec<f32> = vector.iter().map(|value| value.abs()).collect();
    let (_, threshold, _) = magnitudes.select_nth_unstable_by(kept - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    let above = vector.iter().filter(|value| value.abs() > threshold).count();
    let mut at_threshold = kept - above;
    for value in vector {
        let magnitude = value.abs();
        if magnitude == threshold && at_threshold > 0 {
            at_threshold -= 1;
        } else if magnitude <= threshold {
            *value = 0.0;
        }
    }
}

/// What the task vectors of the elected sign have at one entry.
pub(super) struct Elected {
    /// `Σ_agree w_i τ_i`.
    pub(super) sum: f64,
    /// `Σ_agree w_i`.
    pub(super) weight: f64,
}

/// The base plus what `change` makes of the entries that have the elected sign.
pub(super) fn merge_agreeing(
    base: Option<&[f32]>,
    vectors: &[Vec<f32>],
    weights: &[f64],
    change: impl Fn(&Elected) -> f64,
) -> Vec<f32> {
    let length = vectors.first().map_or(0, Vec::len);
    let entry = |position: usize| {
        let terms = || {
            let terms = vectors.iter().zip(weights);
            terms.map(|(vector, weight)| (f64::from(vector[position]), *weight))
        };
        let total: f64 = terms().map(|(value, weight)| weight * value).sum();
        let sign = if total >= 0.0 { 1.0 } else { -1.0 };
        let mut elected = Elected { sum: 0.0, weight: 0.0 };
        for (value, weight) in terms().filter(|(value, _)| sign * value > 0.0) {
            elected.sum += weight * value;
            elected.weight += weight;
        }
        let base = base.map_or(0.0, |base| f64::from(base[position]));
        (base + change(&elected)) as f32
    };
    (0..length).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_are_elected_and_those_that_agree_are_averaged() {
        let tensors: [&[f32]; 2] = [&[4.0, -1.0, 0.5, 2.0], &[2.0, 3.0, -0.5, -2.0]];
        // The means: of both; of the second alone; of the first alone, the sum being zero, and again.
        assert_eq!(ties(None, &tensors, &[0.5, 0.5], 1.0, 1.0), [3.0, 3.0, 0.5, 2.0]);
        // With more weight on the first, its sign is elected at the second entry; the mean of both is weighted.
        assert_eq!(ties(None, &tensors, &[0.8, 0.2], 1.0, 1.0), [3.6, -1.0, 0.5, 2.0]);
        // Half of the entries are kept: 4 and 2; 2 and 3, the first of two that are equal.
        assert_eq!(ties(None, &tensors, &[0.5, 0.5], 0.5, 2.0), [6.0, 6.0, 0.0, 4.0]);
    }

    #[test]
    fn what_is_merged_are_the_differences_to_the_base() {
        let base: &[f32] = &[1.0, 1.0, 1.0];
        let tensors: [&[f32]; 2] = [&[2.0, 0.0, 1.5], &[4.0, 1.0, 1.0]];
        assert_eq!(ties(Some(base), &tensors, &[0.5, 0.5], 1.0, 1.0), [3.0, 0.0, 1.5]);
        assert_eq!(ties(Some(base), &tensors, &[0.5, 0.5], 0.34, 0.5), [2.0, 1.0, 1.0]);
    }

    fn trimmed(vector: &[f32], density: f64) -> Vec<f32> {
        let mut vector = vector.to_vec();
        trim(&mut vector, density);
        vector
    }

    #[test]
    fn of_equal_magnitudes_the_first_are_kept() {
        assert_eq!(trimmed(&[1.0, -1.0, 1.0, 2.0], 0.5), [1.0, 0.0, 0.0, 2.0]);
        assert_eq!(trimmed(&[0.0; 5], 0.5), [0.0; 5]);
        assert_eq!(trimmed(&[3.0, 5.0], 0.1), [0.0, 5.0]);
    }

    fn tensors(values: std::ops::Range<f32>) -> impl Strategy<Value = Vec<Vec<f32>>> {
        (1..20_usize, 2..4_usize).prop_flat_map(move |(length, count)| {
            prop::collection::vec(prop::collection::vec(values.clone(), length), count)
        })
    }

    proptest! {
        #[test]
        fn with_everything_kept_and_one_sign_it_is_the_mean(tensors in tensors(0.1..9.0)) {
            let slices: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
            let weights = vec![1.0 / slices.len() as f64; slices.len()];
            let mean = super::super::linear::linear(&slices, &weights);
            let merged = ties(None, &slices, &weights, 1.0, 1.0);
            for (merged, mean) in merged.iter().zip(&mean) {
                prop_assert!((merged - mean).abs() <= 1e-6 * mean.abs(), "{merged} {mean}");
            }
        }

        #[test]
        fn as_many_as_the_density_says_are_kept_and_none_is_smaller_than_one_that_is_not(
            tensors in tensors(-9.0..9.0), density in 0.01..1.0_f64,
        ) {
            let vector = &tensors[0];
            let kept = trimmed(vector, density);
            let expected = ((density * vector.len() as f64) as usize).max(1);
            let count = kept.iter().filter(|value| **value != 0.0).count();
            // An entry that is zero itself counts as kept.
            prop_assert!(count <= expected && count + vector.iter().filter(|value| **value == 0.0).count() >= expected);
            let pairs = || vector.iter().zip(&kept);
            let largest_gone = pairs().filter(|(_, kept)| **kept == 0.0).map(|(value, _)| value.abs()).fold(0.0, f32::max);
            prop_assert!(kept.iter().filter(|value| **value != 0.0).all(|value| value.abs() >= largest_gone));
        }
    }
}
