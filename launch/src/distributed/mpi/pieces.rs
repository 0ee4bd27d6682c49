//! Vectors that are too long for one call, cut so that every rank's part is cut alike.

use bytemuck::Pod;

/// Calls `gather` with pieces of `own` until all of it is gathered, `[ranks × n]` from `[n]` on each. No call has more than `piece`
/// elements over all ranks, where that can be.
pub(super) fn gathered<T: Pod>(
    own: &[T],
    ranks: usize,
    piece: usize,
    mut gather: impl FnMut(&[T], &mut [T]),
) -> Vec<T> {
    let mut all = vec![T::zeroed(); own.len() * ranks];
    let step = (piece / ranks).max(1);
    if own.len() <= step {
        gather(own, &mut all);
        return all;
    }
    let mut part = Vec::new();
    for start in (0..own.len()).step_by(step) {
        let end = (start + step).min(own.len());
        part.clear();
        part.resize((end - start) * ranks, T::zeroed());
        gather(&own[start..end], &mut part);
        for (rank, of_rank) in part.chunks(end - start).enumerate() {
            all[rank * own.len() + start..rank * own.len() + end].copy_from_slice(of_rank);
        }
    }
    all
}

/// Calls `scatter` with pieces of `own`, one of each rank's part behind one another, until all of this rank's part is there: `[n]`
/// from `[ranks × n]` on each. No call has more than `piece` elements, where that can be.
pub(super) fn scattered<T: Pod>(
    own: &[T],
    ranks: usize,
    piece: usize,
    mut scatter: impl FnMut(&[T], &mut [T]),
) -> Vec<T> {
    let length = own.len() / ranks;
    let mut part = vec![T::zeroed(); length];
    let step = (piece / ranks).max(1);
    if length <= step {
        scatter(own, &mut part);
        return part;
    }
    let mut behind = Vec::new();
    for start in (0..length).step_by(step) {
        let end = (start + step).min(length);
        behind.clear();
        for rank in 0..ranks {
            behind.extend_from_slice(&own[rank * length + start..rank * length + end]);
        }
        scatter(&behind, &mut part[start..end]);
    }
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As if all ranks had the same vector, but for the rank's number in the first digit.
        #[test]
        fn pieces_gather_to_the_whole(length in 0..40_u32, ranks in 1..5_usize, piece in 1..50_usize) {
            let own: Vec<u32> = (0..length).collect();
            let mut longest = 0;
            let all = gathered(&own, ranks, piece, |piece, all| {
                longest = longest.max(all.len());
                for (rank, all) in all.chunks_mut(piece.len().max(1)).enumerate() {
                    for (all, own) in all.iter_mut().zip(piece) {
                        *all = own + 1000 * rank as u32;
                    }
                }
            });
            let expected: Vec<u32> = (0..ranks as u32).flat_map(|rank| (0..length).map(move |own| own + 1000 * rank)).collect();
            prop_assert_eq!(all, expected);
            prop_assert!(longest <= piece.max(ranks));
        }

        /// As if the second of the ranks (or the only one) took its part, and all had the same vector.
        #[test]
        fn pieces_scatter_to_the_part(length in 0..40_usize, ranks in 1..5_usize, piece in 1..50_usize) {
            let own: Vec<u32> = (0..(length * ranks) as u32).collect();
            let rank = (ranks - 1).min(1);
            let mut longest = 0;
            let part = scattered(&own, ranks, piece, |behind, part| {
                longest = longest.max(behind.len());
                let of_rank = &behind[rank * part.len()..][..part.len()];
                for (part, own) in part.iter_mut().zip(of_rank) {
                    *part = own * ranks as u32;
                }
            });
            let expected: Vec<u32> = own[rank * length..][..length].iter().map(|own| own * ranks as u32).collect();
            prop_assert_eq!(part, expected);
            prop_assert!(longest <= piece.max(ranks));
        }
    }
}
