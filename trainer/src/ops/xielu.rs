//! The activation function xIELU (Huang and Schlag, "Deriving activation functions using integration", 2024), as
//! Transformers' `XIELUActivation` computes it in Python. The CPU has a kernel; elsewhere, on devices of CubeCL too, the
//! reference runs.

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor, activation};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{ELEMENTS, dense, dimensions, for_each_task, tensor, values, write_all};
use super::{runs_on_flex, vector};

/// With `p = softplus(alpha_p)` and `n = beta + softplus(alpha_n)`: `p x² + beta x` where x > 0, else
/// `n (exp(min(x, eps)) - 1 - x) + beta x`. x and output `[rows, features]`, alpha_p and alpha_n `[1]`, eps below 0.
pub fn xielu(x: Tensor<2>, alpha_p: Tensor<1>, alpha_n: Tensor<1>, beta: f32, eps: f32) -> Tensor<2> {
    if !runs_on_flex(&x) {
        return xielu_reference(x, alpha_p, alpha_n, beta, eps);
    }
    let [alpha_p, alpha_n] = [alpha_p, alpha_n].map(|alpha| alpha.cast(DType::F32).into_dispatch());
    let constants = Constants { beta, eps };
    Tensor::from_dispatch(<Dispatch as XieluOps>::xielu_forward(
        x.into_dispatch(),
        alpha_p,
        alpha_n,
        constants,
    ))
}

/// The same in plain tensor operations, in f32.
pub fn xielu_reference(x: Tensor<2>, alpha_p: Tensor<1>, alpha_n: Tensor<1>, beta: f32, eps: f32) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let softplus = |alpha: Tensor<1>| activation::softplus(alpha.cast(DType::F32), 1.0).unsqueeze::<2>();
    let (alpha_p, alpha_n) = (softplus(alpha_p), softplus(alpha_n) + beta);
    let exponent = x.clone().clamp_max(eps);
    // exp(y) - 1 without cancellation near 0.
    let exponential = (exponent.clone() * 0.5).tanh() * (exponent.exp() + 1.0);
    let negative = (exponential - x.clone()).mask_fill(x.clone().greater_elem(0.0), 0.0);
    let positive = activation::relu(x.clone()).square();
    (positive * alpha_p + negative * alpha_n + x * beta).cast(dtype)
}

/// The fixed numbers of the function.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    beta: f32,
    eps: f32,
}

/// The function as an operation of a backend.
#[backend_extension(Flex, Autodiff)]
pub trait XieluOps: Backend {
    /// The output `[rows, features]`.
    fn xielu_forward(
        x: FloatTensor<Self>,
        alpha_p: FloatTensor<Self>,
        alpha_n: FloatTensor<Self>,
        constants: Constants,
    ) -> FloatTensor<Self>;
}

/// The function with a backward pass.
pub trait XieluBackward: XieluOps {
    /// The gradient of x, in its buffer where nobody else holds that, and of the alphas where they are wanted.
    fn xielu_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        constants: Constants,
        alphas_wanted: bool,
    ) -> (FloatTensor<Self>, Option<[FloatTensor<Self>; 2]>);
}

/// What the backward pass keeps.
#[derive(Clone, Debug)]
pub struct Saved<B: Backend> {
    x: FloatTensor<B>,
    alpha_p: FloatTensor<B>,
    alpha_n: FloatTensor<B>,
}

/// The function with its parameters as they enter it.
#[derive(Clone, Copy)]
struct Curve {
    p: f32,
    n: f32,
    beta: f32,
    eps: f32,
}

impl Curve {
    fn new(alpha_p: &FlexTensor, alpha_n: &FlexTensor, constants: Constants) -> Self {
        Self {
            p: softplus(single(alpha_p)) as f32,
            n: (f64::from(constants.beta) + softplus(single(alpha_n))) as f32,
            beta: constants.beta,
            eps: constants.eps,
        }
    }

    /// What n is multiplied with where x is not positive.
    #[inline(always)]
    fn negative(self, x: f32) -> f32 {
        let bounded = if x > self.eps { self.eps } else { x };
        vector::exp_minus_one(bounded) - x
    }

    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        let (positive, negative) = (self.p * x * x, self.n * self.negative(x));
        let bent = if x > 0.0 { positive } else { negative };
        self.beta * x + bent
    }

    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        let below = vector::exp_minus_one(x);
        let negative = if x > self.eps { -1.0 } else { below };
        let (positive, negative) = (2.0 * self.p * x, self.n * negative);
        let bent = if x > 0.0 { positive } else { negative };
        self.beta + bent
    }
}

/// The element of a tensor `[1]`.
fn single(alpha: &FlexTensor) -> f64 {
    assert_eq!(dimensions::<1>(alpha), [1], "parameter of xIELU");
    f64::from(values(alpha)[0])
}

