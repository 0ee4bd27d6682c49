//! What one of several processes holds of what is trained, and the buckets that they add up or bring together.
//!
//! A parameter's flat vector is cut into as many pieces as there are processes: all as long, a multiple of [`UNIT`], so that the
//! last ones can be shorter or empty. Plans are of the process that has the longest pieces, the first one.

use interlingua_recipes::Strategy;

use super::settings::Settings;
use super::shapes::Shapes;
use crate::ops::adamw8bit::BLOCK;

/// Pieces are multiples of so many numbers, which keeps the blocks of 8-bit moments whole.
pub const UNIT: u64 = BLOCK as u64;

/// The longest piece of a vector of so many numbers, among so many processes.
pub fn piece(elements: u64, world: u64) -> u64 {
    elements.div_ceil(world).next_multiple_of(UNIT).min(elements)
}

/// Numbers of what is trained, in f32 each, as one process holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Values that are kept, and gradients from micro-batch to micro-batch.
    pub kept: u64,
    /// What this process updates.
    pub updated: u64,
    /// The bucket of gradients that are added up at the end of a step; 0 in a run of one process.
    pub bucket: u64,
    /// What this process gets of the sum.
    pub reduced: u64,
}

impl Share {
    /// That of a run under these settings.
    pub fn of(shapes: &Shapes, settings: &Settings) -> Self {
        let world = settings.world as u64;
        let all = shapes.trained_elements();
        let pieces = |elements: u64| piece(elements, world);
        let in_blocks: u64 = shapes.trained_in_blocks().sum();
        let block_pieces: u64 = shapes.trained_in_blocks().map(pieces).sum();
        let other_pieces: u64 = shapes.trained_elsewhere().map(pieces).sum();
        match settings.strategy {
            _ if world == 1 => Self {
                kept: all,
                updated: all,
                bucket: 0,
                reduced: 0,
            },
            Strategy::Ddp => Self {
                kept: all,
                updated: all,
                bucket: all,
                reduced: all,
            },
            Strategy::Zero1 => Self {
                kept: all,
                updated: block_pieces + other_pieces,
                bucket: world * (block_pieces + other_pieces),
                reduced: block_pieces + other_pieces,
            },
            // Gradients of the weights of blocks were added up right behind their block.
            Strategy::Zero3 => Self {
                kept: block_pieces + (all - in_blocks),
                updated: block_pieces + other_pieces,
                bucket: world * other_pieces,
                reduced: other_pieces,
            },
        }
    }
}

/// What is trained of the base's own weights in a block, where each process keeps a piece of them: numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockShare {
    /// All.
    pub whole: u64,
    /// The pieces of one process.
    pub pieces: u64,
    /// The pieces of all processes behind one another.
    pub bucket: u64,
}

impl BlockShare {
    /// Those of all blocks; nothing where blocks are whole on each process.
    pub fn of(shapes: &Shapes, settings: &Settings) -> Vec<Self> {
        let mut shares = vec![Self::default(); shapes.blocks.len()];
        if !settings.shards_blocks() {
            return shares;
        }
        let world = settings.world as u64;
        for parameter in shapes.base.iter().filter(|parameter| parameter.trained) {
            if let Some(share) = parameter.block.and_then(|block| shares.get_mut(block)) {
                let piece = piece(parameter.elements(), world);
                share.whole += parameter.elements();
                share.pieces += piece;
                share.bucket += world * piece;
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_keep_blocks_of_moments_whole() {
        assert_eq!(piece(4096, 4), 1024);
        assert_eq!(piece(4097, 4), 1280);
        assert_eq!(piece(100, 4), 100);
        assert_eq!(piece(300, 4), 256);
        assert_eq!(piece(1000, 1), 1000);
    }

    proptest! {
        /// Pieces of all processes hold the vector, and none is longer than a unit more than its part.
        #[test]
        fn pieces_cover(elements in 0u64..1 << 40, world in 1u64..2048) {
            let piece = piece(elements, world);
            prop_assert!(world * piece >= elements);
            prop_assert!(piece < elements / world + 1 + UNIT);
        }
    }
}
