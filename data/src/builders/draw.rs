//! Random draws that are a pure function of their key.

use crate::permutation::permutation;

/// The draws of one builder.
pub(super) struct Draw {
    seed: u64,
    source: String,
    builder: usize,
}

impl Draw {
    pub(super) fn new(seed: u64, source: &str, builder: usize) -> Self {
        Draw {
            seed,
            source: source.to_owned(),
            builder,
        }
    }

    /// 64 random bits for a row and a purpose.
    fn bits(&self, row: usize, purpose: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("interlingua 2026 rows that are built");
        hasher
            .update(&self.seed.to_le_bytes())
            .update(&(self.builder as u64).to_le_bytes())
            .update(&(row as u64).to_le_bytes())
            .update(&(self.source.len() as u64).to_le_bytes())
            .update(self.source.as_bytes())
            .update(purpose.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    /// A number below `count`, uniformly.
    pub(super) fn below(&self, count: usize, row: usize, purpose: &str) -> usize {
        ((u128::from(self.bits(row, purpose)) * count as u128) >> 64) as usize
    }

    /// Whether something of this probability happens.
    pub(super) fn happens(&self, probability: f64, row: usize, purpose: &str) -> bool {
        // The upper 53 bits are a number from 0 to 1 that a double holds exactly.
        let number = (self.bits(row, purpose) >> 11) as f64 / (1_u64 << 53) as f64;
        number < probability
    }

    /// The numbers below `count` in random order.
    pub(super) fn order(&self, count: usize, row: usize) -> Vec<usize> {
        let purpose = format!("versions of a document\0{}\0{}", self.builder, self.source);
        let order = permutation(count as u32, self.seed, row as u64, &purpose);
        order.into_iter().map(|index| index as usize).collect()
    }

    /// `count` of the numbers below `possible`, in ascending order.
    pub(super) fn choose(&self, count: usize, possible: usize, mode: u8) -> Vec<usize> {
        let purpose = format!("rows that are built\0{mode}\0{}", self.source);
        let order = permutation(possible as u32, self.seed, self.builder as u64, &purpose);
        let mut chosen: Vec<usize> = order.into_iter().take(count).map(|index| index as usize).collect();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_their_whole_key_and_never_change() {
        let draw = |seed, source, builder| Draw::new(seed, source, builder).bits(3, "x");
        let base = draw(1, "s", 0);
        assert_eq!(base, draw(1, "s", 0));
        for other in [draw(2, "s", 0), draw(1, "t", 0), draw(1, "s", 1)] {
            assert_ne!(base, other);
        }
        let one = Draw::new(42, "s", 0);
        assert_ne!(one.bits(3, "x"), one.bits(4, "x"));
        assert_ne!(one.bits(3, "x"), one.bits(3, "y"));
    }

    #[test]
    fn draws_are_even() {
        let draw = Draw::new(7, "s", 0);
        let mut counts = [0; 3];
        for row in 0..3000 {
            counts[draw.below(3, row, "x")] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        let happened = (0..3000).filter(|&row| draw.happens(0.25, row, "x")).count();
        assert!((680..820).contains(&happened), "{happened}");
        assert!((0..100).all(|row| draw.happens(1.0, row, "x") && !draw.happens(0.0, row, "x")));
    }
}
