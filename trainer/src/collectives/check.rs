//! Collectives against values that every rank can compute by itself, for any implementation and any number of ranks.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{Alone, Collectives};
use crate::error::TrainError;

/// Lengths of vectors: one number, odd ones, and more than a small message.
const LENGTHS: [usize; 4] = [1, 3, 1000, 65_537];

/// Elements of the larger vector that lie before a view of it.
const BEFORE: usize = 3;

/// What one check found.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectiveCheck {
    /// The operation.
    pub name: &'static str,
    /// Length and format, or what is special.
    pub case: String,
    /// The largest difference from what is expected, relative to the largest expected value, or to 1 if that is larger; infinite
    /// when the length is another.
    pub max_difference: f64,
    /// The largest that is in order.
    pub allowed: f64,
}

impl CollectiveCheck {
    /// Whether it is in order.
    pub fn passed(&self) -> bool {
        self.max_difference <= self.allowed
    }
}

/// One rank as it would be among several: through NCCL on a CUDA GPU, by itself elsewhere. For checks.
///
/// # Errors
/// When NCCL is not there, or cannot be used.
pub fn one_rank(device: &Device) -> Result<Arc<dyn Collectives>, TrainError> {
    #[cfg(feature = "cuda")]
    if crate::ops::is_cube(device) && crate::device::gpu_of(device).is_some() {
        use super::nccl::Nccl;

        let on_failure = Box::new(|reason: &str| tracing::error!("{reason}"));
        return Ok(Nccl::connect(0, 1, Nccl::unique_id()?, device, on_failure)?.collectives());
    }
    let _ = device;
    Ok(Arc::new(Alone))
}

/// Checks all operations on vectors of a device. All ranks call it; each sees its own results.
pub fn collective_checks(collectives: &dyn Collectives, device: &Device) -> Vec<CollectiveCheck> {
    let mut checks = Checks {
        ranks: collectives,
        device: device.clone().without_autodiff(),
        found: Vec::new(),
    };
    for dtype in [DType::F32, DType::BF16] {
        for length in LENGTHS {
            checks.sums(length, dtype);
            checks.copies(length, dtype);
        }
    }
    for dtype in [DType::U8, DType::I32, DType::U32] {
        for length in LENGTHS {
            checks.integers(length, dtype);
        }
    }
    checks.views();
    checks.bits();
    checks.host();
    checks.found
}

/// An element of a rank's vector: a small whole number, so that sums are exact in bf16 too.
fn element(rank: usize, index: usize) -> f64 {
    ((index * 7 + rank * 5) % 13) as f64 - 6.0
}

struct Checks<'a> {
    ranks: &'a dyn Collectives,
    device: Device,
    found: Vec<CollectiveCheck>,
}

