//! Layer normalisation (Ba, Kiros and Hinton, 2016), as `torch.nn.LayerNorm` and Transformers' `CohereLayerNorm` compute
//! it: everything in f32, whatever the number format.

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

/// `(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias` over the last dimension. x and output
/// `[rows, size]`, weight and bias `[size]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<2> {
    if !has_kernel(&x) {
        return layer_norm_reference(x, weight, bias, eps);
    }
    let options = Options {
        eps,
        has_bias: bias.is_some(),
    };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    // A bias that is absent is represented by the weight; the options say so.
    let bias = bias.map_or_else(|| weight.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as LayerNormOps>::layer_norm_forward(x, weight, bias, options))
}

/// The same in plain tensor operations.
pub fn layer_norm_reference(x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    let normalized = centred / (variance + eps).sqrt();
    let scaled = normalized * weight.cast(DType::F32).unsqueeze::<2>();
    let output = match bias {
        Some(bias) => scaled + bias.cast(DType::F32).unsqueeze::<2>(),
        None => scaled,
    };
    output.cast(dtype)
}

/// What the operation knows besides its tensors.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    eps: f64,
    has_bias: bool,
}

/// The normalisation as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait LayerNormOps: Backend {
    /// The output `[rows, size]`.
    fn layer_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// The normalisation with a backward pass.
pub trait LayerNormBackward: LayerNormOps {
    /// The output; for the backward pass the means `[rows]` and `1 / sqrt(variance + eps)` `[rows]`.
    fn layer_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> [FloatTensor<Self>; 3];

    /// The gradient of x and, where wanted, of weight and bias.
    fn layer_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 2]);
}

/// What the backward pass keeps.
#[derive(Clone, Debug)]
pub struct Saved<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    mean: FloatTensor<B>,
    inverse: FloatTensor<B>,
}

/// Which gradients a backward pass needs besides that of x.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    weight: bool,
    bias: bool,
}

impl LayerNormOps for Flex {
    fn layer_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let [output, ..] = Self::layer_norm_saving(x, weight, bias, options);
        output
    }
}

impl LayerNormBackward for Flex {
    fn layer_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> [FloatTensor<Self>; 3] {
        let (x, weight) = (dense(x), dense(weight));
        let bias = options.has_bias.then(|| dense(bias));
        let [rows, size] = dimensions(&x);
        for vector in std::iter::once(&weight).chain(&bias) {
            assert_eq!(
                dimensions::<1>(vector),
                [size],
                "weight or bias of a normalisation over {size} features"
            );
        }
        let (mut mean, mut inverse) = (vec![0.0; rows], vec![0.0; rows]);
        let (input, weight, bias) = (values(&x), values(&weight), bias.as_ref().map(values));
        // SAFETY: `forward` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(rows * size, |output| {
                let tasks = output.par_chunks_mut(ROWS * size).zip(input.par_chunks(ROWS * size));
                let statistics = mean.par_chunks_mut(ROWS).zip(inverse.par_chunks_mut(ROWS));
                for_each_task(
                    tasks.zip(statistics),
                    rows * size,
                    |((output, input), (mean, inverse))| {
                        measure(input, options.eps, mean, inverse);
                        forward(input, weight, bias, output, mean, inverse);
                    },
                );
            })
        };
        [
            tensor(output, [rows, size]),
            tensor(mean, [rows]),
            tensor(inverse, [rows]),
        ]
    }

    fn layer_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 2]) {
        let (mut gradient, x, weight) = (dense(gradient), dense(saved.x), dense(saved.weight));
        let [rows, size] = dimensions(&x);
        let (input, weight) = (values(&x), values(&weight));
        let (mean, inverse) = (values(&saved.mean), values(&saved.inverse));
        // Per task a row of sums for the weight, then one for the bias, where wanted; added in order below: the same bits
        // whatever the number of threads.
        let for_weight = if wanted.weight { size } else { 0 };
        let columns = for_weight + if wanted.bias { size } else { 0 };
        let mut sums = vec![0.0; rows.div_ceil(ROWS) * columns];
        let output = gradient.storage_mut::<f32>();
        let tasks = output
            .par_chunks_mut(ROWS * size)
            .zip(input.par_chunks(ROWS * size))
            .zip(mean.par_chunks(ROWS).zip(inverse.par_chunks(ROWS)));
        if columns > 0 {
            let tasks = tasks.zip(sums.par_chunks_mut(columns));
            for_each_task(tasks, rows * size, |(((output, input), (mean, inverse)), sums)| {
                let (weight_sums, bias_sums) = sums.split_at_mut(for_weight);
                add_weight_gradient(output, input, mean, inverse, weight_sums);
                add_bias_gradient(output, bias_sums);
                backward(output, input, weight, mean, inverse);
            });
        } else {
            for_each_task(tasks, rows * size, |((output, input), (mean, inverse))| {
                backward(output, input, weight, mean, inverse);
            });
        }
        let total = |first: usize| {
            let mut total = vec![0.0; size];
            for sums in sums.chunks_exact(columns) {
                let sums = &sums[first..first + size];
                total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
            tensor(total, [size])
        };
        let weight_gradient = wanted.weight.then(|| total(0));
        let bias_gradient = wanted.bias.then(|| total(for_weight));
        (gradient, [weight_gradient, bias_gradient])
    }
}

