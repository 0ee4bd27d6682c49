//! What the processes of one run say to each other: every process is a rank, and computes on one device.
//!
//! [`Collectives`] names the operations; NCCL and MPI carry them out, and no algorithm of our own. All ranks call the same
//! operations in the same order. An operation that cannot be completed does not return: the implementation says why, tells the
//! other ranks, and ends the process. Nothing but a checkpoint outlives that, and checkpoints are whole or not there.

mod alone;
pub mod check;
#[cfg(feature = "cuda")]
pub mod nccl;
#[cfg(any(feature = "cuda", all(test, feature = "cubecl-cpu")))]
mod on_device;
mod threads;

use std::fmt::Debug;

use burn::tensor::{Int, Tensor};

pub use alone::Alone;
pub use threads::{on_threads, threads};

/// Is told why an operation cannot be completed, tells the other ranks, and ends the process. Where it comes back, the process ends
/// with exit code 1.
pub type OnFailure = Box<dyn Fn(&str) + Send + Sync>;

/// The operations that ranks carry out together. Vectors are flat and have the same length and format on every rank, f32 or bf16;
/// sums of bf16 are rounded to bf16.
pub trait Collectives: Debug + Send + Sync {
    /// Number of this process, counted from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// The sum over all ranks, `[n]` from `[n]` on each. The same bits on every rank.
    fn all_reduce(&self, vector: Tensor<1>) -> Tensor<1>;

    /// This rank's part of the sum over all ranks, `[n]` from `[world_size × n]` on each: rank r gets the numbers from r × n on.
    fn reduce_scatter(&self, vector: Tensor<1>) -> Tensor<1>;

    /// The vectors of all ranks behind one another, `[world_size × n]` from `[n]` on each.
    fn all_gather(&self, vector: Tensor<1>) -> Tensor<1>;

    /// The same for integers of any width, such as the codes of packed weights.
    fn all_gather_int(&self, vector: Tensor<1, Int>) -> Tensor<1, Int>;

    /// The vector of rank `root`, on every rank.
    fn broadcast(&self, vector: Tensor<1>, root: usize) -> Tensor<1>;

    /// Returns when every rank has called it.
    fn barrier(&self);

    /// Sums in host memory, in place; the same bits on every rank.
    fn sum(&self, values: &mut [f64]);

    /// What each rank has to say, by rank, in host memory; any lengths.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;
}
