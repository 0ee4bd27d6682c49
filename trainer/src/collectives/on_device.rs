//! Collectives for vectors in a device's memory, over a library that carries numbers from memory to memory.

use std::fmt::Debug;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use cubecl_runtime::runtime::Runtime;

use super::{Collectives, OnFailure};
use crate::ops::raw::{Memory, RawVector};

/// What is carried out on two vectors of elements. `length` is that of the shorter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The sum over all ranks, as long as each vector.
    AllReduce,
    /// This rank's part of the sum.
    ReduceScatter,
    /// All vectors behind one another.
    AllGather,
    /// The vector of one rank.
    Broadcast { root: usize },
}

/// Carries numbers between the memories of the ranks' devices.
pub(super) trait Carrier: Debug + Send + Sync {
    /// The runtime of CubeCL whose memory it reaches.
    type Runtime: Runtime;

    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// Carries out an operation from one piece of memory into another, or into itself, and returns when the result is there.
    ///
    /// # Errors
    /// What went wrong.
    fn carry(
        &self,
        operation: Operation,
        from: &Memory<Self::Runtime>,
        into: &Memory<Self::Runtime>,
        length: usize,
        dtype: DType,
    ) -> Result<(), String>;
}

/// The ranks as a carrier reaches them.
pub(super) struct OnDevice<C> {
    carrier: C,
    /// Where the vectors are.
    device: Device,
    on_failure: OnFailure,
}

impl<C: Debug> Debug for OnDevice<C> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.carrier.fmt(formatter)
    }
}

impl<C: Carrier> OnDevice<C> {
    pub(super) fn new(carrier: C, device: &Device, on_failure: OnFailure) -> Self {
        Self {
            carrier,
            device: device.clone().without_autodiff(),
            on_failure,
        }
    }

    /// Carries out an operation on a vector, none where it is not on the device; ends the process when that fails.
    fn carried(&self, operation: Operation, vector: Option<RawVector>) -> RawVector {
        let result = match vector {
            Some(vector) => self.try_carry(operation, vector),
            None => Err(format!("the vector is not on {:?}", self.device)),
        };
        match result {
            Ok(vector) => vector,
            Err(reason) => {
                let (rank, world_size) = (self.carrier.rank(), self.carrier.world_size());
                let message = format!("{operation:?} on rank {rank} of {world_size} failed: {reason}");
                (self.on_failure)(&message);
                std::process::exit(1);
            }
        }
    }

    fn try_carry(&self, operation: Operation, vector: RawVector) -> Result<RawVector, String> {
        let (length, world_size) = (vector.length(), self.carrier.world_size());
        let (from, into) = match operation {
            Operation::AllReduce | Operation::Broadcast { .. } => (None, vector.writable()),
            Operation::AllGather => {
                let into = vector.beside(length * world_size);
                (Some(vector), into)
            }
            Operation::ReduceScatter if length.is_multiple_of(world_size) => {
                let into = vector.beside(length / world_size);
                (Some(vector), into)
            }
            Operation::ReduceScatter => {
                return Err(format!("{length} numbers cannot be shared among {world_size} ranks"));
            }
        };
        if length == 0 {
            return Ok(into);
        }
        let target = into.memory::<C::Runtime>()?;
        let source = from.as_ref().map(RawVector::memory::<C::Runtime>).transpose()?;
        // The carrier has a stream of its own: what CubeCL was given to do is done before it begins, and it is done before CubeCL
        // gets more to do. Safe, and the reason why nothing overlaps yet.
        into.wait()?;
        let shorter = length.min(into.length());
        self.carrier.carry(
            operation,
            source.as_ref().unwrap_or(&target),
            &target,
            shorter,
            into.dtype(),
        )?;
        Ok(into)
    }

    fn float(&self, operation: Operation, vector: Tensor<1>) -> Tensor<1> {
        let autodiff = vector.device().is_autodiff();
        let result = self.carried(operation, RawVector::of(vector)).into_tensor();
        if autodiff { result.autodiff() } else { result }
    }

