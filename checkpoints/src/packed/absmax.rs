//! The largest magnitudes of the blocks of a quantised matrix.

use std::sync::{Arc, LazyLock};

use super::dynamic;

/// Magnitudes that are quantised together.
pub(super) const NESTED_BLOCK: usize = 256;

/// The largest magnitude of each block of a quantised matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// As they are.
    Plain(Vec<f32>),
    /// In 8 bits: `map[code] · absmax[index / block] + offset`.
    Nested {
        /// One for each block of the matrix.
        codes: Vec<u8>,
        /// The largest magnitude of each block of codes.
        absmax: Vec<f32>,
        /// Codes in a block.
        block: usize,
        /// The mean of the magnitudes.
        offset: f32,
        /// What a code stands for.
        map: Arc<[f32; 256]>,
    },
}

impl Absmax {
    /// Quantises magnitudes to 8 bits around their mean.
    pub(crate) fn nested(absmax: &[f32]) -> Self {
        static MAP: LazyLock<Arc<[f32; 256]>> = LazyLock::new(|| Arc::new(dynamic::dynamic_map()));
        let offset = dynamic::mean(absmax);
        let centred: Vec<f32> = absmax.iter().map(|value| value - offset).collect();
        let (codes, absmax) = dynamic::quantise(&centred, &MAP, NESTED_BLOCK);
        Self::Nested {
            codes,
            absmax,
            block: NESTED_BLOCK,
            offset,
            map: Arc::clone(&MAP),
        }
    }

    /// The magnitude of a block.
    #[inline]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::Plain(values) => values[index],
            Self::Nested {
                codes,
                absmax,
                block,
                offset,
                map,
            } => map[usize::from(codes[index])] * absmax[index / block] + offset,
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    /// Whether there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All magnitudes.
    pub fn to_vec(&self) -> Vec<f32> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }

    /// Whether these are the magnitudes of so many blocks.
    pub(super) fn fits(&self, blocks: usize) -> bool {
        self.len() == blocks
            && match self {
                Self::Plain(_) => true,
                Self::Nested {
                    codes, absmax, block, ..
                } => *block > 0 && absmax.len() == codes.len().div_ceil(*block),
            }
    }

    /// Bytes that they take; the map, which matrices share, is not counted.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Plain(values) => size_of_val(values.as_slice()),
            Self::Nested { codes, absmax, .. } => codes.len() + size_of_val(absmax.as_slice()),
        }
    }
}
