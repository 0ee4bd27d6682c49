//! Root mean square layer normalisation (Zhang and Sennrich, 2019), as Transformers computes it.

#[cfg(feature = "cube")]
mod cube;

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{ROWS, dense, dimensions, for_each_task, tensor, values, write_all};
use super::{has_kernel, vector};

/// `x / sqrt(mean(x²) + eps) * (offset + weight)` over the last dimension. x `[rows, size]`, weight `[size]`, output
/// `[rows, size]`. Also the QK-norm of Qwen3, on `[tokens * heads, head_dim]`. offset is 0, or 1 in Gemma.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64, offset: f32) -> Tensor<2> {
    if !has_kernel(&x) {
        return rms_norm_reference(x, weight, eps, offset);
    }
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as RmsNormOps>::rms_norm_forward(x, weight, eps, offset))
}

/// The same in plain tensor operations. Without an offset: normalised in f32, cast back, then multiplied with the weight
/// (Llama). With one: everything in f32 (Gemma).
pub fn rms_norm_reference(x: Tensor<2>, weight: Tensor<1>, eps: f64, offset: f32) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let mean_square = x.clone().square().mean_dim(1);
    let normalized = x / (mean_square + eps).sqrt();
    if offset == 0.0 {
        return normalized.cast(dtype) * weight.unsqueeze::<2>();
    }
    let weight = weight.cast(DType::F32) + offset;
    (normalized * weight.unsqueeze::<2>()).cast(dtype)
}

/// The normalisation as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait RmsNormOps: Backend {
    /// The output `[rows, size]`.
    fn rms_norm_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, offset: f32) -> FloatTensor<Self>;
}

/// The normalisation with a backward pass.
pub trait RmsNormBackward: RmsNormOps {
    /// The output, and `1 / sqrt(mean(x²) + eps)` `[rows]` for the backward pass.
    fn rms_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        offset: f32,
    ) -> [FloatTensor<Self>; 2];

    /// The gradient of x and, where wanted, of the weight.
    fn rms_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        weight_wanted: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);
}

/// What the backward pass keeps.
#[derive(Clone, Debug)]
pub struct Saved<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    inverse: FloatTensor<B>,
    offset: f32,
}

impl RmsNormOps for Flex {
    fn rms_norm_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, offset: f32) -> FloatTensor<Self> {
        let [output, _] = Self::rms_norm_saving(x, weight, eps, offset);
        output
    }
}

impl RmsNormBackward for Flex {
    fn rms_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        offset: f32,
    ) -> [FloatTensor<Self>; 2] {
        let (x, weight) = (dense(x), dense(weight));
        let [rows, size] = dimensions(&x);
        assert_eq!(
            dimensions::<1>(&weight),
            [size],
            "weight of a normalisation over {size} features"
        );
        let mut inverse = vec![0.0; rows];
        let (input, weight) = (values(&x), values(&weight));
        // SAFETY: `forward` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(rows * size, |output| {
                let tasks = output.par_chunks_mut(ROWS * size).zip(input.par_chunks(ROWS * size));
                for_each_task(
                    tasks.zip(inverse.par_chunks_mut(ROWS)),
                    rows * size,
                    |((output, input), inverse)| {
                        forward(input, weight, (eps, offset), output, inverse);
                    },
                );
            })
        };
        [tensor(output, [rows, size]), tensor(inverse, [rows])]
    }

    fn rms_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        weight_wanted: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (mut gradient, x, weight) = (dense(gradient), dense(saved.x), dense(saved.weight));
        let offset = saved.offset;
        let [rows, size] = dimensions(&x);
        let (input, weight, inverse) = (values(&x), values(&weight), values(&saved.inverse));
        // One row of sums per task, added in order below: the same bits whatever the number of threads.
        let mut sums = vec![0.0; if weight_wanted { rows.div_ceil(ROWS) * size } else { 0 }];
        let output = gradient.storage_mut::<f32>();
        let tasks = output
            .par_chunks_mut(ROWS * size)
            .zip(input.par_chunks(ROWS * size))
            .zip(inverse.par_chunks(ROWS));
        if weight_wanted {
            for_each_task(
                tasks.zip(sums.par_chunks_mut(size)),
                rows * size,
                |(((output, input), inverse), sums)| {
                    add_weight_gradient(output, input, inverse, sums);
                    backward(output, input, weight, offset, inverse);
                },
            );
        } else {
            for_each_task(tasks, rows * size, |((output, input), inverse)| {
                backward(output, input, weight, offset, inverse)
            });
        }
        let weight_gradient = weight_wanted.then(|| {
            let mut total = vec![0.0; size];
            for sums in sums.chunks_exact(size) {
                total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
            tensor(total, [size])
        });
        (gradient, weight_gradient)
    }
}

/// Normalises rows and keeps their inverse roots.
#[multiversion(targets = "simd")]
fn forward(x: &[f32], weight: &[f32], (eps, offset): (f64, f32), output: &mut [MaybeUninit<f32>], inverse: &mut [f32]) {
    let size = weight.len();
    let rows = x.chunks_exact(size).zip(output.chunks_exact_mut(size)).zip(inverse);
    for ((x, output), inverse) in rows {
        let mean_square = vector::sum_by(x, |x| x * x) / size as f64;
        *inverse = (1.0 / (mean_square + eps).sqrt()) as f32;
        for ((x, weight), output) in x.iter().zip(weight).zip(output) {
            output.write(x * *inverse * (offset + weight));
        }
    }
}