    /// The bytes of all ranks, equally many on each, by rank.
    fn gather_equal(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        if bytes.is_empty() {
            return vec![Vec::new(); self.world_size()];
        }
        let data = TensorData::new(bytes.to_vec(), [bytes.len()]);
        let all = self.all_gather_int(Tensor::from_data(data, (&self.device, DType::U8)));
        all.into_data()
            .as_bytes()
            .chunks_exact(bytes.len())
            .map(<[u8]>::to_vec)
            .collect()
    }
}

impl<C: Carrier> Collectives for OnDevice<C> {
    fn rank(&self) -> usize {
        self.carrier.rank()
    }

    fn world_size(&self) -> usize {
        self.carrier.world_size()
    }

    fn all_reduce(&self, vector: Tensor<1>) -> Tensor<1> {
        self.float(Operation::AllReduce, vector)
    }

    fn reduce_scatter(&self, vector: Tensor<1>) -> Tensor<1> {
        self.float(Operation::ReduceScatter, vector)
    }

    fn all_gather(&self, vector: Tensor<1>) -> Tensor<1> {
        self.float(Operation::AllGather, vector)
    }

    fn all_gather_int(&self, vector: Tensor<1, Int>) -> Tensor<1, Int> {
        let autodiff = vector.device().is_autodiff();
        let result = self
            .carried(Operation::AllGather, RawVector::of_integers(vector))
            .into_integers();
        if autodiff { result.autodiff() } else { result }
    }

    fn broadcast(&self, vector: Tensor<1>, root: usize) -> Tensor<1> {
        self.float(Operation::Broadcast { root }, vector)
    }

    fn barrier(&self) {
        // Nobody has the sum before everybody has given a number, and the carrier returns when the sum is there.
        self.all_reduce(Tensor::from_data([1.0f32], (&self.device, DType::F32)));
    }

    fn sum(&self, values: &mut [f64]) {
        // Gathered and added up here, in the order of the ranks: the same bits on every rank, and in every run, whatever way the
        // carrier's sums take.
        let all = self.gather_equal(bytemuck::cast_slice(values));
        values.fill(0.0);
        for bytes in all {
            for (sum, value) in values.iter_mut().zip(bytes.chunks_exact(size_of::<f64>())) {
                *sum += bytemuck::pod_read_unaligned::<f64>(value);
            }
        }
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let lengths = self.gather_equal(&(bytes.len() as u64).to_ne_bytes());
        let lengths: Vec<usize> = lengths
            .iter()
            .map(|length| bytemuck::pod_read_unaligned::<u64>(length) as usize)
            .collect();
        // Every rank sends as much as the longest.
        let mut padded = bytes.to_vec();
        padded.resize(lengths.iter().copied().max().unwrap_or(0), 0);
        let mut all = self.gather_equal(&padded);
        for (bytes, length) in all.iter_mut().zip(lengths) {
            bytes.truncate(length);
        }
        all
    }
}

#[cfg(all(test, feature = "cubecl-cpu"))]
mod tests {
    use cubecl::cpu::CpuRuntime;

    use super::*;
    use crate::collectives::check::collective_checks;

    /// Ranks that all say what this one says, in host memory.
    #[derive(Debug)]
    struct Echo {
        rank: usize,
        world_size: usize,
    }

    impl Carrier for Echo {
        type Runtime = CpuRuntime;

        fn rank(&self) -> usize {
            self.rank
        }

        fn world_size(&self) -> usize {
            self.world_size
        }

