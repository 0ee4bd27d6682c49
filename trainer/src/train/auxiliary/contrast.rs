//! What stands for each sentence of a micro-batch, and the contrast of sentences over several micro-batches.

use std::cmp::Ordering;

use burn::tensor::{DType, Tensor};

use crate::collectives::Collectives;
use crate::engine::inputs::Inputs;
use crate::objectives::averages::averages;
use crate::objectives::middle_layer::{Contrast, MiddleLayer, pooled_ranges};

/// The loss over the contrasts of several micro-batches as one, and its gradient by the pooled states of all of them, which lie
/// one behind another.
pub(super) fn contrast_all<'a>(
    loss: &MiddleLayer,
    pooled: Vec<Tensor<2>>,
    contrasts: impl Iterator<Item = &'a Contrast>,
) -> (f64, Tensor<2>) {
    let mut all = Contrast::default();
    let mut offset = 0;
    for contrast in contrasts {
        let moved = contrast.pairs.iter();
        all.pairs
            .extend(moved.map(|(anchor, other)| (anchor + offset, other + offset)));
        all.groups.extend(&contrast.groups);
        offset += 2 * contrast.pairs.len();
    }
    loss.loss(&Tensor::cat(pooled, 0), &all)
}

/// The rows of all processes, one after another: `counts` says how many each has. Those of a process that has none are left out,
/// and so is whatever it gives.
pub fn gather_rows(collectives: &dyn Collectives, own: Tensor<2>, counts: &[usize]) -> Vec<Tensor<2>> {
    let most = counts.iter().copied().max().unwrap_or(0);
    if counts.len() < 2 || most == 0 {
        return vec![own];
    }
    let [rows, width] = own.dims();
    let full = match rows.cmp(&most) {
        Ordering::Less => {
            let device = own.device();
            let padding = Tensor::zeros([most - rows, width], (&device, own.dtype()));
            Tensor::cat(vec![own, padding], 0)
        }
        Ordering::Equal => own,
        Ordering::Greater => own.narrow(0, 0, most),
    };
    let all = collectives.all_gather(full.reshape([most * width]));
    let all = all.reshape([counts.len() * most, width]);
    let there = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    there
        .map(|(rank, count)| all.clone().narrow(0, rank * most, *count))
        .collect()
}

/// What stands for each sequence, `[sequences, hidden]` in f32.
pub fn pool(loss: &MiddleLayer, states: &Tensor<2>, inputs: &Inputs) -> Tensor<2> {
    let matrix = averages(
        &pooled_ranges(loss.pool, &inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.matmul(states.clone().cast(DType::F32))
}

/// The gradient by the states `[tokens, hidden]` from that by what stands for each sequence.
pub fn unpool(loss: &MiddleLayer, by_pooled: Tensor<2>, inputs: &Inputs, states: &Tensor<2>) -> Tensor<2> {
    let matrix = averages(
        &pooled_ranges(loss.pool, &inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.transpose().matmul(by_pooled).cast(states.dtype())
}