/// The gradient g of the output becomes that of x: `r (w g - x r² mean(w g x))` with r the inverse root and
/// w the sum of weight and offset.
#[multiversion(targets = "simd")]
fn backward(gradient: &mut [f32], x: &[f32], weight: &[f32], offset: f32, inverse: &[f32]) {
    let size = weight.len();
    let rows = gradient.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(inverse);
    for ((gradient, x), inverse) in rows {
        gradient
            .iter_mut()
            .zip(weight)
            .for_each(|(gradient, weight)| *gradient *= offset + weight);
        let mean = vector::sum_pairs_by(gradient, x, |gradient, x| gradient * x) / size as f64;
        let factor = (mean * f64::from(*inverse) * f64::from(*inverse)) as f32;
        for (gradient, x) in gradient.iter_mut().zip(x) {
            *gradient = inverse * (*gradient - x * factor);
        }
    }
}

/// Adds `g x r` of each row.
#[multiversion(targets = "simd")]
fn add_weight_gradient(gradient: &[f32], x: &[f32], inverse: &[f32], sums: &mut [f32]) {
    let size = sums.len();
    for ((gradient, x), inverse) in gradient.chunks_exact(size).zip(x.chunks_exact(size)).zip(inverse) {
        for ((sum, gradient), x) in sums.iter_mut().zip(gradient).zip(x) {
            *sum += gradient * (x * inverse);
        }
    }
}

impl<B: RmsNormBackward, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, offset: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNormStep;
        impl<B: RmsNormBackward> Backward<B, 2> for RmsNormStep {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [x, weight] = ops.parents;
                let gradients = B::rms_norm_backward(gradient, ops.state, weight.is_some());
                if let Some(node) = x {
                    grads.register::<B>(node.id, gradients.0);
                }
                if let (Some(node), Some(gradient)) = (weight, gradients.1) {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
        let prepared = RmsNormStep
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let [output, inverse] = B::rms_norm_saving(x.clone(), weight.clone(), eps, offset);
                let saved = Saved {
                    x,
                    weight,
                    inverse,
                    offset,
                };
                prepared.finish(saved, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::rms_norm_forward(x, weight, eps, offset)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn run(
        x: &Tensor<2>,
        weight: &Tensor<1>,
        outer: &Tensor<2>,
        offset: f32,
        reference: bool,
    ) -> (Tensor<2>, Tensor<2>, Tensor<1>) {
        let (x, weight) = (
            x.clone().autodiff().require_grad(),
            weight.clone().autodiff().require_grad(),
        );
        let norm = if reference { rms_norm_reference } else { rms_norm };
        let output = norm(x.clone(), weight.clone(), 1e-5, offset);
        let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
        (output.inner(), x.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
    }

    #[test]
    fn output_and_gradients_equal_the_reference() {
        for (rows, size) in [(1, 1), (3, 5), (1, 64), (33, 31), (70, 96), (300, 512), (1, 4096)] {
            let (x, weight, outer) = (random([rows, size]) * 3.0, random([size]), random([rows, size]));
            for offset in [0.0, 1.0] {
                let kernel = run(&x, &weight, &outer, offset, false);
                let reference = run(&x, &weight, &outer, offset, true);
                check_equal(kernel.0, reference.0, 2e-6, "output");
                check_equal(kernel.1, reference.1, 5e-6, "gradient of x");
                check_equal(kernel.2, reference.2, 1e-5, "gradient of the weight");
            }
        }
    }

    #[test]
    fn a_frozen_weight_and_a_view_are_no_obstacle() {
        let (x, weight) = (random([7, 40]), random([7]));
        let tracked = x.clone().autodiff().require_grad();
        let output = rms_norm(tracked.clone().transpose(), weight.clone().autodiff(), 1e-6, 0.0);
        let gradient = tracked.grad(&output.square().sum().backward()).unwrap();
        let tracked = x.autodiff().require_grad();
        let output = rms_norm_reference(tracked.clone().transpose(), weight.autodiff(), 1e-6, 0.0);
        let reference = tracked.grad(&output.square().sum().backward()).unwrap();
        check_equal(gradient, reference, 1e-5, "gradient of x");
    }

    /// Gemma adds in f32: the small weight is not lost beside the 1, as it is where the sum is rounded to bf16.
    #[test]
    fn an_offset_is_added_in_f32() {
        let device = burn::tensor::Device::flex();
        let x = Tensor::<2>::from_data([[3.0, 4.0]], &device).cast(DType::BF16);
        let weight = Tensor::<1>::from_data([0.003, -0.003], &device).cast(DType::BF16);
        let output = rms_norm(x, weight, 0.0, 1.0).cast(DType::F32);
        let expected = Tensor::<2>::from_data([[0.851_562_5, 1.125]], &device);
        check_equal(output, expected, 0.0, "output");
    }

    #[test]
    fn the_input_is_left_alone() {
        let (x, weight) = (random([50, 16]), random([16]));
        let before = x.clone().into_data();
        let tracked = x.clone().autodiff().require_grad();
        rms_norm(tracked, weight.autodiff(), 1e-6, 0.0).sum().backward();
        x.into_data().assert_eq(&before, true);
    }
}
