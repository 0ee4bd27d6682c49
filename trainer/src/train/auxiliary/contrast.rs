//! What stands for each sentence of a micro-batch, and the contrast of sentences over several micro-batches.

use burn::tensor::{DType, Tensor};

use crate::engine::inputs::Inputs;
use crate::objectives::averages::averages;
use crate::objectives::middle_layer::{Contrast, MiddleLayer};

/// The loss over the contrasts of several micro-batches as one, and its gradient by the pooled states of each.
pub fn contrast_all(loss: &MiddleLayer, pooled: &[Tensor<2>], contrasts: &[Contrast]) -> (f64, Vec<Tensor<2>>) {
    let sizes: Vec<usize> = pooled.iter().map(|pooled| pooled.dims()[0]).collect();
    let mut all = Contrast::default();
    let mut offset = 0;
    for (contrast, size) in contrasts.iter().zip(&sizes) {
        let moved = contrast
            .pairs
            .iter()
            .map(|(anchor, other)| (anchor + offset, other + offset));
        all.pairs.extend(moved);
        all.groups.extend(&contrast.groups);
        offset += size;
    }
    let (value, gradient) = loss.loss(&Tensor::cat(pooled.to_vec(), 0), &all);
    let mut start = 0;
    let pieces = sizes.iter().map(|size| {
        let piece = gradient.clone().narrow(0, start, *size);
        start += size;
        piece
    });
    (value, pieces.collect())
}

/// What stands for each sequence, `[sequences, hidden]` in f32.
pub fn pool(loss: &MiddleLayer, states: &Tensor<2>, inputs: &Inputs) -> Tensor<2> {
    let matrix = averages(
        &loss.pooled_ranges(&inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.matmul(states.clone().cast(DType::F32))
}

/// The gradient by the states `[tokens, hidden]` from that by what stands for each sequence.
pub fn unpool(loss: &MiddleLayer, by_pooled: Tensor<2>, inputs: &Inputs, states: &Tensor<2>) -> Tensor<2> {
    let matrix = averages(
        &loss.pooled_ranges(&inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.transpose().matmul(by_pooled).cast(states.dtype())
}
