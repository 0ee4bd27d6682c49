//! The loss in CubeCL: a row of logits per cube. The maximum and the sum of the exponentials are taken in one pass over
//! the row, the gradient overwrites the logits in a second.

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::check_targets;
use crate::ops::cube::{RowCubes, buffer, dimensions, element, empty, lanes, own, tensor, upload};

/// See [`super::softmax_cross_entropy`].
pub(super) fn softmax_cross_entropy(logits: CubeTensor, targets: &[u32], scale: &[f32]) -> (Vec<f32>, Tensor<2>) {
    let logits = own(logits);
    (run(&logits, targets, Some(scale)), tensor(logits))
}

/// See [`super::target_log_probs`].
pub(super) fn target_log_probs(logits: CubeTensor, targets: &[u32]) -> Vec<f32> {
    run(&logits, targets, None)
}

/// The log-probabilities of the targets; with scales, the logits become their gradient.
fn run(logits: &CubeTensor, targets: &[u32], scale: Option<&[f32]>) -> Vec<f32> {
    let [rows, vocabulary] = dimensions(logits);
    check_targets(rows, vocabulary, targets);
    if rows == 0 {
        return Vec::new();
    }
    let client = &logits.client;
    let log_probs = empty(logits, [rows], DType::F32);
    let lanes = lanes(logits.dtype, vocabulary);
    let cubes = RowCubes::new(client, rows, vocabulary / lanes);
    // SAFETY: the kernel touches only the rows that there are, the targets were compared with the vocabulary, and it
    // writes to the logits only with scales, when the caller made them its own.
    unsafe {
        kernels::cross_entropy::launch_unchecked(
            client,
            cubes.count(),
            cubes.dim(),
            lanes,
            buffer(logits),
            upload(client, targets),
            upload(client, scale.unwrap_or(&[0.0])),
            buffer(&log_probs),
            rows,
            vocabulary / lanes,
            scale.is_some(),
            cubes.width,
            cubes.height,
            element(logits.dtype),
        );
    }
    tensor::<1>(log_probs).into_data().iter::<f32>().collect()
}

mod kernels {
    use cubecl::prelude::*;

    use crate::ops::cube::{row_maximum, row_sum};

    /// The log-probability of a row's target; the logits become `scale * (softmax - onehot)` if `differentiate`.
    #[cube(launch_unchecked)]
    pub fn cross_entropy<F: Float, N: Size>(
        logits: &mut [Vector<F, N>],
        targets: &[u32],
        scale: &[f32],
        log_probs: &mut [f32],
        rows: usize,
        vectors: usize,
        #[comptime] differentiate: bool,
        #[comptime] width: usize,
        #[comptime] height: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
        let start = row * vectors;
        let lanes = N::value().comptime();
        let mut maximum = f32::MIN;
        let mut sum = 0.0f32;
        let mut target = 0usize;
        let mut target_logit = 0.0f32;
        if row < rows {
            target = targets[row] as usize;
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let values = Vector::<f32, N>::cast_from(logits[start + column]);
                #[unroll]
                for lane in 0..lanes {
                    let value = values.extract(lane);
                    if value > maximum {
                        sum = sum * (maximum - value).exp() + 1.0f32;
                        maximum = value;
                    } else {
                        sum += (value - maximum).exp();
                    }
                    if column * lanes + lane == target {
                        target_logit = value;
                    }
                }
                column += width;
            }
        }
        let largest = row_maximum(maximum, width, height);
        let total = row_sum(sum * (maximum - largest).exp(), width, height);
        // All units but one add nothing.
        let logit = row_sum(target_logit, width, height);
        if row < rows {
            if UNIT_POS_X == 0 {
                log_probs[row] = logit - largest - total.ln();
            }
            if comptime!(differentiate) {
                let scale = scale[row];
                let factor = scale / total;
                let mut column = UNIT_POS_X as usize;
                while column < vectors {
                    let values = Vector::<f32, N>::cast_from(logits[start + column]);
                    let mut gradients = Vector::<f32, N>::new(0.0f32);
                    #[unroll]
                    for lane in 0..lanes {
                        let mut gradient = (values.extract(lane) - largest).exp() * factor;
                        if column * lanes + lane == target {
                            gradient -= scale;
                        }
                        gradients.insert(lane, gradient);
                    }
                    logits[start + column] = Vector::<F, N>::cast_from(gradients);
                    column += width;
                }
            }
        }
    }
}