/// `ln(1 + exp(x))`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl XieluOps for Flex {
    fn xielu_forward(
        x: FloatTensor<Self>,
        alpha_p: FloatTensor<Self>,
        alpha_n: FloatTensor<Self>,
        constants: Constants,
    ) -> FloatTensor<Self> {
        let (x, alpha_p, alpha_n) = (dense(x), dense(alpha_p), dense(alpha_n));
        let curve = Curve::new(&alpha_p, &alpha_n, constants);
        let shape = dimensions::<2>(&x);
        let length = shape[0] * shape[1];
        // SAFETY: `forward` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(length, |output| {
                let tasks = output.par_chunks_mut(ELEMENTS).zip(values(&x).par_chunks(ELEMENTS));
                for_each_task(tasks, length, |(output, x)| forward(x, output, curve));
            })
        };
        tensor(output, shape)
    }
}

impl XieluBackward for Flex {
    fn xielu_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        constants: Constants,
        alphas_wanted: bool,
    ) -> (FloatTensor<Self>, Option<[FloatTensor<Self>; 2]>) {
        let (gradient, mut x) = (dense(gradient), dense(saved.x));
        let (alpha_p, alpha_n) = (dense(saved.alpha_p), dense(saved.alpha_n));
        let curve = Curve::new(&alpha_p, &alpha_n, constants);
        let gradients = values(&gradient);
        // The sums of each task, added in order below: the same bits whatever the number of threads.
        let mut sums = vec![[0.0f64; 2]; gradients.len().div_ceil(ELEMENTS)];
        // A buffer that somebody else holds is copied here.
        let tasks = x.storage_mut::<f32>().par_chunks_mut(ELEMENTS);
        let tasks = tasks.zip(gradients.par_chunks(ELEMENTS)).zip(&mut sums);
        for_each_task(tasks, gradients.len(), |((x, gradient), sums)| {
            if alphas_wanted {
                *sums = along_alphas(gradient, x, curve);
            }
            backward(gradient, x, curve);
        });
        let alphas = alphas_wanted.then(|| {
            let total = |index: usize| sums.iter().map(|sums| sums[index]).sum::<f64>();
            // The derivative of softplus is the sigmoid.
            let chained = |sum: f64, alpha: &FlexTensor| {
                let sigmoid = 1.0 / (1.0 + (-single(alpha)).exp());
                tensor(vec![(sum * sigmoid) as f32], [1])
            };
            [chained(total(0), &alpha_p), chained(total(1), &alpha_n)]
        });
        (x, alphas)
    }
}

#[multiversion(targets = "simd")]
fn forward(x: &[f32], output: &mut [MaybeUninit<f32>], curve: Curve) {
    for (x, output) in x.iter().zip(output) {
        output.write(curve.value(*x));
    }
}

/// x becomes its gradient.
#[multiversion(targets = "simd")]
fn backward(gradient: &[f32], x: &mut [f32], curve: Curve) {
    for (gradient, x) in gradient.iter().zip(x) {
        *x = gradient * curve.slope(*x);
    }
}

/// The gradients of p and n.
#[multiversion(targets = "simd")]
fn along_alphas(gradient: &[f32], x: &[f32], curve: Curve) -> [f64; 2] {
    let (mut for_p, mut for_n) = (0.0, 0.0);
    let mut factors = [0.0; 16 * vector::LANES];
    for (gradient, x) in gradient.chunks(factors.len()).zip(x.chunks(factors.len())) {
        let factors = &mut factors[..x.len()];
        for (factor, x) in factors.iter_mut().zip(x) {
            let negative = curve.negative(*x);
            *factor = if *x > 0.0 { 0.0 } else { negative };
        }
        for_n += vector::sum_pairs_by(gradient, factors, |gradient, factor| gradient * factor);
        for (factor, x) in factors.iter_mut().zip(x) {
            *factor = if *x > 0.0 { x * x } else { 0.0 };
        }
        for_p += vector::sum_pairs_by(gradient, factors, |gradient, factor| gradient * factor);
    }
    [for_p, for_n]
}

impl<B: XieluBackward, C: CheckpointStrategy> XieluOps for Autodiff<B, C> {
    fn xielu_forward(
        x: FloatTensor<Self>,
        alpha_p: FloatTensor<Self>,
        alpha_n: FloatTensor<Self>,
        constants: Constants,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct XieluStep;
        impl<B: XieluBackward> Backward<B, 3> for XieluStep {
            type State = (Saved<B>, Constants);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (saved, constants) = ops.state;
                let [x, alpha_p, alpha_n] = ops.parents;
                let alphas_wanted = alpha_p.is_some() || alpha_n.is_some();
                let (for_x, alphas) = B::xielu_backward(gradient, saved, constants, alphas_wanted);
                if let Some(node) = x {
                    grads.register::<B>(node.id, for_x);
                }
                for (node, gradient) in [alpha_p, alpha_n].into_iter().zip(alphas.into_iter().flatten()) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let prepared = XieluStep
            .prepare::<C>([x.node(), alpha_p.node(), alpha_n.node()])
            .compute_bound()
            .stateful();
        let (x, alpha_p, alpha_n) = (x.into_primitive(), alpha_p.into_primitive(), alpha_n.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let saved = Saved {
                    x: x.clone(),
                    alpha_p: alpha_p.clone(),
                    alpha_n: alpha_n.clone(),
                };
                prepared.finish((saved, constants), B::xielu_forward(x, alpha_p, alpha_n, constants))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::xielu_forward(x, alpha_p, alpha_n, constants)),
        }
    }
}

#[cfg(test)]
mod tests;
