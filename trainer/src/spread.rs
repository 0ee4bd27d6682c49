//! Values that lie in pieces on all processes, and come together for the time that somebody computes with them: ZeRO-3. All
//! processes ask for the same ones in the same order.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Int, Tensor};

use crate::collectives::Collectives;
use crate::pieces::{copied, joined, padded, padded_piece, piece, piece_length};

/// A flat vector of floats in pieces.
#[derive(Debug)]
pub struct Spread {
    length: usize,
    /// This process's piece, with zeros behind it up to the length of a piece.
    own: Tensor<1>,
    collectives: Arc<dyn Collectives>,
    /// The whole vector, while it is here.
    whole: Mutex<Option<Tensor<1>>>,
}

impl Clone for Spread {
    /// The copy has its own piece, and comes together by itself: one of the two may be trained.
    fn clone(&self) -> Self {
        Self {
            length: self.length,
            own: self.own.clone(),
            collectives: self.collectives.clone(),
            whole: Mutex::default(),
        }
    }
}

impl Spread {
    /// This process's piece of a vector that every process has.
    pub fn cut(vector: &Tensor<1>, collectives: &Arc<dyn Collectives>) -> Self {
        Self {
            length: vector.dims()[0],
            own: copied(padded_piece(vector, collectives.rank(), collectives.world_size())),
            collectives: collectives.clone(),
            whole: Mutex::default(),
        }
    }

    /// Numbers of the whole vector.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where this process's piece lies in the whole.
    fn range(&self) -> std::ops::Range<usize> {
        piece(self.length, self.collectives.rank(), self.collectives.world_size())
    }

    /// This process's piece; none where it is empty.
    pub fn own(&self) -> Option<Tensor<1>> {
        let count = self.range().len();
        (count > 0).then(|| self.own.clone().narrow(0, 0, count))
    }

    /// Gives this process's piece other values.
    pub fn set_own(&mut self, piece: Tensor<1>) {
        self.own = padded(piece, self.own.dims()[0]);
        self.let_go();
    }

    /// The same in f32.
    #[must_use]
    pub fn to_f32(&self) -> Self {
        let mut copy = self.clone();
        if copy.own.dtype() != DType::F32 {
            copy.own = copy.own.cast(DType::F32);
        }
        copy
    }

    /// The whole vector.
    pub fn values(&self) -> Tensor<1> {
        let here = self.whole.lock().unwrap_or_else(PoisonError::into_inner).clone();
        here.unwrap_or_else(|| {
            let all = self.collectives.all_gather(self.own.clone());
            all.narrow(0, 0, self.length)
        })
    }

    /// Forgets the whole vector.
    pub fn let_go(&self) {
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// This process's piece of the sum of what all processes have.
    pub fn reduce(&self, gradient: &Tensor<1>) -> Option<Tensor<1>> {
        let world = self.collectives.world_size();
        let by_rank = (0..world).map(|rank| padded_piece(gradient, rank, world));
        let sum = self.collectives.reduce_scatter(Tensor::cat(by_rank.collect(), 0));
        let count = self.range().len();
        (count > 0).then(|| sum.narrow(0, 0, count))
    }
}

/// Brings several vectors together in one operation for each number format among them.
pub fn bring(vectors: &[&Spread]) {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let vectors: Vec<&&Spread> = vectors.iter().filter(|vector| vector.own.dtype() == dtype).collect();
        let Some(collectives) = vectors.first().map(|vector| &vector.collectives) else {
            continue;
        };
        let world = collectives.world_size();
        let own = vectors.iter().map(|vector| vector.own.clone()).collect();
        let all = collectives.all_gather(Tensor::cat(own, 0));
        let of_rank = all.dims()[0] / world;
        let mut start = 0;
        for vector in vectors {
            let pieces = (0..world).filter_map(|rank| {
                let count = piece(vector.length, rank, world).len();
                (count > 0).then(|| all.clone().narrow(0, rank * of_rank + start, count))
            });
            let whole = joined(pieces.collect());
            *vector.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole);
            start += piece_length(vector.length, world);
        }
    }
}

/// A flat vector of integers in pieces, such as the codes of a packed weight on a device.
#[derive(Clone, Debug)]
pub struct SpreadInt {
    length: usize,
    /// This process's piece, with zeros behind it up to the length of a piece.
    own: Tensor<1, Int>,
    collectives: Arc<dyn Collectives>,
}

impl SpreadInt {
    /// This process's piece of a vector that every process has.
    pub fn cut(vector: &Tensor<1, Int>, collectives: &Arc<dyn Collectives>) -> Self {
        let length = vector.dims()[0];
        let (rank, world) = (collectives.rank(), collectives.world_size());
        let (range, full) = (piece(length, rank, world), piece_length(length, world));
        let zeros = Tensor::<1, Int>::zeros([full], (&vector.device(), vector.dtype()));
        let own = match range.len() {
            0 => zeros,
            count => zeros.slice_assign(0..count, vector.clone().narrow(0, range.start, count)),
        };
        Self {
            length,
            own,
            collectives: collectives.clone(),
        }
    }

    /// The whole vector.
    pub fn values(&self) -> Tensor<1, Int> {
        let all = self.collectives.all_gather_int(self.own.clone());
        all.narrow(0, 0, self.length)
    }
}

/// Bytes in pieces, in host memory.
#[derive(Clone, Debug)]
pub struct SpreadBytes {
    own: Arc<[u8]>,
    collectives: Arc<dyn Collectives>,
}

impl SpreadBytes {
    /// This process's piece of bytes that every process has.
    pub fn cut(bytes: &[u8], collectives: &Arc<dyn Collectives>) -> Self {
        let range = piece(bytes.len(), collectives.rank(), collectives.world_size());
        Self {
            own: bytes[range].into(),
            collectives: collectives.clone(),
        }
    }

    /// All of them.
    pub fn values(&self) -> Vec<u8> {
        self.collectives.gather(&self.own).concat()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::collectives::on_threads;

    fn vector(length: usize) -> Tensor<1> {
        let values: Vec<f32> = (0..length).map(|index| index as f32 * 0.25).collect();
        Tensor::from_data(TensorData::new(values, [length]), (&Device::flex(), DType::F32))
    }

    #[test]
    fn what_was_cut_comes_together_again() {
        for length in [1, 255, 256, 257, 1000, 4096] {
            on_threads(3, |collectives| {
                let whole = vector(length);
                let data = whole.clone().into_data();
                let (one, other) = (
                    Spread::cut(&whole, &collectives),
                    Spread::cut(&whole.clone().cast(DType::BF16), &collectives),
                );
                assert_eq!(one.values().into_data(), data);
                bring(&[&one, &other, &one.clone()]);
                assert_eq!(one.values().into_data(), data);
                assert_eq!(other.values().into_data(), whole.clone().cast(DType::BF16).into_data());
                one.let_go();
                let sum = one.reduce(&whole);
                let own = one.own().map(|own| (own * 3.0).into_data());
                assert_eq!(sum.map(Tensor::into_data), own);
                let bytes: Vec<u8> = (0..length).map(|index| index as u8).collect();
                assert_eq!(SpreadBytes::cut(&bytes, &collectives).values(), bytes);
                let data = TensorData::new(bytes, [length]);
                let codes = Tensor::<1, Int>::from_data(data.clone(), (&Device::flex(), DType::U8));
                assert_eq!(SpreadInt::cut(&codes, &collectives).values().into_data(), data);
            });
        }
    }
}
