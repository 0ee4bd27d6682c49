//! What one of several processes holds of what is trained, and the buckets that they add up or bring together, as
//! `train/update.rs` and `spread.rs` do it. Plans are of the first process, whose pieces are the longest.

use interlingua_recipes::Strategy;

use super::settings::Settings;
use super::shapes::{BaseParameter, Place, Shapes};
use crate::pieces::piece_length;
use crate::train::update::BUCKET;

/// The longest piece of a vector of so many numbers, among so many processes.
pub fn piece(elements: u64, world: usize) -> u64 {
    padded_piece(elements, world).min(elements)
}

/// The same with the zeros behind a vector that is shorter than a piece.
pub fn padded_piece(elements: u64, world: usize) -> u64 {
    piece_length(elements as usize, world) as u64
}

/// Whether processes keep pieces of a parameter's values: those of the linear layers of blocks, under ZeRO-3.
pub fn is_spread(parameter: &BaseParameter, settings: &Settings) -> bool {
    settings.spreads_blocks() && parameter.place == Place::BlockLinear
}

/// Numbers of what is trained, in f32 each, as one process holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Values that are kept, and gradients from micro-batch to micro-batch.
    pub kept: u64,
    /// What this process updates.
    pub updated: u64,
    /// Gradients that are added up at the end of a step, in buckets; 0 in a run of one process.
    pub added_up: u64,
    /// The largest of these buckets.
    pub bucket: u64,
    /// How many of them there are, about.
    pub buckets: u64,
}

impl Share {
    /// That of a run under these settings.
    pub fn of(shapes: &Shapes, settings: &Settings) -> Self {
        let world = settings.world;
        let all = shapes.trained_elements();
        let pieces = |sizes: &mut dyn Iterator<Item = u64>| sizes.map(|elements| piece(elements, world)).sum::<u64>();
        let padded = |elements: u64| world as u64 * padded_piece(elements, world);
        let linears: u64 = shapes.trained_linears().sum();
        let sizes: Vec<u64> = match settings.strategy {
            _ if world == 1 => Vec::new(),
            Strategy::Ddp => shapes.trained().collect(),
            Strategy::Zero1 => shapes.trained().map(padded).collect(),
            // Gradients of linear layers were added up right behind their block.
            Strategy::Zero3 => shapes.trained_elsewhere().map(padded).collect(),
        };
        let kept = if settings.spreads_blocks() {
            pieces(&mut shapes.trained_linears()) + (all - linears)
        } else {
            all
        };
        let (added_up, largest) = (sizes.iter().sum::<u64>(), sizes.iter().max().copied().unwrap_or(0));
        // Large vectors go alone, and small ones together.
        let alone = || sizes.iter().filter(|size| **size > BUCKET as u64);
        let (large, of_large) = (alone().count() as u64, alone().sum::<u64>());
        let updated = match settings.strategy {
            Strategy::Ddp => all,
            Strategy::Zero1 | Strategy::Zero3 => pieces(&mut shapes.trained()),
        };
        Self {
            kept,
            updated,
            added_up,
            bucket: added_up.min(largest.max(BUCKET as u64)),
            buckets: large + (added_up - of_large).div_ceil(BUCKET as u64),
        }
    }
}

/// What is trained of a block's linear layers, where each process keeps pieces of them: numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockShare {
    /// All.
    pub whole: u64,
    /// The pieces of one process.
    pub pieces: u64,
    /// The largest layer, in pieces of all processes behind one another.
    pub largest: u64,
    /// All of them in this way.
    pub added_up: u64,
    /// How many layers there are: each is added up by itself.
    pub layers: u64,
}

impl BlockShare {
    /// Those of all blocks; nothing where blocks are whole on each process.
    pub fn of(shapes: &Shapes, settings: &Settings) -> Vec<Self> {
        let mut shares = vec![Self::default(); shapes.blocks.len()];
        let spread = |parameter: &&BaseParameter| parameter.trained && is_spread(parameter, settings);
        for parameter in shapes.base.iter().filter(spread) {
            if let Some(share) = parameter.block.and_then(|block| shares.get_mut(block)) {
                let elements = parameter.elements();
                let padded = settings.world as u64 * padded_piece(elements, settings.world);
                share.whole += elements;
                share.pieces += piece(elements, settings.world);
                share.largest = share.largest.max(padded);
                share.added_up += padded;
                share.layers += 1;
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pieces;

    proptest! {
        /// The first process's piece is as `pieces.rs` cuts it, and no other is longer.
        #[test]
        fn the_first_piece_is_the_longest(elements in 0usize..100_000, world in 1usize..40) {
            let longest = (0..world).map(|rank| pieces::piece(elements, rank, world).len()).max();
            prop_assert_eq!(Some(piece(elements as u64, world) as usize), longest);
        }
    }
}
