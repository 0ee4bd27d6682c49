//! DARE-TIES: entries of the task vectors are dropped at random, the rest is made larger, then signs are elected.

use super::ties::{merge_agreeing, task_vectors};

/// DARE (Yu et al. 2023) with the sign election of TIES: each entry of a task vector `τ_i = W_i − base` is dropped with
/// probability 1 − density, the others are divided by the density, so that the expectation stays; the sign of `Σ w_i τ_i` is
/// elected, and `W = base + λ · Σ_agree w_i τ_i`. The sum is not divided by the weights that agree: a task vector whose entry
/// was dropped counts as one of value zero, which is what keeps the expectation.
///
/// `tensors` and `base` (none: zeros) are flat and of one length; `weights` sum to 1; `density` is above 0 and at most 1;
/// `scale` is λ. What is dropped depends on `seed`, the tensor's `name`, the place of the model in the list and that of the
/// entry in the tensor, and on nothing else.
pub fn dare_ties(
    base: Option<&[f32]>,
    tensors: &[&[f32]],
    weights: &[f64],
    density: f64,
    scale: f64,
    (seed, name): (u64, &str),
) -> Vec<f32> {
    let mut vectors = task_vectors(base, tensors);
    for (model, vector) in vectors.iter_mut().enumerate() {
        drop_entries(vector, density, key(seed, name, model));
    }
    merge_agreeing(base, &vectors, weights, |entry| scale * entry.sum)
}

fn drop_entries(vector: &mut [f32], density: f64, key: u64) {
    for (index, value) in vector.iter_mut().enumerate() {
        *value = if uniform(key, index as u64) < density {
            (f64::from(*value) / density) as f32
        } else {
            0.0
        };
    }
}

/// A key for the entries of one tensor of one model.
fn key(seed: u64, name: &str, model: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(model as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// A number from 0 to below 1: SplitMix64 (Steele et al. 2014) as a counter.
fn uniform(key: u64, counter: u64) -> f64 {
    let mut state = key.wrapping_add((counter + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^= state >> 31;
    (state >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 40_000;

    fn merged(value: f32, density: f64, scale: f64, seed: u64, name: &str) -> Vec<f32> {
        let (first, second) = (vec![value; LENGTH], vec![3.0 * value; LENGTH]);
        let tensors: [&[f32]; 2] = [&first, &second];
        dare_ties(None, &tensors, &[0.5, 0.5], density, scale, (seed, name))
    }

    #[test]
    fn the_mean_stays_and_the_density_is_the_share_of_entries_kept() {
        let density = 0.3;
        let merged = merged(1.0, density, 1.0, 1, "a");
        // The weighted mean of 1 and 3. The deviation of an entry is below 3.3, that of their mean below 0.02.
        let mean: f64 = merged.iter().map(|value| f64::from(*value)).sum::<f64>() / LENGTH as f64;
        assert!((mean - 2.0).abs() < 0.07, "{mean}");
        let share = |expected: f32| {
            let is = |value: &&f32| (**value - expected).abs() < 1e-5;
            merged.iter().filter(is).count() as f64 / LENGTH as f64
        };
        let (dropped, kept) = (1.0 - density, density);
        // Neither, the first alone (0.5 · 1 / 0.3), the second alone, both: independent of one another.
        for (value, expected) in [
            (0.0, dropped * dropped),
            (0.5 / 0.3, kept * dropped),
            (1.5 / 0.3, dropped * kept),
            (2.0 / 0.3, kept * kept),
        ] {
            assert!(
                (share(value) - expected).abs() < 0.012,
                "{value}: {} {expected}",
                share(value)
            );
        }
    }

    #[test]
    fn scale_seed_and_name_do_what_they_say() {
        let plain = merged(1.0, 0.5, 1.0, 1, "a");
        assert_eq!(plain, merged(1.0, 0.5, 1.0, 1, "a"));
        let half: Vec<f32> = plain.iter().map(|value| value / 2.0).collect();
        assert_eq!(merged(1.0, 0.5, 0.5, 1, "a"), half);
        assert_ne!(merged(1.0, 0.5, 1.0, 2, "a"), plain);
        assert_ne!(merged(1.0, 0.5, 1.0, 1, "b"), plain);
    }

    #[test]
    fn with_everything_kept_the_sum_of_the_elected_sign_is_left() {
        let base: &[f32] = &[1.0, 1.0];
        let tensors: [&[f32]; 2] = [&[3.0, -3.0], &[2.0, 3.0]];
        let merged = dare_ties(Some(base), &tensors, &[0.5, 0.5], 1.0, 1.0, (0, "a"));
        assert_eq!(merged, [2.5, -1.0]);
    }
}
