//! Permutations that are a pure function of a key.

/// A permutation of `0..count` keyed by seed, epoch and purpose.
///
/// A Fisher-Yates shuffle that draws from the extended output of BLAKE3 over the key, so that it is the same on every machine and in
/// every version. A draw below `n ≤ 2^32` is the high half of a 64-bit number times `n`, uneven by less than 2⁻³².
pub(crate) fn permutation(count: u32, seed: u64, epoch: u64, purpose: &str) -> Vec<u32> {
    let mut hasher = blake3::Hasher::new_derive_key("interlingua 2026 order of samples");
    hasher
        .update(&seed.to_le_bytes())
        .update(&epoch.to_le_bytes())
        .update(purpose.as_bytes());
    let mut stream = hasher.finalize_xof();
    let mut buffer = [0_u8; 4096];
    let mut used = buffer.len();
    let mut values: Vec<u32> = (0..count).collect();
    for last in (1..values.len()).rev() {
        if used == buffer.len() {
            stream.fill(&mut buffer);
            used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&buffer[used..used + 8]);
        used += 8;
        let draw = (u128::from(u64::from_le_bytes(word)) * (last as u128 + 1)) >> 64;
        values.swap(last, draw as usize);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_permutation_and_depends_on_its_whole_key() {
        let base = permutation(2000, 1, 0, "samples");
        let mut sorted = base.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..2000).collect::<Vec<_>>());
        assert_eq!(base, permutation(2000, 1, 0, "samples"));
        for other in [
            permutation(2000, 2, 0, "samples"),
            permutation(2000, 1, 1, "samples"),
            permutation(2000, 1, 0, "rows"),
        ] {
            assert_ne!(base, other);
        }
        assert!(permutation(0, 1, 0, "samples").is_empty());
    }

    #[test]
    fn never_changes() {
        assert_eq!(permutation(8, 42, 0, "samples"), [7, 6, 2, 1, 5, 0, 4, 3]);
    }

    #[test]
    fn every_value_reaches_every_place_about_equally_often() {
        let mut counts = [[0_u32; 5]; 5];
        for seed in 0..5000 {
            for (place, &value) in permutation(5, seed, 0, "samples").iter().enumerate() {
                counts[place][value as usize] += 1;
            }
        }
        assert!(
            counts.iter().flatten().all(|&count| (850..1150).contains(&count)),
            "{counts:?}"
        );
    }
}
