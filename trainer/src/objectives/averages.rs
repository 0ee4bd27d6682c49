//! Means of hidden states over ranges of tokens, as a product with a matrix: what stands for a sentence or a word.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The matrix `[ranges, tokens]` whose product with states `[tokens, hidden]` is the mean over each range, `[ranges,
/// hidden]`; the product of its transpose with gradients by the means gives those by the states.
pub fn averages(ranges: &[Range<usize>], tokens: usize, device: &Device) -> Tensor<2> {
    let mut values = vec![0.0f32; ranges.len() * tokens];
    for (row, range) in ranges.iter().enumerate() {
        let share = 1.0 / range.len().max(1) as f32;
        values[row * tokens..][range.clone()].fill(share);
    }
    Tensor::from_data(TensorData::new(values, [ranges.len(), tokens]), (device, DType::F32))
}
