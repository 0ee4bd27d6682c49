//! The first words between the ranks: whether sums come out right, and how fast.

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use interlingua_trainer::collectives::Collectives;

use crate::exit::Failure;

/// Numbers of the sum that is timed: 16 MiB in f32.
const TIMED: usize = 4 << 20;
/// Their bytes.
pub(crate) const TIMED_BYTES: u64 = (TIMED * size_of::<f32>()) as u64;
/// How often it is formed.
const ROUNDS: u32 = 3;

/// What the ranks' connection does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fabric {
    /// Bytes that a rank sends in a second while 16 MiB are summed up, by the least that a sum takes.
    pub(crate) bytes_per_second: f64,
}

/// Forms sums that every rank can check by itself, and times the larger one.
///
/// # Errors
/// When a sum is wrong on this rank.
pub(crate) fn check(collectives: &dyn Collectives, device: &Device) -> Result<Fabric, Failure> {
    let ranks = collectives.world_size();
    let numbers = |count: usize| -> Vec<f32> {
        let own = |index: usize| (index % 7 * ranks + collectives.rank()) as f32;
        (0..count).map(own).collect()
    };
    let expected = |index: usize| (index % 7 * ranks * ranks + ranks * (ranks - 1) / 2) as f32;
    let tensor = |count: usize| Tensor::<1>::from_data(TensorData::new(numbers(count), [count]), (device, DType::F32));
    for count in [1, 1003, TIMED] {
        let sum = collectives.all_reduce(tensor(count)).into_data();
        let wrong = sum
            .iter::<f32>()
            .enumerate()
            .find(|(index, sum)| (sum - expected(*index)).abs() > expected(*index) * 1e-6);
        if let Some((index, sum)) = wrong {
            return Err(Failure::running(format!(
                "The sum of {count} numbers over all {ranks} ranks is wrong: number {index} is {sum} on rank {}, and must be {}. The \
                 network, or the library between the ranks, is at fault.",
                collectives.rank(),
                expected(index)
            )));
        }
    }
    let vector = tensor(TIMED);
    collectives.barrier();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let sum = collectives.all_reduce(vector.clone());
        // What follows a sum reads it, so that a device that computes later has to be done.
        let _ = sum.narrow(0, 0, 1).into_data();
    }
    collectives.barrier();
    let seconds = start.elapsed().as_secs_f64() / f64::from(ROUNDS);
    // Each rank sends and receives 2 (N - 1) / N of the vector, whatever the algorithm (Patarasuk and Yuan, Bandwidth optimal
    // all-reduce algorithms for clusters of workstations, 2009).
    let bytes = TIMED_BYTES as f64 * 2.0 * (ranks - 1) as f64 / ranks as f64;
    Ok(Fabric {
        bytes_per_second: bytes / seconds.max(f64::MIN_POSITIVE),
    })
}
