//! Counter-based randomness: every random number is a pure function of a key, never of hidden state, so that
//! recomputation, batch shape, number of processes and resuming cannot change it.

/// Mixes a 64-bit word so that every input bit reaches every output bit (the finaliser of SplitMix64,
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[inline]
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// One key out of several parts; the order of the parts matters.
pub fn key(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0x1F83_D9AB_FB41_BD6B, |state, part| mix(state ^ mix(*part)))
}

/// A key out of a text, such as a parameter's name.
pub fn text_key(text: &str) -> u64 {
    text.bytes()
        .fold(0x6A09_E667_F3BC_C908, |state, byte| mix(state ^ u64::from(byte)))
}

/// Uniform in [0, 1) from the top 24 bits of the word that belongs to `(key, index)`.
pub fn uniform(key: u64, index: u64) -> f32 {
    (mix(key ^ mix(index)) >> 40) as f32 / (1u64 << 24) as f32
}

/// Standard normal numbers by the Box-Muller transform, in f64 and rounded once.
pub fn normal(key: u64, index: u64) -> f32 {
    let word = mix(key ^ mix(index));
    // Neither logarithm nor division can fail: the first uniform lies in (0, 1].
    let first = ((word >> 32) as f64 + 1.0) / 4_294_967_296.0;
    let second = (word & 0xFFFF_FFFF) as f64 / 4_294_967_296.0;
    ((-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_have_the_moments_of_the_uniform_distribution() {
        let key = key(&[42, 7]);
        let count = 100_000u64;
        let mean = (0..count).map(|index| f64::from(uniform(key, index))).sum::<f64>() / count as f64;
        let square = (0..count)
            .map(|index| f64::from(uniform(key, index)).powi(2))
            .sum::<f64>()
            / count as f64;
        assert!((mean - 0.5).abs() < 5e-3, "mean {mean}");
        assert!((square - 1.0 / 3.0).abs() < 5e-3, "mean square {square}");
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let key = key(&[1]);
        let count = 100_000u64;
        let mean = (0..count).map(|index| f64::from(normal(key, index))).sum::<f64>() / count as f64;
        let square = (0..count)
            .map(|index| f64::from(normal(key, index)).powi(2))
            .sum::<f64>()
            / count as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((square - 1.0).abs() < 0.02, "variance {square}");
    }

    #[test]
    fn keys_depend_on_every_part_and_on_their_order() {
        assert_ne!(key(&[1, 2]), key(&[2, 1]));
        assert_ne!(key(&[1, 2]), key(&[1, 3]));
        assert_ne!(text_key("model.layers.0"), text_key("model.layers.1"));
    }
}
