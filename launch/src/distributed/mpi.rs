//! MPI: what carries numbers between CPUs.

pub(crate) mod meeting;
mod pieces;

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Element, Int, Tensor, TensorData, bf16};
use bytemuck::Pod;
use interlingua_trainer::collectives::Collectives;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::placement::Placement;
use crate::exit::Failure;

/// At most this many bytes go into one call. MPI counts elements with C's int, and libraries multiply that with the size of an
/// element and the number of ranks.
const PIECE: usize = 1 << 29;

/// The library while it is in use. It is shut down by [`Library::finish`] alone: that waits for all ranks, which a process that ends
/// because something went wrong must not.
pub(crate) struct Library(ManuallyDrop<Universe>);

impl Library {
    /// Shuts the library down, on the thread that started it. Returns when all ranks do so.
    pub(crate) fn finish(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

/// Starts the library, on the main thread.
///
/// # Errors
/// With exit code 2 when the library is not for programs with threads, or the process has not been started by the library's own
/// mpirun.
pub(crate) fn start(placement: &Placement) -> Result<(Library, Mpi), Failure> {
    let version = mpi::environment::library_version().unwrap_or_default();
    let version = version.split([',', '\n']).next().unwrap_or_default().trim().to_owned();
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Multiple) else {
        return Err(Failure::running("MPI was started twice in one process."));
    };
    let library = Library(ManuallyDrop::new(universe));
    if threading < Threading::Serialized {
        return Err(Failure::usage(format!(
            "{version} lets its main thread alone call it ({threading:?}), and Interlingua computes on several. Use an MPI library \
             that is built with MPI_THREAD_MULTIPLE."
        )));
    }
    let world = SimpleCommunicator::world();
    let (rank, world_size) = (world.rank() as usize, world.size() as usize);
    if (rank, world_size) != (placement.rank, placement.world_size) {
        return Err(Failure::usage(format!(
            "This is rank {} of {} ({}), and rank {rank} of {world_size} for MPI. This binary uses {version}: start it with the \
             mpirun that belongs to it, or with srun --mpi=pmix (pmi2 for MPICH).",
            placement.rank, placement.world_size, placement.source
        )));
    }
    let turn = Mutex::new(());
    Ok((
        library,
        Mpi {
            rank,
            world_size,
            version,
            turn,
        },
    ))
}

/// Ends all ranks at once, from any thread, whatever they wait for.
pub(crate) fn abort(exit_code: u8) {
    if !mpi::environment::is_finalized() {
        SimpleCommunicator::world().abort(i32::from(exit_code));
    }
}

/// All ranks that mpirun or srun has started.
pub(crate) struct Mpi {
    rank: usize,
    world_size: usize,
    version: String,
    /// Calls come from many threads. They take turns, as libraries with MPI_THREAD_SERIALIZED ask for.
    turn: Mutex<()>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rank {} of {}", self.rank, self.world_size)
    }
}

impl Mpi {
    /// The library and its version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The bytes that rank 0 has, on every rank; the others' are not looked at.
    pub(crate) fn tell(&self, bytes: &[u8]) -> Vec<u8> {
        let length = self.spread(vec![bytes.len() as u64], 0)[0] as usize;
        let own = if self.rank == 0 {
            bytes.to_vec()
        } else {
            vec![0; length]
        };
        self.spread(own, 0)
    }

    fn call<T>(&self, operation: impl FnOnce(&SimpleCommunicator) -> T) -> T {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        operation(&SimpleCommunicator::world())
    }

    /// The sum over all ranks. The standard asks for the same result on every rank (MPI 4.1, section 6.9.6).
    fn sum_of<T: Equivalence + Pod>(&self, own: &[T]) -> Vec<T> {
        let mut sum = vec![T::zeroed(); own.len()];
        let piece = PIECE / size_of::<T>();
        self.call(|world| {
            for (own, sum) in own.chunks(piece).zip(sum.chunks_mut(piece)) {
                world.all_reduce_into(own, sum, SystemOperation::sum());
            }
        });
        sum
    }

