//! The goldfish loss (Hans et al., "Be like a Goldfish, Don't Memorize!", 2024, section 3): the cross-entropy of the
//! supervised tokens without about one in k of them, so that no passage can be learnt by heart. Which ones is decided by a
//! hash of the h tokens that end with the token itself, so that a passage loses the same tokens wherever it stands. The
//! hash and its table are those of the authors' code: the product of the token ids in wrapping 64-bit arithmetic, modulo
//! the length of a table of uniform numbers.

use std::sync::OnceLock;

use crate::engine::head::Targets;

/// Entries of the table.
const TABLE: usize = 1_000_003;
/// Seed of the table's Mersenne twister.
const SEED: u32 = 2_971_215_073;

/// The targets of sequences that begin at `boundaries`, without those that the loss drops. `k`: one in k is dropped; `h`:
/// tokens that decide. The first h - 1 tokens after a sequence's first are never dropped.
pub fn keep(targets: Targets, input_ids: &[u32], boundaries: &[usize], k: usize, h: usize) -> Targets {
    let table = table();
    let limit = (1.0 / k as f64) as f32;
    let mut kept = Targets::default();
    for (position, token) in targets.positions.into_iter().zip(targets.tokens) {
        let sequence = boundaries.partition_point(|start| *start <= position as usize) - 1;
        // The token that is predicted stands one place after the position that predicts it; windows hold such tokens only.
        let end = position as usize + 2;
        let first = boundaries[sequence] + 1;
        let dropped = end >= first + h && table[hash(&input_ids[end - h..end])] < limit;
        if !dropped {
            kept.positions.push(position);
            kept.tokens.push(token);
        }
    }
    kept
}

fn hash(window: &[u32]) -> usize {
    let product = window
        .iter()
        .fold(1i64, |product, id| product.wrapping_mul(i64::from(*id)));
    product.rem_euclid(TABLE as i64) as usize
}

/// Uniform numbers in [0, 1): the low 24 bits of a 32-bit Mersenne twister (Matsumoto and Nishimura 1998), as PyTorch's
/// generator gives them on a CPU.
fn table() -> &'static [f32] {
    static NUMBERS: OnceLock<Vec<f32>> = OnceLock::new();
    NUMBERS.get_or_init(|| {
        let mut twister = rand_mt::Mt::new(SEED);
        (0..TABLE)
            .map(|_| (twister.next_u32() & 0x00FF_FFFF) as f32 / 16_777_216.0)
            .collect()
    })
}