/// Mean and inverse standard deviation of each row.
#[multiversion(targets = "simd")]
fn measure(x: &[f32], eps: f64, mean: &mut [f32], inverse: &mut [f32]) {
    let size = x.len() / mean.len();
    for ((x, mean), inverse) in x.chunks_exact(size).zip(mean).zip(inverse) {
        let centre = (vector::sum_by(x, |x| x) / size as f64) as f32;
        let squares = vector::sum_by(x, |x| (x - centre) * (x - centre));
        *mean = centre;
        *inverse = (1.0 / (squares / size as f64 + eps).sqrt()) as f32;
    }
}

/// Normalises rows.
#[multiversion(targets = "simd")]
fn forward(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    output: &mut [MaybeUninit<f32>],
    mean: &[f32],
    inverse: &[f32],
) {
    let size = weight.len();
    let rows = x.chunks_exact(size).zip(output.chunks_exact_mut(size));
    for ((x, output), (mean, inverse)) in rows.zip(mean.iter().zip(inverse)) {
        let features = x.iter().zip(weight).zip(output);
        match bias {
            Some(bias) => {
                for (((x, weight), output), bias) in features.zip(bias) {
                    output.write((x - mean) * inverse * weight + bias);
                }
            }
            None => {
                for ((x, weight), output) in features {
                    output.write((x - mean) * inverse * weight);
                }
            }
        }
    }
}

/// The gradient g of the output becomes that of x: with `h = (x - mean) r` and r the inverse,
/// `r (w g - mean(w g) - h mean(w g h))`.
#[multiversion(targets = "simd")]
fn backward(gradient: &mut [f32], x: &[f32], weight: &[f32], mean: &[f32], inverse: &[f32]) {
    let size = weight.len();
    let rows = gradient.chunks_exact_mut(size).zip(x.chunks_exact(size));
    for ((gradient, x), (mean, inverse)) in rows.zip(mean.iter().zip(inverse)) {
        gradient
            .iter_mut()
            .zip(weight)
            .for_each(|(gradient, weight)| *gradient *= weight);
        let average = (vector::sum_by(gradient, |gradient| gradient) / size as f64) as f32;
        let along = vector::sum_pairs_by(gradient, x, |gradient, x| gradient * (x - mean)) / size as f64;
        let factor = (along * f64::from(*inverse) * f64::from(*inverse)) as f32;
        for (gradient, x) in gradient.iter_mut().zip(x) {
            *gradient = inverse * (*gradient - average - (x - mean) * factor);
        }
    }
}

/// Adds `g (x - mean) r` of each row; nothing where there are no sums.
#[multiversion(targets = "simd")]
fn add_weight_gradient(gradient: &[f32], x: &[f32], mean: &[f32], inverse: &[f32], sums: &mut [f32]) {
    let size = sums.len();
    if size == 0 {
        return;
    }
    let rows = gradient.chunks_exact(size).zip(x.chunks_exact(size));
    for ((gradient, x), (mean, inverse)) in rows.zip(mean.iter().zip(inverse)) {
        for ((sum, gradient), x) in sums.iter_mut().zip(gradient).zip(x) {
            *sum += gradient * ((x - mean) * inverse);
        }
    }
}

/// Adds g of each row; nothing where there are no sums.
#[multiversion(targets = "simd")]
fn add_bias_gradient(gradient: &[f32], sums: &mut [f32]) {
    let size = sums.len();
    if size == 0 {
        return;
    }
    for gradient in gradient.chunks_exact(size) {
        sums.iter_mut()
            .zip(gradient)
            .for_each(|(sum, gradient)| *sum += gradient);
    }
}

impl<B: LayerNormBackward, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn layer_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LayerNormStep;
        impl<B: LayerNormBackward> Backward<B, 3> for LayerNormStep {
            type State = (Saved<B>, Options);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (saved, options) = ops.state;
                let [x, weight, bias] = ops.parents;
                let bias = bias.filter(|_| options.has_bias);
                let wanted = Wanted {
                    weight: weight.is_some(),
                    bias: bias.is_some(),
                };
                let (for_x, gradients) = B::layer_norm_backward(gradient, saved, wanted);
                if let Some(node) = x {
                    grads.register::<B>(node.id, for_x);
                }
                for (node, gradient) in [weight, bias].into_iter().zip(gradients) {
                    if let (Some(node), Some(gradient)) = (node, gradient) {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let prepared = LayerNormStep
            .prepare::<C>([x.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let [output, mean, inverse] = B::layer_norm_saving(x.clone(), weight.clone(), bias, options);
                let saved = Saved {
                    x,
                    weight,
                    mean,
                    inverse,
                };
                prepared.finish((saved, options), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::layer_norm_forward(x, weight, bias, options)),
        }
    }
}

#[cfg(test)]
mod tests;