impl Checks<'_> {
    /// What this rank lays down: `length` elements, as a view of a larger vector where `view` says so.
    fn vector(&self, rank: usize, length: usize, dtype: DType, view: bool) -> Tensor<1> {
        let before = if view { BEFORE } else { 0 };
        let all = length + 2 * before;
        // The elements around a view are none of its own.
        let value = |index: usize| {
            if (before..before + length).contains(&index) {
                element(rank, index - before)
            } else {
                99.0
            }
        };
        let values = (0..all).map(|index| value(index) as f32);
        let data = TensorData::new(values.collect::<Vec<f32>>(), [all]);
        let vector = Tensor::<1>::from_data(data, (&self.device, DType::F32)).cast(dtype);
        if view { vector.narrow(0, before, length) } else { vector }
    }

    fn compare(&mut self, name: &'static str, case: String, computed: &[f64], expected: &[f64], allowed: f64) {
        self.found.push(CollectiveCheck {
            name,
            case,
            max_difference: difference(computed, expected),
            allowed,
        });
    }

    /// What sums of whole numbers may be off by: nothing, as long as bf16, which has eight bits, holds them.
    fn allowed(&self, dtype: DType) -> f64 {
        if dtype == DType::BF16 && self.ranks.world_size() > 40 {
            0.02
        } else {
            0.0
        }
    }

    /// The sum over all ranks.
    fn total(&self, index: usize) -> f64 {
        (0..self.ranks.world_size()).map(|rank| element(rank, index)).sum()
    }

    fn sums(&mut self, length: usize, dtype: DType) {
        let (rank, world_size, allowed) = (self.ranks.rank(), self.ranks.world_size(), self.allowed(dtype));
        let vector = self.vector(rank, length, dtype, false);
        let sum = numbers(self.ranks.all_reduce(vector));
        let expected: Vec<f64> = (0..length).map(|index| self.total(index)).collect();
        self.compare("all_reduce", format!("{length} of {dtype:?}"), &sum, &expected, allowed);

        let vector = self.vector(rank, length * world_size, dtype, false);
        let part = numbers(self.ranks.reduce_scatter(vector));
        let expected: Vec<f64> = (rank * length..(rank + 1) * length)
            .map(|index| self.total(index))
            .collect();
        self.compare(
            "reduce_scatter",
            format!("{length} of {dtype:?}"),
            &part,
            &expected,
            allowed,
        );
    }

    fn copies(&mut self, length: usize, dtype: DType) {
        let (rank, world_size) = (self.ranks.rank(), self.ranks.world_size());
        let all = numbers(self.ranks.all_gather(self.vector(rank, length, dtype, false)));
        let expected: Vec<f64> = (0..world_size)
            .flat_map(|rank| (0..length).map(move |index| element(rank, index)))
            .collect();
        self.compare("all_gather", format!("{length} of {dtype:?}"), &all, &expected, 0.0);

        for root in if world_size > 1 {
            vec![0, world_size - 1]
        } else {
            vec![0]
        } {
            let sent = numbers(self.ranks.broadcast(self.vector(rank, length, dtype, false), root));
            let expected: Vec<f64> = (0..length).map(|index| element(root, index)).collect();
            let case = format!("{length} of {dtype:?} from rank {root}");
            self.compare("broadcast", case, &sent, &expected, 0.0);
        }
    }

    fn integers(&mut self, length: usize, dtype: DType) {
        let (rank, world_size) = (self.ranks.rank(), self.ranks.world_size());
        // All bits of a byte, and of a wider integer more than a float could hold.
        let wide = if dtype == DType::U8 { 0 } else { 0x7ABC_DE00 };
        let value = move |rank: usize, index: usize| wide + ((index * 31 + rank * 7) % 256) as i64;
        let values: Vec<i64> = (0..length).map(|index| value(rank, index)).collect();
        let data = TensorData::new(values, [length]).convert_dtype(dtype);
        let all = self
            .ranks
            .all_gather_int(Tensor::<1, Int>::from_data(data, (&self.device, dtype)));
        let same = all.dtype() == dtype;
        let all: Vec<f64> = all.into_data().iter::<i64>().map(|value| value as f64).collect();
        let expected: Vec<f64> = (0..world_size)
            .flat_map(|rank| (0..length).map(move |index| value(rank, index) as f64))
            .collect();
        let all = if same { all } else { Vec::new() };
        self.compare("all_gather_int", format!("{length} of {dtype:?}"), &all, &expected, 0.0);
    }

    /// Vectors that begin inside another's memory, and that somebody else still holds.
    fn views(&mut self) {
        let (rank, world_size, length) = (self.ranks.rank(), self.ranks.world_size(), 257);
        for dtype in [DType::F32, DType::BF16] {
            let allowed = self.allowed(dtype);
            let view = self.vector(rank, length, dtype, true);
            let sum = numbers(self.ranks.all_reduce(view.clone()));
            let expected: Vec<f64> = (0..length).map(|index| self.total(index)).collect();
            self.compare("all_reduce", format!("a view, {dtype:?}"), &sum, &expected, allowed);
            let expected: Vec<f64> = (0..length).map(|index| element(rank, index)).collect();
            self.compare(
                "all_reduce",
                format!("leaves a view, {dtype:?}"),
                &numbers(view),
                &expected,
                0.0,
            );

            let held = self.vector(rank, length, dtype, false);
            let sent = numbers(self.ranks.broadcast(held.clone(), world_size - 1));
            let root: Vec<f64> = (0..length).map(|index| element(world_size - 1, index)).collect();
            self.compare("broadcast", format!("of a vector in use, {dtype:?}"), &sent, &root, 0.0);
            self.compare(
                "broadcast",
                format!("leaves a vector, {dtype:?}"),
                &numbers(held),
                &expected,
                0.0,
            );
        }
    }

    /// Sums of fractions, which are rounded: the same bits on every rank.
    fn bits(&mut self) {
        let (rank, world_size, length) = (self.ranks.rank(), self.ranks.world_size(), 4097);
        let value = |rank: usize, index: usize| ((index * 37 + rank * 101) % 1009) as f32 / 7.0 - 70.0;
        let values: Vec<f32> = (0..length).map(|index| value(rank, index)).collect();
        let vector = Tensor::<1>::from_data(TensorData::new(values, [length]), (&self.device, DType::F32));
        let data = self.ranks.all_reduce(vector).into_data();
        let sum: Vec<f64> = data.iter::<f64>().collect();
        let expected: Vec<f64> = (0..length)
            .map(|index| (0..world_size).map(|rank| f64::from(value(rank, index))).sum())
            .collect();
        let allowed = f64::from(f32::EPSILON) * world_size as f64;
        self.compare("all_reduce", "fractions".to_owned(), &sum, &expected, allowed);
        let all = self.ranks.gather(data.as_bytes());
        let others = all.iter().filter(|bytes| bytes.as_slice() != data.as_bytes()).count();
        self.compare(
            "all_reduce",
            "ranks with other bits".to_owned(),
            &[others as f64],
            &[0.0],
            0.0,
        );
    }

    /// Operations on host memory.
    fn host(&mut self) {
        let (rank, world_size) = (self.ranks.rank(), self.ranks.world_size());
        let mut sums: Vec<f64> = (0..5).map(|index| element(rank, index) / 4.0).collect();
        self.ranks.sum(&mut sums);
        let expected: Vec<f64> = (0..5).map(|index| self.total(index) / 4.0).collect();
        self.compare("sum", "5 of F64".to_owned(), &sums, &expected, 0.0);

        for extra in [0, 4000] {
            let words = |rank: usize| vec![rank as u8 ^ 0xA5; rank + extra];
            let all = self.ranks.gather(&words(rank));
            let right = all.len() == world_size && all.iter().enumerate().all(|(rank, said)| *said == words(rank));
            let off = if right { 0.0 } else { f64::INFINITY };
            self.compare(
                "gather",
                format!("{extra} bytes and one more by rank"),
                &[off],
                &[0.0],
                0.0,
            );
        }
        self.ranks.barrier();
        self.compare("barrier", "comes back".to_owned(), &[0.0], &[0.0], 0.0);
    }
}