        fn carry(
            &self,
            operation: Operation,
            from: &Memory<CpuRuntime>,
            into: &Memory<CpuRuntime>,
            length: usize,
            dtype: DType,
        ) -> Result<(), String> {
            let bytes = |memory: &Memory<CpuRuntime>, count: usize| {
                let (pointer, room) = memory.resource().get_write_ptr_and_length();
                assert!(room >= count * dtype.size(), "{room} bytes for {count} of {dtype:?}");
                // SAFETY: the memory is held, initialised and at least this long; nobody else uses it, since the device has done
                // all it was given to do.
                unsafe { std::slice::from_raw_parts_mut(pointer, count * dtype.size()) }
            };
            let longer = length * self.world_size;
            let said = bytes(
                from,
                if operation == Operation::ReduceScatter {
                    longer
                } else {
                    length
                },
            )
            .to_vec();
            let part = self.rank * length * dtype.size();
            match operation {
                Operation::AllReduce => bytes(into, length).copy_from_slice(&self.times_world_size(&said, dtype)),
                Operation::ReduceScatter => {
                    let sums = self.times_world_size(&said, dtype);
                    bytes(into, length).copy_from_slice(&sums[part..part + length * dtype.size()]);
                }
                Operation::AllGather => bytes(into, longer).copy_from_slice(&said.repeat(self.world_size)),
                Operation::Broadcast { .. } => bytes(into, length).copy_from_slice(&said),
            }
            Ok(())
        }
    }

    impl Echo {
        fn times_world_size(&self, said: &[u8], dtype: DType) -> Vec<u8> {
            let data = TensorData::from_bytes_vec(said.to_vec(), [said.len() / dtype.size()], dtype);
            let sums: Vec<f32> = data.iter::<f32>().map(|value| value * self.world_size as f32).collect();
            let length = sums.len();
            TensorData::new(sums, [length]).convert_dtype(dtype).as_bytes().to_vec()
        }
    }

    fn ranks(rank: usize, world_size: usize) -> OnDevice<Echo> {
        let fail: OnFailure = Box::new(|message| panic!("{message}"));
        OnDevice::new(Echo { rank, world_size }, &Device::cpu(), fail)
    }

    #[test]
    fn one_rank_passes_every_check_through_the_memory_of_its_vectors() {
        let checks = collective_checks(&ranks(0, 1), &Device::cpu());
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(failed.is_empty() && checks.len() > 20, "{failed:?} of {}", checks.len());
    }

    #[test]
    fn vectors_of_more_ranks_have_their_lengths() {
        let ranks = ranks(1, 3);
        let values: Vec<f32> = (0..12).map(|index| index as f32).collect();
        let vector = Tensor::<1>::from_data(TensorData::new(values, [12]), (&Device::cpu(), DType::F32));
        let numbers = |tensor: Tensor<1>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        assert_eq!(numbers(ranks.reduce_scatter(vector.clone())), [12.0, 15.0, 18.0, 21.0]);
        let view = vector.clone().narrow(0, 5, 2);
        assert_eq!(numbers(ranks.all_gather(view.clone())), [5.0, 6.0, 5.0, 6.0, 5.0, 6.0]);
        assert_eq!(numbers(ranks.all_reduce(view.clone())), [15.0, 18.0]);
        assert_eq!(numbers(view), [5.0, 6.0]);
        assert_eq!(ranks.gather(b"ab"), vec![b"ab".to_vec(); 3]);
        let mut sums = [0.25, -1.0];
        ranks.sum(&mut sums);
        assert_eq!(sums, [0.75, -3.0]);
        ranks.barrier();
    }

    #[test]
    fn a_vector_that_ranks_cannot_share_or_that_is_elsewhere_ends_in_the_hook() {
        let fails = |work: fn(&OnDevice<Echo>)| {
            let panic = std::panic::catch_unwind(|| work(&ranks(0, 3))).unwrap_err();
            panic.downcast_ref::<String>().unwrap().clone()
        };
        let odd = fails(|ranks| {
            ranks.reduce_scatter(Tensor::zeros([4], &Device::cpu()));
        });
        assert!(
            odd.contains("ReduceScatter on rank 0 of 3") && odd.contains("4 numbers"),
            "{odd}"
        );
        let elsewhere = fails(|ranks| {
            ranks.all_reduce(Tensor::zeros([4], &Device::flex()));
        });
        assert!(elsewhere.contains("not on"), "{elsewhere}");
    }
}