    /// This rank's part of the sum over all ranks.
    fn part_of_sum<T: Equivalence + Pod>(&self, own: &[T]) -> Vec<T> {
        self.call(|world| {
            pieces::scattered(own, self.world_size, PIECE / size_of::<T>(), |piece, part| {
                world.reduce_scatter_block_into(piece, part, SystemOperation::sum());
            })
        })
    }

    /// What all ranks have, behind one another.
    fn all_of<T: Pod>(&self, own: &[T]) -> Vec<T> {
        self.call(|world| {
            pieces::gathered(own, self.world_size, PIECE / size_of::<T>(), |piece, all| {
                let (piece, all): (&[u8], &mut [u8]) = (bytemuck::cast_slice(piece), bytemuck::cast_slice_mut(all));
                world.all_gather_into(piece, all);
            })
        })
    }

    /// What rank `root` has.
    fn spread<T: Pod>(&self, mut own: Vec<T>, root: usize) -> Vec<T> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut own);
        self.call(|world| {
            for piece in bytes.chunks_mut(PIECE) {
                world.process_at_rank(root as i32).broadcast_into(piece);
            }
        });
        own
    }

    /// Carries out an operation on a vector's numbers: `plain` on f32, `rounded` on bf16.
    fn on_numbers(
        &self,
        vector: Tensor<1>,
        plain: impl FnOnce(Vec<f32>) -> Vec<f32>,
        rounded: impl FnOnce(Vec<bf16>) -> Vec<bf16>,
    ) -> Tensor<1> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let data = if dtype == DType::BF16 {
            let values = rounded(values_of(&vector.into_data()));
            let length = values.len();
            TensorData::new(values, [length])
        } else {
            let values = plain(values_of(&vector.into_data()));
            let length = values.len();
            TensorData::new(values, [length])
        };
        Tensor::from_data(data, (&device, dtype))
    }
}

fn values_of<T: Element>(data: &TensorData) -> Vec<T> {
    match data.as_slice::<T>() {
        Ok(values) => values.to_vec(),
        Err(_) => data.iter::<T>().collect(),
    }
}

/// MPI has no bf16: sums are formed in f32.
fn widened(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

fn rounded(values: Vec<f32>) -> Vec<bf16> {
    values.into_iter().map(bf16::from_f32).collect()
}

impl Collectives for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, vector: Tensor<1>) -> Tensor<1> {
        self.on_numbers(
            vector,
            |own| self.sum_of(&own),
            |own| rounded(self.sum_of(&widened(&own))),
        )
    }

    fn reduce_scatter(&self, vector: Tensor<1>) -> Tensor<1> {
        self.on_numbers(
            vector,
            |own| self.part_of_sum(&own),
            |own| rounded(self.part_of_sum(&widened(&own))),
        )
    }

    fn all_gather(&self, vector: Tensor<1>) -> Tensor<1> {
        self.on_numbers(vector, |own| self.all_of(&own), |own| self.all_of(&own))
    }

    fn all_gather_int(&self, vector: Tensor<1, Int>) -> Tensor<1, Int> {
        let (device, dtype) = (vector.device(), vector.dtype());
        let data = vector.into_data();
        let length = data.num_elements() * self.world_size;
        let all = self.all_of(data.as_bytes());
        Tensor::from_data(TensorData::from_bytes_vec(all, [length], dtype), (&device, dtype))
    }

    fn broadcast(&self, vector: Tensor<1>, root: usize) -> Tensor<1> {
        self.on_numbers(vector, |own| self.spread(own, root), |own| self.spread(own, root))
    }

    fn barrier(&self) {
        self.call(|world| world.barrier());
    }

    fn sum(&self, values: &mut [f64]) {
        let sum = self.sum_of(values);
        values.copy_from_slice(&sum);
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let lengths = self.all_of(&[bytes.len() as u64]);
        let longest = lengths.iter().copied().max().unwrap_or_default() as usize;
        if longest == 0 {
            return vec![Vec::new(); self.world_size];
        }
        let mut own = bytes.to_vec();
        own.resize(longest, 0);
        let all = self.all_of(&own);
        let said = all.chunks(longest).zip(&lengths);
        said.map(|(bytes, length)| bytes[..*length as usize].to_vec()).collect()
    }
}
