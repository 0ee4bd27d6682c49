//! Dropout with a mask that is recomputed, never stored: bit for bit the same whatever the batch shape, the number of
//! processes, or whether the pass is the first one or a recomputation.

use std::sync::Arc;

use rayon::prelude::*;

use crate::random::{key, mix};

/// Which elements of `[tokens, features]` a dropout keeps.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// One key per token: seed, step, global index of the sample, position.
    pub token_keys: Arc<[u64]>,
    /// Key of the module: layer, module, purpose.
    pub module_key: u64,
    /// Probability of an element to be dropped, in [0, 1).
    pub probability: f32,
}

impl Dropout {
    /// The key of one token: `position` within its sequence, `sample` its index in the whole data set.
    pub fn token_key(seed: u64, step: u64, sample: u64, position: u32) -> u64 {
        key(&[seed, step, sample, u64::from(position)])
    }

    /// `output = input * mask / (1 - probability)`, both `[tokens, features]`. The same call serves forward and
    /// backward pass: the gradient of the input is the gradient of the output under the same mask.
    pub fn apply(&self, input: &[f32], output: &mut [f32], features: usize) {
        let keep = 1.0 / (1.0 - self.probability);
        // Four elements share one mixed word, 16 bits each: the probability is exact to 1/65536.
        let threshold = (f64::from(self.probability) * 65536.0).round() as u64;
        let rows = output
            .par_chunks_mut(features)
            .zip(input.par_chunks(features))
            .zip(self.token_keys.par_iter());
        rows.for_each(|((output, input), token_key)| {
            let row_key = mix(token_key ^ self.module_key);
            for (group, (output, input)) in output.chunks_mut(4).zip(input.chunks(4)).enumerate() {
                let mut word = mix(row_key.wrapping_add(group as u64));
                for (output, input) in output.iter_mut().zip(input) {
                    *output = if word & 0xFFFF >= threshold { input * keep } else { 0.0 };
                    word >>= 16;
                }
            }
        });
    }

    /// The factors `mask / (1 - probability)` themselves, `[tokens, features]`, for devices without the kernel.
    pub fn factors(&self, features: usize) -> Vec<f32> {
        let ones = vec![1.0; self.token_keys.len() * features];
        let mut factors = vec![0.0; ones.len()];
        self.apply(&ones, &mut factors, features);
        factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropout(tokens: usize, probability: f32) -> Dropout {
        let token_keys = (0..tokens)
            .map(|token| Dropout::token_key(42, 3, 17, token as u32))
            .collect();
        Dropout {
            token_keys,
            module_key: 5,
            probability,
        }
    }

    #[test]
    fn drops_the_share_it_is_asked_to_and_keeps_the_mean() {
        let factors = dropout(500, 0.25).factors(203);
        let dropped = factors.iter().filter(|factor| **factor == 0.0).count() as f64 / factors.len() as f64;
        let mean = factors.iter().map(|factor| f64::from(*factor)).sum::<f64>() / factors.len() as f64;
        assert!((dropped - 0.25).abs() < 5e-3, "{dropped}");
        assert!((mean - 1.0).abs() < 1e-2, "{mean}");
    }

    #[test]
    fn a_token_keeps_its_mask_wherever_it_stands() {
        let all = dropout(10, 0.5);
        let tail = Dropout {
            token_keys: all.token_keys[6..].into(),
            ..all.clone()
        };
        assert_eq!(all.factors(33)[6 * 33..], tail.factors(33));
    }
}
