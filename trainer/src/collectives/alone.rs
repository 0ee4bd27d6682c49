//! A run of one process.

use std::fmt;

use burn::tensor::{Int, Tensor};

use super::Collectives;

/// One process: nothing is to be exchanged.
#[derive(Clone, Copy, Default)]
pub struct Alone;

impl fmt::Debug for Alone {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("one process")
    }
}

impl Collectives for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
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
