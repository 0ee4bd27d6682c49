//! How the kernels read and write flex tensors.

use std::mem::MaybeUninit;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::runs_on_flex;

/// Rows of a task of a kernel that works row by row. A constant, so that sums over rows are the same sums whatever the
/// number of threads.
pub(super) const ROWS: usize = 32;

/// Elements of a task of a kernel that works element by element.
pub(super) const ELEMENTS: usize = 16 * 1024;

/// Elements below which handing tasks to other threads costs more than it brings.
const PARALLEL_THRESHOLD: usize = 64 * 1024;

/// The tensor with its elements in order, from the start of its buffer to the end; copied only where it is a view.
/// Takes the tensor by value, so that a buffer that nobody else holds stays unshared and can be overwritten.
pub(super) fn dense(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// A tensor without a graph as the kernels take it, dense; or as it came, where no kernel does.
pub(super) fn plain<const D: usize>(tensor: Tensor<D>) -> Result<FlexTensor, Box<Tensor<D>>> {
    if !runs_on_flex(&tensor) {
        return Err(Box::new(tensor));
    }
    primitive(tensor)
}

/// The same for tensors of bf16.
pub(super) fn plain_bf16<const D: usize>(tensor: Tensor<D>) -> Result<FlexTensor, Box<Tensor<D>>> {
    if tensor.dtype() != DType::BF16 || tensor.device() != Device::flex() {
        return Err(Box::new(tensor));
    }
    primitive(tensor)
}

/// The same for bytes.
pub(super) fn plain_bytes(tensor: Tensor<1, Int>) -> Result<FlexTensor, Box<Tensor<1, Int>>> {
    if tensor.dtype() != DType::U8 || tensor.device() != Device::flex() {
        return Err(Box::new(tensor));
    }
    match tensor.clone().try_into_primitive::<Flex>() {
        Ok(primitive) => {
            drop(tensor);
            Ok(dense(primitive))
        }
        Err(_) => Err(Box::new(tensor)),
    }
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> Result<FlexTensor, Box<Tensor<D>>> {
    if tensor.device().is_autodiff() {
        return Err(Box::new(tensor));
    }
    match tensor.clone().try_into_primitive::<Flex>() {
        Ok(primitive) => {
            drop(tensor);
            Ok(dense(primitive))
        }
        Err(_) => Err(Box::new(tensor)),
    }
}

/// A tensor around a vector, without a copy.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The extents of a tensor of D dimensions.
pub(super) fn dimensions<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|axis| shape[axis])
}

/// The elements of a dense f32 tensor.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage::<f32>()
}

/// A vector that `write` fills, without the zeros that `vec!` would write first.
///
/// # Safety
/// `write` writes every element.
pub(super) unsafe fn write_all(length: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    write(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: the capacity is there, and the caller promises that the elements are.
    unsafe { values.set_len(length) };
    values
}

/// Runs the tasks of a kernel over `elements` elements, on threads where that pays.
pub(super) fn for_each_task<T: Send>(
    tasks: impl IndexedParallelIterator<Item = T>,
    elements: usize,
    run: impl Fn(T) + Sync + Send,
) {
    // One task holds all work where threads do not pay.
    let least = if elements < PARALLEL_THRESHOLD { usize::MAX } else { 1 };
    tasks.with_min_len(least).for_each(run);
}