fn numbers(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The largest difference relative to the largest expected value, or to 1 if that is larger.
fn difference(computed: &[f64], expected: &[f64]) -> f64 {
    if computed.len() != expected.len() {
        return f64::INFINITY;
    }
    let size = expected.iter().fold(1.0f64, |size, value| size.max(value.abs()));
    let differences = computed
        .iter()
        .zip(expected)
        .map(|(computed, expected)| (computed - expected).abs());
    differences.fold(0.0, |largest: f64, difference| {
        // A comparison with what is no number is false.
        if difference <= largest {
            largest
        } else if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        }
    }) / size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::on_threads;

    fn assert_all_pass(checks: &[CollectiveCheck]) {
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        let mut names: Vec<_> = checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        let all = [
            "all_gather",
            "all_gather_int",
            "all_reduce",
            "barrier",
            "broadcast",
            "gather",
            "reduce_scatter",
            "sum",
        ];
        assert_eq!(names, all);
    }

    #[test]
    fn one_rank_is_what_it_says() {
        assert_all_pass(&collective_checks(&Alone, &Device::flex()));
    }

    #[test]
    fn threads_are_what_they_say() {
        for world_size in [2, 3] {
            for checks in on_threads(world_size, |ranks| collective_checks(&*ranks, &Device::flex())) {
                assert_all_pass(&checks);
            }
        }
    }

    /// Ranks that say nothing to one another.
    #[derive(Debug)]
    struct Mute;

    impl Collectives for Mute {
        fn rank(&self) -> usize {
            1
        }

        fn world_size(&self) -> usize {
            2
        }

        fn all_reduce(&self, vector: Tensor<1>) -> Tensor<1> {
            vector
        }

        fn reduce_scatter(&self, vector: Tensor<1>) -> Tensor<1> {
            vector
        }

        fn all_gather(&self, vector: Tensor<1>) -> Tensor<1> {
            vector
        }

        fn all_gather_int(&self, vector: Tensor<1, Int>) -> Tensor<1, Int> {
            vector
        }

        fn broadcast(&self, vector: Tensor<1>, _root: usize) -> Tensor<1> {
            vector
        }

        fn barrier(&self) {}

        fn sum(&self, _values: &mut [f64]) {}

        fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
            vec![bytes.to_vec()]
        }
    }

    #[test]
    fn ranks_that_say_nothing_fail() {
        let checks = collective_checks(&Mute, &Device::flex());
        for name in [
            "all_reduce",
            "reduce_scatter",
            "all_gather",
            "all_gather_int",
            "broadcast",
            "sum",
            "gather",
        ] {
            assert!(
                checks.iter().any(|check| check.name == name && !check.passed()),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_number_differs() {
        assert_eq!(difference(&[1.0, f64::NAN, 1.0], &[1.0, 1.0, 1.0]), f64::INFINITY);
        assert_eq!(difference(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(difference(&[8.0, 2.0], &[10.0, 2.0]), 0.2);
    }
}
