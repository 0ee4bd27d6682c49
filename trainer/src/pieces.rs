//! How a flat vector is cut into pieces, one for each rank, as ZeRO does (Rajbhandari et al., "ZeRO: Memory Optimizations Toward
//! Training Trillion Parameter Models", 2020).

use std::ops::Range;

use burn::tensor::Tensor;

/// Pieces begin at multiples of this, so that blocks of 8-bit moments are never cut.
pub const ALIGNMENT: usize = 256;

/// Numbers of a piece of a vector of `length` numbers; those of the last ranks can be shorter, or empty.
pub fn piece_length(length: usize, world_size: usize) -> usize {
    if world_size == 1 {
        return length;
    }
    length.div_ceil(world_size).next_multiple_of(ALIGNMENT)
}

/// The piece of a rank.
pub fn piece(length: usize, rank: usize, world_size: usize) -> Range<usize> {
    let piece = piece_length(length, world_size);
    (rank * piece).min(length)..((rank + 1) * piece).min(length)
}

/// A rank's piece of a vector, with zeros behind it up to the length of a piece.
pub fn padded_piece(vector: &Tensor<1>, rank: usize, world_size: usize) -> Tensor<1> {
    let length = vector.dims()[0];
    let range = piece(length, rank, world_size);
    let full = piece_length(length, world_size);
    let device = vector.device();
    if range.is_empty() {
        return Tensor::zeros([full], (&device, vector.dtype()));
    }
    padded(vector.clone().narrow(0, range.start, range.len()), full)
}

/// A vector with memory of its own. A part of a vector keeps all of that in memory on some devices.
pub fn copied(part: Tensor<1>) -> Tensor<1> {
    let length = part.dims()[0];
    let zeros = Tensor::zeros([length], (&part.device(), part.dtype()));
    zeros.slice_assign(0..length, part)
}

/// Parts put behind one another, in memory of their own.
pub fn joined(mut parts: Vec<Tensor<1>>) -> Tensor<1> {
    if parts.len() == 1 {
        return copied(parts.remove(0));
    }
    Tensor::cat(parts, 0)
}

/// A vector with zeros behind it up to a length.
pub fn padded(vector: Tensor<1>, length: usize) -> Tensor<1> {
    let missing = length - vector.dims()[0];
    if missing == 0 {
        return vector;
    }
    let zeros = Tensor::zeros([missing], (&vector.device(), vector.dtype()));
    Tensor::cat(vec![vector, zeros], 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_the_vector_once_and_begin_at_blocks(length in 1usize..100_000, world_size in 1usize..40) {
            let mut end = 0;
            for rank in 0..world_size {
                let range = piece(length, rank, world_size);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.is_empty() || range.start.is_multiple_of(ALIGNMENT));
                prop_assert!(range.len() <= piece_length(length, world_size));
                end = range.end;
            }
            prop_assert_eq!(end, length);
        }
    }
}
